# bash: qorumctl itself knows what can follow.
_qorumctl() {
    local IFS=$'\n'
    COMPREPLY=($(COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD _QORUMCTL_COMPLETE=complete_bash "$1" 2>/dev/null))
}
complete -o default -F _qorumctl qorumctl
