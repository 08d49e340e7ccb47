"""What is told to Prometheus of a status and a history, and that it is put as Prometheus wants it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from qorumctl.controller import metrics
from qorumctl.controller.metrics import FAMILIES, Observation
from qorumctl.core.findings import FindingVerdict
from qorumctl.model.status import CopyBlame, CopyState, CopyStatus, RunningScrub, SetState, SetStatus
from qorumctl.store.totals import Found, ScrubTotals

LABELS = ("set", "copy", "state", "verdict")
ROOT = Path(__file__).resolve().parents[2]
TOTALS = ScrubTotals(
    last_completed_s=1234.5,
    scanned_bytes=4096,
    skipped_bytes=512,
    of_no_copy={
        FindingVerdict.OUTVOTED: Found(2, 2),
        FindingVerdict.UNREADABLE: Found(0, 0),
        FindingVerdict.NO_MAJORITY: Found(1, 0),
    },
)
BLAME = CopyBlame(scrubs=3, of_scrubs=4, days=3, outvoted=5, unreadable=0, recurring=0, others=0)


def copy(name: str, **facts: object) -> CopyStatus:
    known = {"source": "/x", "state": CopyState.CURRENT, "outvoted": 0, "unreadable": 0, "repaired": 0}
    return CopyStatus.model_validate({"name": name, **known, **facts})


def status(name: str = "w", **facts: object) -> SetStatus:
    known = {
        "uuid": "u",
        "state": SetState.HEALTHY,
        "reason": None,
        "size": 1024,
        "threshold": 2,
        "policy": "repair",
        "pid": 7,
        "volume": None,
        "watched": True,
        "scrub": None,
        "last_scrub": None,
        "unrepaired": 0,
        "copies": [copy(letter) for letter in "abc"],
    }
    return SetStatus.model_validate({"set": name, **known, "definition_differs": False, **facts})


FAILED = status("broken", uuid="", state=SetState.FAILED, reason="No definition.", copies=[], watched=None)
AT_WORK = status(
    state=SetState.DEGRADED,
    unrepaired=3,
    scrub=RunningScrub(run=2, mode="repair", position=640, pid=9),
    copies=[
        copy("a", outvoted=4, repaired=3, blame=BLAME),
        copy("b", unreadable=2, failing=True, missed_writes=True, state=CopyState.SUSPECT),
        copy("c", state=CopyState.MISSING, away_since="2026-01-01T00:00:00Z", missed_bytes=77),
    ],
)


def samples(*observations: Observation) -> dict[str, float]:
    """`name|set=w|copy=a` -> value."""
    return {
        "|".join(
            [sample.name, *(f"{key}={sample.labels[key]}" for key in LABELS if key in sample.labels)]
        ): sample.value
        for family in text_string_to_metric_families(metrics.text(observations))
        for sample in family.samples
    }


def of(told: dict[str, float], name: str) -> dict[str, float]:
    return {key.removeprefix(name): value for key, value in told.items() if re.fullmatch(rf"{name}(\|.*)?", key)}


def seen(one: SetStatus, totals: ScrubTotals | None = TOTALS) -> Observation:
    return Observation(one, totals, 99.0)


def test_a_state_is_one_of_all_states() -> None:
    told = samples(seen(AT_WORK))
    assert of(told, "qorum_set_state") == {f"|set=w|state={state}": float(state == "degraded") for state in SetState}
    states = {"a": "current", "b": "suspect", "c": "missing"}
    assert of(told, "qorum_copy_state") == {
        f"|set=w|copy={name}|state={state}": float(state == states[name]) for name in "abc" for state in CopyState
    }


def test_what_status_says_is_told_of_set_and_copies() -> None:
    told = samples(seen(AT_WORK))
    assert {key: value for key, value in told.items() if "copy=" not in key and "state" not in key} == {
        "qorum_set_observed_timestamp_seconds|set=w": 99.0,
        "qorum_set_size_bytes|set=w": 1024.0,
        "qorum_set_watcher_listening|set=w": 1.0,
        "qorum_set_unrepaired_findings|set=w": 3.0,
        "qorum_scrub_last_completed_timestamp_seconds|set=w": 1234.5,
        "qorum_scrub_running|set=w": 1.0,
        "qorum_scrub_position_bytes|set=w": 640.0,
        "qorum_scrub_scanned_bytes_total|set=w": 4096.0,
        "qorum_scrub_skipped_bytes_total|set=w": 512.0,
    }
    assert of(told, "qorum_copy_missed_writes") == {"|set=w|copy=a": 0, "|set=w|copy=b": 1, "|set=w|copy=c": 0}
    assert of(told, "qorum_copy_missed_bytes") == {"|set=w|copy=a": 0, "|set=w|copy=b": 0, "|set=w|copy=c": 77}
    assert of(told, "qorum_copy_failing") == {"|set=w|copy=a": 0, "|set=w|copy=b": 1, "|set=w|copy=c": 0}
    assert of(told, "qorum_copy_blamed") == {"|set=w|copy=a": 1, "|set=w|copy=b": 0, "|set=w|copy=c": 0}


def test_findings_are_told_by_copy_and_verdict() -> None:
    told = samples(seen(AT_WORK))
    counted = {key: value for key, value in of(told, "qorum_scrub_findings_total").items() if value}
    assert counted == {
        "|set=w|copy=a|verdict=outvoted": 4,
        "|set=w|copy=b|verdict=unreadable": 2,
        "|set=w|copy=|verdict=outvoted": 2,
        "|set=w|copy=|verdict=no-majority": 1,
    }
    assert of(told, "qorum_scrub_repaired_findings_total") == {
        "|set=w|copy=a": 3,
        "|set=w|copy=b": 0,
        "|set=w|copy=c": 0,
        "|set=w|copy=": 2,
    }


def test_what_is_not_known_is_absent() -> None:
    away = copy("c", state=CopyState.MISSING, away_since="2026-01-01T00:00:00Z", missed_bytes=None)
    unmarked = copy("b", state=CopyState.MISSING)
    told = samples(seen(status(watched=None, copies=[copy("a"), unmarked, away]), totals=None))
    assert of(told, "qorum_copy_missed_bytes") == {"|set=w|copy=a": 0}
    assert not [
        key for key in told if key.startswith(("qorum_set_watcher", "qorum_scrub_position", "qorum_scrub_scan"))
    ]
    assert not of(told, "qorum_scrub_last_completed_timestamp_seconds")


def test_a_set_that_cannot_be_told_is_failed_and_the_others_are_told() -> None:
    told = samples(seen(FAILED), seen(status()))
    assert {key: value for key, value in told.items() if "set=broken" in key and value} == {
        "qorum_set_state|set=broken|state=failed": 1.0,
        "qorum_set_observed_timestamp_seconds|set=broken": 99.0,
    }
    assert told["qorum_set_state|set=w|state=healthy"] == 1.0


def test_a_scrub_that_never_was_is_zero() -> None:
    never = ScrubTotals(None, 0, 0, {})
    assert of(samples(seen(status(), never)), "qorum_scrub_last_completed_timestamp_seconds") == {"|set=w": 0}


def test_no_label_grows_and_nothing_is_told_of_this_process() -> None:
    families = list(text_string_to_metric_families(metrics.text([seen(AT_WORK), seen(FAILED)])))
    labels = {key for family in families for sample in family.samples for key in sample.labels}
    assert labels == set(LABELS)
    assert {family.name for family in families} == {family.name.removesuffix("_total") for family in FAMILIES}


def test_of_no_sets_nothing_is_told() -> None:
    assert metrics.text([]) == ""


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_nothing_to_say() -> None:
    text = metrics.text([seen(AT_WORK), seen(FAILED)])
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def _rows(document: str) -> Iterable[tuple[str, str]]:
    return re.findall(r"^\| `(qorum_\w+)` \| ([^|]*?) +\|", (ROOT / document).read_text(), re.MULTILINE)


def test_the_documentation_lists_them_all_with_their_labels() -> None:
    assert list(_rows("docs/metrics.md")) == [(family.name, ", ".join(family.labels)) for family in FAMILIES]
