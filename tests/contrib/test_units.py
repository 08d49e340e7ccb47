"""The units of contrib/systemd, as far as systemd's own tools can judge them without running them."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from qorumctl.controller.schedule import WORDS
from qorumctl.controller.units import FILE_NAME, drop_ins
from qorumctl.controller.waking import BY_UNIT, PENDING_NAME
from qorumctl.model.spec import CopySpec, FileSource, NbdSource, SetSpec
from qorumctl.units import parse_budget

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted(path for path in (ROOT / "contrib/systemd").iterdir() if path.suffix in {".service", ".timer", ".path"})
MOST_EXPOSURE = 2.5
DIRECTORIES = ("etc/qorum/sets", "etc/qorum/hooks.d", "var/lib/qorum", "run/qorum")
EXPOSED = re.compile(r"Overall exposure level for \S+: (\d+\.\d)")

with_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units with a prefix where the programs that they name can be run."""
    prefix = tmp_path_factory.mktemp("prefix")
    for program in ("bin/qorumctl", "lib/qorumctl/notify"):
        path = prefix / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    (prefix / "share/doc/qorumctl").mkdir(parents=True)
    for unit in UNITS:
        (prefix / unit.name).write_text(unit.read_text().replace("/usr/local/", f"{prefix}/"))
    return prefix


def verify(prefix: Path, *units: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", *units],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_UNIT_PATH": f"{prefix}:", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # What it says of the system's own units is not ours.
    said = [line for line in done.stderr.splitlines() if "qorum" in line or str(prefix) in line]
    assert said == []


def instances(name: str) -> list[str]:
    return [unit.name.replace("@", f"@{name}") for unit in UNITS]


@with_systemd
def test_systemd_has_nothing_to_say_against_them(installed: Path) -> None:
    verify(installed, *instances("web-01"))


@with_systemd
def test_a_mistake_in_one_is_seen(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(installed, tmp_path, dirs_exist_ok=True)
    scrub = tmp_path / "qorum-scrub@.service"
    scrub.write_text(scrub.read_text().replace("Type=oneshot", "Type=oneshots"))
    with pytest.raises(AssertionError, match="oneshots"):
        verify(tmp_path, "qorum-scrub@web01.service")


@with_systemd
@pytest.mark.parametrize("schedule", WORDS)
def test_what_enable_adds_fits_them(installed: Path, tmp_path: Path, schedule: str) -> None:
    shutil.copytree(installed, tmp_path, dirs_exist_ok=True)
    directories = ["/srv/a", "/srv/with blank", '/srv/"quoted"', "/srv/back\\slash", "/srv/50%", "/srv/ümlaut"]
    sources: list[FileSource | NbdSource] = [FileSource(path=f"{path}/w.raw") for path in directories]
    sources[0] = NbdSource(uri="nbd://far.example/w")
    spec = SetSpec(
        name="web01",
        uuid=uuid4(),
        size=1 << 20,
        copies=tuple(CopySpec(name="abcdefg"[at], source=source) for at, source in enumerate(sources[:5])),
    )
    for unit, text in drop_ins(spec, directories, ["/srv/a", "/srv/with blank"], WORDS[schedule]).items():
        (tmp_path / f"{unit}.d").mkdir()
        (tmp_path / f"{unit}.d" / FILE_NAME).write_text(text)
    verify(tmp_path, *instances("web01"))


SERVICES = sorted(unit.name for unit in UNITS if unit.suffix == ".service" and "notify" not in unit.name)


@pytest.mark.parametrize("unit", SERVICES)
def test_variables_stand_in_one_file_for_all(unit: str) -> None:
    """The documentation names it for metrics and timeouts."""
    assert setting(unit, "EnvironmentFile") == ["-/etc/default/qorum"]
    assert "`/etc/default/qorum`" in (ROOT / "docs/operations.md").read_text()


@pytest.mark.parametrize("unit", ["qorum-scrub@.service", "qorum-watch@.service"])
def test_metrics_can_be_written_where_node_exporter_looks(unit: str) -> None:
    assert "-/var/lib/prometheus/node-exporter" in setting(unit, "ReadWritePaths")
    assert "QORUM_TEXTFILE_DIR=/var/lib/prometheus/node-exporter" in (ROOT / "docs/operations.md").read_text()


@with_systemd
@pytest.mark.parametrize("unit", ["qorum-scrub@.service", "qorum-watch@.service", "qorum-front@.service"])
def test_scrub_watch_and_front_can_reach_little(unit: str) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(ROOT / "contrib/systemd" / unit)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    exposure = EXPOSED.search(said)
    assert exposure is not None, said
    assert float(exposure[1]) <= MOST_EXPOSURE


def setting(unit: str, key: str) -> list[str]:
    text = (ROOT / "contrib/systemd" / unit).read_text()
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


def test_a_scrub_fails_when_damage_is_left_and_not_when_it_is_repaired_or_paused() -> None:
    assert setting("qorum-scrub@.service", "SuccessExitStatus") == ["3 6 143 SIGTERM"]


@pytest.mark.parametrize(("budget", "seconds"), [("0", 0), ("4h", 14400)])
def test_a_scrub_s_unit_gives_it_its_budget(budget: str, seconds: int) -> None:
    """As `enable` writes it; when it is used up the exit code is that of a pause."""
    words = setting("qorum-scrub@.service", "ExecStart")[0].replace("${BUDGET}", budget).split()
    assert words == ["/usr/local/bin/qorumctl", "scrub", "--budget", budget, "%i"]
    assert parse_budget(budget) == seconds


@pytest.mark.parametrize(
    ("main_pid", "called"), [("7", ["pause web01", "stop --force web01"]), ("", [])], ids=["runs", "has ended"]
)
def test_stopping_the_daemon_stops_the_one_of_the_unit(tmp_path: Path, main_pid: str, called: list[str]) -> None:
    """systemd runs ExecStop= also when the daemon has ended by itself: `qorumctl restart` by hand has begun another by
    then, which guests use."""
    program = tmp_path / "qorumctl"
    program.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\necho no >&2\nexit 1\n')
    program.chmod(0o755)
    (line,) = setting("qorum-storage@.service", "ExecStop")
    script = line.removeprefix("-/bin/sh -c '").removesuffix("'").replace("$$", "$").replace("%i", "web01")
    script = script.replace("/usr/local/bin/qorumctl", str(program))
    environment = {"PATH": "/usr/bin:/bin"} | ({"MAINPID": main_pid} if main_pid else {})
    done = subprocess.run(["/bin/sh", "-c", script], env=environment, capture_output=True, text=True, check=False)
    # That there was no scrub to be paused is no news.
    assert (done.returncode, done.stderr) == ((1, "no\n") if called else (0, ""))
    calls = tmp_path / "calls"
    assert (calls.read_text().splitlines() if calls.exists() else []) == called


@pytest.mark.parametrize("unit", ["qorum-storage@.service", "qorum-watch@.service"])
def test_an_operator_s_own_starts_are_not_refused(unit: str) -> None:
    """systemd counts them, too, and the starts of the watcher that come with those of the daemon."""
    assert setting(unit, "StartLimitIntervalSec") == ["10min"]
    assert setting(unit, "StartLimitBurst") == ["20"]


def test_every_failure_is_told() -> None:
    units = ("qorum-storage@.service", "qorum-watch@.service", "qorum-scrub@.service", "qorum-front@.service")
    assert [setting(unit, "OnFailure") for unit in units] == [["qorum-notify@%n.service"]] * len(units)


def test_a_front_outlives_the_death_of_its_set_and_is_never_started_anew_by_itself() -> None:
    for binding in ("BindsTo", "Requires", "PartOf", "StopPropagatedFrom"):
        assert setting("qorum-front@.service", binding) == []
    assert setting("qorum-front@.service", "Restart") == ["no"]


@pytest.mark.parametrize("unit", ["qorum-notify@.service", "qorum-hooks@.service"])
def test_a_mailer_keeps_the_rights_that_it_needs(unit: str) -> None:
    """setuid or setgid: what systemd.exec(5) lists under NoNewPrivileges= would take them away. The list is long, and
    what the unit may have is short."""
    text = (ROOT / "contrib/systemd" / unit).read_text()
    confined = set(re.findall(r"^((?:Private|Protect|Restrict|Lock|Memory|System|No|Dynamic)\w+)=", text, re.MULTILINE))
    assert confined == {"ProtectSystem", "ProtectHome", "PrivateTmp", "ProtectControlGroups"}


def test_the_notification_reaches_the_journal_and_root_s_mail(tmp_path: Path) -> None:
    (tmp_path / "sendmail").write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/to\ncat >{tmp_path}/mail\n')
    (tmp_path / "systemctl").write_text('#!/bin/sh\necho "said: $@"\nexit 3\n')
    for program in ("sendmail", "systemctl"):
        (tmp_path / program).chmod(0o755)
    done = subprocess.run(
        [ROOT / "contrib/systemd/notify", "qorum-scrub@web01.service"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("<1>qorum-scrub@web01.service has failed: see ")
    assert (tmp_path / "to").read_text() == "-i root\n"
    head, _, body = (tmp_path / "mail").read_text().partition("\n\n")
    assert head.startswith("To: root\nSubject: [qorum] ")
    assert head.endswith(": qorum-scrub@web01.service has failed")
    assert body == "said: status --no-pager --full --lines=50 -- qorum-scrub@web01.service\n"


def test_without_a_mailer_the_journal_is_told_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "uname").symlink_to("/usr/bin/uname")
    script = (ROOT / "contrib/systemd/notify").read_text().replace("/usr/sbin:/usr/lib", str(tmp_path))
    done = subprocess.run(
        ["/bin/sh", "-c", script, "notify", "x.service"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("<1>x.service has failed")


def make_directories(root: Path) -> dict[str, tuple[int, int]]:
    """With the user: as `make install` and each boot do. Path -> owner and mode."""
    files = ROOT / "contrib/systemd"
    (root / "etc").mkdir(exist_ok=True)
    for command in (["systemd-sysusers"], ["systemd-tmpfiles", "--create"]):
        file = files / f"qorum.{command[0].removeprefix('systemd-')}"
        subprocess.run([*command, f"--root={root}", str(file)], capture_output=True, timeout=60, check=True)
    facts = {path: (root / path).stat() for path in DIRECTORIES}
    return {path: (one.st_uid, stat.S_IMODE(one.st_mode)) for path, one in facts.items()}


def makes_users(test: Callable[..., None]) -> Callable[..., None]:
    lacking = pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
    return lacking(pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")(test))


@makes_users
def test_the_user_and_its_directories(tmp_path: Path) -> None:
    made = make_directories(tmp_path)
    lines = (tmp_path / "etc/passwd").read_text().splitlines()
    uid = next(int(line.split(":")[2]) for line in lines if line.startswith("qorum:"))
    assert made == {
        "etc/qorum/sets": (uid, 0o750),
        "etc/qorum/hooks.d": (0, 0o755),
        "var/lib/qorum": (uid, 0o750),
        "run/qorum": (uid, 0o755),
    }


@makes_users
def test_what_root_has_made_stays_root_s(tmp_path: Path) -> None:
    """Root acts as the owner of the state directory: if it were given away, sets that run could not be stopped."""
    for path in DIRECTORIES:
        (tmp_path / path).mkdir(parents=True, mode=0o755)
    assert set(make_directories(tmp_path).values()) == {(0, 0o755)}


@pytest.mark.parametrize(
    ("event", "mailed"),
    [
        ({"event": "daemon-gone", "text": "web01: the daemon is gone."}, True),
        ({"event": "finding", "text": "web01: copy b was outvoted."}, False),
        ({"event": "run-finished", "text": "web01: run 1 left damage.", "summary": {"outcome": "damaged"}}, True),
        ({"event": "run-finished", "text": "web01: run 1 found nothing.", "summary": {"outcome": "clean"}}, False),
    ],
)
def test_the_hook_that_mails(tmp_path: Path, event: dict[str, object], mailed: bool) -> None:
    mailer = tmp_path / "sendmail"
    mailer.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/to\ncat > {tmp_path}/mail\n')
    mailer.chmod(0o755)
    hook = (ROOT / "contrib/hooks/mail").read_text().replace("/usr/sbin/sendmail", str(mailer))
    subprocess.run([sys.executable, "-c", hook], input=json.dumps(event), text=True, check=True)
    assert (tmp_path / "mail").exists() == mailed
    if mailed:
        head, _, body = (tmp_path / "mail").read_text().partition("\n\n")
        assert head.endswith(f": {event['text']}")
        assert json.loads(body.partition("\n\n")[2]) == event


def test_hooks_are_run_outside_of_the_confined_units() -> None:
    for unit in ("qorum-scrub@.service", "qorum-watch@.service", "qorum-storage@.service"):
        assert f"{BY_UNIT}=1" in setting(unit, "Environment")
        # Whoever leaves the file sees to it that somebody looks: the daemon may have been begun by hand, or long ago.
        assert "qorum-hooks@%i.path" in " ".join(setting(unit, "Wants")).split()
    assert setting("qorum-hooks@.service", "Environment") == []
    assert setting("qorum-hooks@.path", "PathExists") == [f"/var/lib/qorum/%i/{PENDING_NAME}"]
    assert setting("qorum-hooks@.service", "ExecStartPre") == [f"/bin/rm -f /var/lib/qorum/%i/{PENDING_NAME}"]
