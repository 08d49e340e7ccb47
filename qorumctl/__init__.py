"""qorumctl: keep a disk as three (or more, odd) copies, vote on every sector, repair the minority.

    from qorumctl import QuorumSets

is the whole program for other programs: `QuorumSets` has a method for every command, and the command line calls the
same ones. What is named here is promised (docs/integration.md); what only a module below has is not. Each name is
imported when it is first used: `import qorumctl` alone loads nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qorumctl.controller.observer import Observer, ScrubControl, ScrubPosition, ScrubStart, StopReason
    from qorumctl.controller.options import (
        CreateOptions,
        ExportOptions,
        ReplaceOptions,
        ResolveRequest,
        ScrubOptions,
        Timeouts,
    )
    from qorumctl.controller.sets import QuorumSets
    from qorumctl.controller.watching import Audience
    from qorumctl.core.findings import Action, Cause, FindingVerdict
    from qorumctl.core.ranges import Range
    from qorumctl.errors import (
        CommandError,
        CopyError,
        CopyInUseError,
        CopySharingError,
        CopySilentError,
        CopyUnavailableError,
        CopyWriteError,
        DaemonError,
        DaemonGoneError,
        DaemonStalledError,
        DaemonStartError,
        DamagedStateError,
        DefinitionError,
        LockedError,
        QorumError,
        RefusedError,
        StoreError,
        UsageError,
    )
    from qorumctl.model.evidence import Bitwise, CopyEvidence, Evidence, ResolvedCopy, ResolveReport, Row
    from qorumctl.model.export import ExportReport
    from qorumctl.model.report import (
        CopyEntry,
        CopyHistory,
        DiagnosisDocument,
        FindingDocument,
        History,
        RangeDocument,
        RunSummary,
        ScrubReport,
    )
    from qorumctl.model.spec import CopySpec, SetSpec
    from qorumctl.model.status import (
        AttachReport,
        CheckItem,
        CheckReport,
        CopyBlame,
        CopyResult,
        CopyState,
        CopyStatus,
        EventDocument,
        FrontReport,
        FrontStatus,
        Imported,
        ListReport,
        QmpReport,
        Result,
        RunningScrub,
        SetListing,
        SetState,
        SetStatus,
        ShowReport,
        StatusReport,
    )
    from qorumctl.paths import Directories

_HOMES = {
    "controller.observer": "Observer ScrubControl ScrubPosition ScrubStart StopReason",
    "controller.options": "CreateOptions ExportOptions ReplaceOptions ResolveRequest ScrubOptions Timeouts",
    "controller.sets": "QuorumSets",
    "controller.watching": "Audience",
    "core.findings": "Action Cause FindingVerdict",
    "core.ranges": "Range",
    "errors": "CommandError CopyError CopyInUseError CopySharingError CopySilentError CopyUnavailableError "
    "CopyWriteError DaemonError DaemonGoneError DaemonStalledError DaemonStartError DamagedStateError DefinitionError "
    "LockedError QorumError RefusedError StoreError UsageError",
    "model.evidence": "Bitwise CopyEvidence Evidence ResolveReport ResolvedCopy Row",
    "model.export": "ExportReport",
    "model.report": "CopyEntry CopyHistory DiagnosisDocument FindingDocument History RangeDocument RunSummary "
    "ScrubReport",
    "model.spec": "CopySpec SetSpec",
    "model.status": "AttachReport CheckItem CheckReport CopyBlame CopyResult CopyState CopyStatus EventDocument "
    "FrontReport FrontStatus Imported ListReport QmpReport Result RunningScrub SetListing SetState SetStatus "
    "ShowReport StatusReport",
    "paths": "Directories",
}

__all__ = [
    "Action",
    "AttachReport",
    "Audience",
    "Bitwise",
    "Cause",
    "CheckItem",
    "CheckReport",
    "CommandError",
    "CopyBlame",
    "CopyEntry",
    "CopyError",
    "CopyEvidence",
    "CopyHistory",
    "CopyInUseError",
    "CopyResult",
    "CopySharingError",
    "CopySilentError",
    "CopySpec",
    "CopyState",
    "CopyStatus",
    "CopyUnavailableError",
    "CopyWriteError",
    "CreateOptions",
    "DaemonError",
    "DaemonGoneError",
    "DaemonStalledError",
    "DaemonStartError",
    "DamagedStateError",
    "DefinitionError",
    "DiagnosisDocument",
    "Directories",
    "EventDocument",
    "Evidence",
    "ExportOptions",
    "ExportReport",
    "FindingDocument",
    "FindingVerdict",
    "FrontReport",
    "FrontStatus",
    "History",
    "Imported",
    "ListReport",
    "LockedError",
    "Observer",
    "QmpReport",
    "QorumError",
    "QuorumSets",
    "Range",
    "RangeDocument",
    "RefusedError",
    "ReplaceOptions",
    "ResolveReport",
    "ResolveRequest",
    "ResolvedCopy",
    "Result",
    "Row",
    "RunSummary",
    "RunningScrub",
    "ScrubControl",
    "ScrubOptions",
    "ScrubPosition",
    "ScrubReport",
    "ScrubStart",
    "SetListing",
    "SetSpec",
    "SetState",
    "SetStatus",
    "ShowReport",
    "StatusReport",
    "StopReason",
    "StoreError",
    "Timeouts",
    "UsageError",
    "__version__",
]

if not TYPE_CHECKING:
    # A type checker that saw this would take any name for one of ours.
    def __getattr__(name: str) -> object:
        for module, names in _HOMES.items():
            if name in names.split():
                globals()[name] = found = getattr(import_module(f"qorumctl.{module}"), name)
                return found
        raise AttributeError(f"module 'qorumctl' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
