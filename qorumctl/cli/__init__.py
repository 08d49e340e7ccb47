"""The command line: grammar, rendering, exit codes. The only place that prints or exits."""

# Not `signal`, which loads `re` first: a Ctrl-C in these milliseconds was a traceback of ours.
import _signal  # type: ignore[import-not-found]
import sys as _sys

_is_program = (_sys.argv[0] if _sys.argv else "").rpartition("/")[2] in {"-m", "qorumctl"}
if _is_program and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    # Ctrl-C while Python loads what a command needs would end in a traceback; nothing has been begun then.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
