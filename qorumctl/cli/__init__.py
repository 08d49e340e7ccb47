"""The command line: grammar, rendering, exit codes. The only place that prints or exits."""

import signal as _signal
import sys as _sys
from pathlib import Path as _Path

_is_program = _Path(_sys.argv[0] if _sys.argv else "").name in {"-m", "qorumctl"}
if _is_program and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    # Ctrl-C while Python loads what a command needs would end in a traceback; nothing has been begun then.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
