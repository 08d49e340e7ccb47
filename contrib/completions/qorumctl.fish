# fish: qorumctl itself knows what can follow.
complete --command qorumctl --no-files --arguments "(env _QORUMCTL_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args _TYPER_COMPLETE_ARGS=(commandline -cp) qorumctl)" --condition "env _QORUMCTL_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=is-args _TYPER_COMPLETE_ARGS=(commandline -cp) qorumctl"
