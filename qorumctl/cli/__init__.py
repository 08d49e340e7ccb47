"""The command line: grammar, rendering, exit codes. The only place that prints or exits."""
