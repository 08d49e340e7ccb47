"""The alert rules in contrib: of metrics that exist, and firing when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from qorumctl.controller.metrics import FAMILIES
from qorumctl.model.status import CopyState, SetState

RULES = Path(__file__).resolve().parents[1] / "contrib/prometheus/qorum.rules.yml"
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_they_speak_of_metrics_and_states_that_exist() -> None:
    assert len({rule["alert"] for rule in rules()}) == len(rules()) > 8
    for rule in rules():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert set(re.findall(r"\bqorum_\w+", rule["expr"])) <= {family.name for family in FAMILIES}
        named = re.findall(r'qorum_(set|copy)_state\{state=~?"([^"]*)"', rule["expr"])
        for of, states in named:
            assert set(states.split("|")) <= {str(state) for state in (SetState if of == "set" else CopyState)}


@promtool
def test_promtool_takes_them() -> None:
    checked = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


HEALTHY = {
    'qorum_set_state{set="w",state="healthy"}': "1",
    'qorum_set_state{set="w",state="stopped"}': "0",
    'qorum_set_observed_timestamp_seconds{set="w"}': "now",
    'qorum_set_watcher_listening{set="w"}': "1",
    'qorum_set_unrepaired_findings{set="w"}': "0",
    'qorum_copy_state{set="w",copy="a",state="missing"}': "0",
    'qorum_copy_failing{set="w",copy="a"}': "0",
    'qorum_copy_blamed{set="w",copy="a"}': "0",
    'qorum_scrub_last_completed_timestamp_seconds{set="w"}': "now",
    'qorum_scrub_findings_total{set="w",copy="a",verdict="outvoted"}': "0",
}
LAST_SCRUB = 'qorum_scrub_last_completed_timestamp_seconds{set="w"}'
OBSERVED = 'qorum_set_observed_timestamp_seconds{set="w"}'


@promtool
@pytest.mark.parametrize(
    ("differences", "days", "firing"),
    [
        ({}, 2, []),
        ({'qorum_set_state{set="w",state="damaged"}': "1"}, 1, ["QorumSetDamaged"]),
        ({'qorum_set_state{set="w",state="failed"}': "1"}, 1, ["QorumSetDown"]),
        ({'qorum_set_state{set="w",state="stalled"}': "1"}, 1, ["QorumSetDown"]),
        ({'qorum_set_state{set="w",state="degraded"}': "1"}, 1, ["QorumSetDegraded"]),
        ({'qorum_copy_state{set="w",copy="a",state="missing"}': "1"}, 1, ["QorumCopyAway"]),
        ({'qorum_copy_blamed{set="w",copy="a"}': "1"}, 1, ["QorumCopyToBeReplaced"]),
        ({'qorum_set_unrepaired_findings{set="w"}': "2"}, 1, ["QorumUnrepairedDamage"]),
        ({'qorum_scrub_findings_total{set="w",copy="a",verdict="outvoted"}': "0x20 3"}, 1, ["QorumDamageFound"]),
        ({LAST_SCRUB: "100"}, 39, []),
        ({LAST_SCRUB: "100"}, 41, ["QorumNoScrub"]),
        ({LAST_SCRUB: "0"}, 39, []),
        ({LAST_SCRUB: "0"}, 42, ["QorumNeverScrubbed"]),
        ({'qorum_set_watcher_listening{set="w"}': "0"}, 1, ["QorumNotWatched"]),
        ({OBSERVED: "100"}, 1, ["QorumNotObserved"]),
        ({OBSERVED: "100", 'qorum_set_state{set="w",state="stopped"}': "1"}, 1, []),
    ],
)
def test_they_fire_when_they_should(tmp_path: Path, differences: dict[str, str], days: int, firing: list[str]) -> None:
    hours = 24 * days
    series = {"now": f"0+3600x{hours}"}
    told = {name: series.get(value, value if " " in value else f"{value}x{hours}") for name, value in
            (HEALTHY | differences).items()}  # fmt: skip
    case = {
        "interval": "1h",
        "input_series": [{"series": name, "values": values} for name, values in told.items()],
        "promql_expr_test": [
            {
                "expr": 'sum by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{hours}h",
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in firing],
            }
        ],
    }
    # JSON is YAML.
    file = tmp_path / "test.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1h", "tests": [case]}))
    tested = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout + tested.stderr
