"""`make install`: what lies under DESTDIR is a program that runs, on its own, as it will from PREFIX."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer._completion_shared import get_completion_script

import qorumctl
from qorumctl import definitions
from qorumctl.store import Store
from tests.live import make_spec

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "/usr/local"
PLACED = [
    "bin/qorumctl",
    "lib/qorumctl/notify",
    "lib/systemd/system/qorum-front@.service",
    "lib/systemd/system/qorum-hooks@.path",
    "lib/systemd/system/qorum-hooks@.service",
    "lib/systemd/system/qorum-notify@.service",
    "lib/systemd/system/qorum-scrub@.service",
    "lib/systemd/system/qorum-scrub@.timer",
    "lib/systemd/system/qorum-storage@.service",
    "lib/systemd/system/qorum-watch@.service",
    "lib/sysusers.d/qorum.conf",
    "lib/tmpfiles.d/qorum.conf",
    "share/bash-completion/completions/qorumctl",
    "share/doc/qorumctl/front.md",
    "share/doc/qorumctl/operations.md",
    "share/fish/vendor_completions.d/qorumctl.fish",
    "share/man/man1/qorumctl.1",
    "share/man/man5/qorumctl.toml.5",
    "share/man/man7/qorum.7",
    "share/qorumctl/hooks/mail",
    "share/qorumctl/prometheus/qorum.rules.yml",
    "share/qorumctl/schemas/qorum.status-1.json",
    "share/zsh/site-functions/_qorumctl",
]


def make(
    task: str, destdir: Path | str, prefix: str = PREFIX, *, code: int = 0, pip: Path | str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """What the make target does once the checkout's environment stands."""
    done = subprocess.run(
        [ROOT / "contrib/install", task],
        env=os.environ | {"DESTDIR": str(destdir), "PREFIX": prefix, "PIP_PYTHON": str(pip)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def run(program: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Without anything of the checkout."""
    return subprocess.run(
        [program, *arguments],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "PYTHONPATH": "/nonexistent"} | environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def moved(destdir: Path) -> Path:
    """The program, told that it lies where it does: what DESTDIR holds will be copied to PREFIX."""
    program = destdir / "qorumctl"
    text = (destdir / f".{PREFIX}/bin/qorumctl").read_text()
    program.write_text(text.replace(f'"{PREFIX}/', f'"{destdir}{PREFIX}/'))
    program.chmod(0o755)
    return program


# One test: an installation takes five seconds.
def test_install_run_upgrade_uninstall(tmp_path: Path) -> None:
    root = tmp_path / f".{PREFIX}"
    stale = [
        root / "lib/qorumctl/python/qorumctl/of_an_older_version.py",
        root / "share/qorumctl/schemas/qorum.status-0.json",
        root / "share/doc/qorumctl/of-an-older-version.md",
    ]
    for path in stale:
        path.parent.mkdir(parents=True)
        path.touch()
    make("install", tmp_path)
    assert [name for name in PLACED if not (root / name).is_file()] == []
    assert [path for path in stale if path.exists()] == []
    assert {path.name for path in (root / "lib/qorumctl").iterdir()} == {"notify", "python"}

    program = moved(tmp_path)
    assert run(program, "--version").stdout == f"qorumctl {qorumctl.__version__}\n"
    assert json.loads(run(program, "schema", "status").stdout) == json.loads(
        (root / "share/qorumctl/schemas/qorum.status-1.json").read_text()
    )
    for line in (root / "bin/qorumctl").read_text().splitlines():
        assert str(tmp_path) not in line
    compiled = next((root / "lib/qorumctl/python/qorumctl/__pycache__").glob("errors.*.pyc"))
    assert str(tmp_path).encode() not in compiled.read_bytes()
    assert not [path for path in root.rglob("*") if path.lstat().st_mode & 0o022 and not path.is_symlink()]
    assert run(program, "list", QORUM_CONFIG_DIR=str(tmp_path / "none"), XDG_RUNTIME_DIR="/x").returncode == 0
    _completes(root, program, tmp_path)
    _makes_a_page(program, tmp_path)
    _refuses_another_python(program)

    make("uninstall", tmp_path)
    assert [path for path in root.rglob("*") if not path.is_dir()] == []


def _makes_a_page(program: Path, place: Path) -> None:
    """Its template and what fills it in are among what was installed."""
    (place / "d").mkdir(mode=0o700)
    sources = {name: place / f"{name}.raw" for name in "abc"}
    spec = make_spec(sources)
    definitions.save(place / "d/web01.toml", spec)
    with Store.open(place / "s/web01") as store:
        store.finish_run(store.begin_run("report", spec.size, None, False, None, os.getpid()).id)
    places = {"CONFIG": "d", "STATE": "s", "RUNTIME": "r"}
    environment = {f"QORUM_{kind}_DIR": str(place / name) for kind, name in places.items()}
    made = run(program, "report", "web01", "--html", "-", **environment)
    assert made.stdout.startswith("<!doctype html>"), made.stderr
    assert "@media print" in made.stdout


def _completes(root: Path, program: Path, place: Path) -> None:
    """bash, for real; the other shells ask the program the same."""
    (place / "c").mkdir(mode=0o755)
    for name in ("web01", "web02", "db"):
        (place / "c" / f"{name}.toml").touch()
    script = f"""
        source {root}/share/bash-completion/completions/qorumctl
        ask() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _qorumctl {program}; echo "${{COMPREPLY[*]}}"; }}
        ask qorumctl ena
        ask qorumctl status we
        ask qorumctl scrub --rep
        ask qorumctl copy re
    """
    done = subprocess.run(
        ["bash", "-c", script],
        env={"PATH": "/usr/bin:/bin", "QORUM_CONFIG_DIR": str(place / "c"), "HOME": "/x", "XDG_RUNTIME_DIR": "/x"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines() == ["enable", "web01 web02", "--report --repair", "rejoin replace"]
    environment = {"_QORUMCTL_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "qorumctl ena"}
    assert '"enable"' in run(program, **environment).stdout
    environment = {"_QORUMCTL_COMPLETE": "complete_fish", "_TYPER_COMPLETE_ARGS": "qorumctl ena"}
    assert run(program, **environment, _TYPER_COMPLETE_FISH_ACTION="get-args").stdout.startswith("enable\t")


def _refuses_another_python(program: Path) -> None:
    """After an upgrade of the system: compiled modules would fail to load, with words that help nobody."""
    text = program.read_text()
    program.write_text(re.sub(r"!= \(3, \d+\)", "!= (3, 4)", text).replace("Python 3.11", "Python 3.4"))
    done = run(program, "--version")
    assert done.returncode == 1
    assert done.stderr.startswith("qorumctl: It was installed for Python 3.")
    assert "make install" in done.stderr


@pytest.mark.parametrize("prefix", ["usr", "/usr/", "/a b", "/a|b", "/a$b"])
def test_a_prefix_that_would_break_the_units_is_refused(tmp_path: Path, prefix: str) -> None:
    assert "PREFIX must be" in make("uninstall", tmp_path, prefix, code=1).stderr


def test_what_cannot_be_placed_ends_the_installation(tmp_path: Path) -> None:
    """And is not followed by a success. pip, which takes the time, is left out."""
    blocked = tmp_path / f".{PREFIX}/share/bash-completion"
    blocked.parent.mkdir(parents=True)
    blocked.touch()
    pip = tmp_path / "pip"
    seen = tmp_path / "seen"
    pip.write_text(
        f'#!/bin/sh\nwhile [ "$1" != --target ]; do shift; done\nmkdir -p "$2/qorumctl"\n(cd "$3"; pwd; ls) >{seen}\n'
    )
    pip.chmod(0o755)
    done = make("install", tmp_path, code=1, pip=pip)
    assert str(blocked) in done.stderr
    # Built from a copy: nothing that root makes is left in somebody's checkout, and the copy is gone.
    place, *files = seen.read_text().splitlines()
    assert {"pyproject.toml", "qorumctl"} <= set(files)
    assert not Path(place).exists()
    assert not (tmp_path / f".{PREFIX}/share/doc").exists()


def test_uninstalling_leaves_other_things_alone(tmp_path: Path) -> None:
    others = [tmp_path / f".{PREFIX}" / name for name in ("bin/other", "lib/systemd/system/other.service")]
    for path in others:
        path.parent.mkdir(parents=True)
        path.touch()
    make("uninstall", tmp_path)
    assert all(path.exists() for path in others)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's installation is known to systemd")
def test_sets_that_systemd_runs_keep_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their unit could not stop them in order any more."""
    program, prefix, enabled = tmp_path / "p/bin/qorumctl", str(tmp_path / "p"), tmp_path / "multi-user.target.wants"
    systemctl = tmp_path / "bin/systemctl"
    for path in (program, enabled / "qorum-storage@web01.service", systemctl):
        path.parent.mkdir(parents=True)
        path.touch(mode=0o755)
    systemctl.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\n')
    monkeypatch.setenv("SYSTEMD_BOOTED", str(tmp_path))
    monkeypatch.setenv("SYSTEMD_UNITS", str(tmp_path))
    monkeypatch.setenv("PATH", f"{systemctl.parent}:{os.environ['PATH']}")
    assert "runs sets: qorum-storage@web01.service." in make("uninstall", "", prefix, code=1).stderr
    assert program.exists()
    (enabled / "qorum-storage@web01.service").unlink()
    make("uninstall", "", prefix)
    assert not program.exists()
    assert (tmp_path / "calls").read_text() == "daemon-reload\n"


SHELLS = [("bash", "qorumctl.bash"), ("zsh", "_qorumctl"), ("fish", "qorumctl.fish")]


@pytest.mark.parametrize(("shell", "file"), SHELLS)
def test_the_completions_ask_as_typer_expects_to_be_asked(shell: str, file: str) -> None:
    """They name no command and no option: the program is asked for these. How is what typer would write now."""
    script = get_completion_script(prog_name="qorumctl", complete_var="_QORUMCTL_COMPLETE", shell=shell)
    asked = re.compile(r"\w*COMPLETE\w*(?:=\w+)?|COMP_\w+=\S+")
    ours = (ROOT / "contrib/completions" / file).read_text()
    assert set(asked.findall(ours)) == set(asked.findall(script))


def test_the_completions_of_bash_parse() -> None:
    subprocess.run(["bash", "-n", ROOT / "contrib/completions/qorumctl.bash"], check=True)
    for script in ("contrib/install", "contrib/systemd/notify"):
        subprocess.run(["bash", "-n", ROOT / script], check=True)
        assert (ROOT / script).stat().st_mode & 0o111
