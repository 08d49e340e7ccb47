"""A systemd of the test's own: process 1 of new namespaces, on an overlay of this machine's files, with the units and
the program of this checkout installed in it. Nothing of it is left on the machine, and it ends with the test.

Only root can have it, on a kernel and in a container that allow so much: `Unavailable` says what is missing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live import wait_for

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "usr/local"
_BOOT_S = 90.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TARGET = """[Unit]
Requires=basic.target
Wants=dbus.service systemd-journald.service timers.target
After=basic.target
"""
_PROGRAM = f"""#!/usr/bin/python3 -I
import sys

sys.path[:0] = ["/{PREFIX}/lib/qorumctl/python", "/{PREFIX}/lib/qorumctl/packages"]
from qorumctl.cli.main import main

main()
"""
# $1: a directory that is ours, $2: what is to be laid over the machine's files, $3: Python's packages.
_INNER = f"""set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
cp -a "$2/." "$1/upper"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
mount --bind "$3" {PREFIX}/lib/qorumctl/packages
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs tmpfs sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
for place in run tmp srv dev; do mount -t tmpfs -o mode=0755 tmpfs "$place"; done
chmod 1777 tmp
mkdir dev/pts dev/shm srv/a srv/b srv/c
for node in null zero full random urandom tty; do cp -a "/dev/$node" dev; done
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
pivot_root . mnt
umount -l /mnt
mount --make-rshared /
exec env -i container=other PATH={_PATH} /lib/systemd/systemd --system --unit=qorum-test.target --log-target=journal
"""


class Unavailable(Exception):
    pass


class Booted:
    """`place`: an empty directory."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._libraries = list[Path]()
        self._log = place / "log"
        self._cgroup: Path | None = None
        self._unshare: subprocess.Popen[bytes] | None = None

    def with_library(self, path: Path) -> Path:
        """Before it boots: where everybody there will find the library."""
        self._libraries.append(path)
        return Path("/", PREFIX, "lib", path.name)

    def boot(self) -> None:
        """Raises Unavailable."""
        for program in ("/lib/systemd/systemd", "/usr/bin/unshare", "/usr/bin/nsenter", "/usr/bin/dbus-daemon"):
            if not Path(program).exists():
                raise Unavailable(f"{program} is not installed")
        self._make_files()
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--cgroup"]
        inner = ["bash", "-c", _INNER, "boot", str(self._place / "t"), str(self._place / "files"), str(_packages())]
        try:
            self._cgroup = _make_cgroup()
            with self._log.open("wb") as log:
                self._unshare = subprocess.Popen(
                    [*command, "--propagation", "private", *inner],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=lambda: (self._cgroup / "cgroup.procs").write_text("0"),  # type: ignore[operator]
                )
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"no control group: {error}") from None
        try:
            wait_for(self._is_up, "the start of systemd", deadline_s=_BOOT_S)
        except pytest.fail.Exception as error:
            raise Unavailable(str(error)) from None
        if self._unshare.poll() is not None:
            raise Unavailable(f"systemd does not run here: {self._log.read_text(errors='replace')[-500:]}")

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """By its bash, as root."""
        return subprocess.run(
            [*self._enter(), "env", "-i", f"PATH={_PATH}", "HOME=/root", "COLUMNS=80", "bash", "-c", script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def end(self) -> None:
        if self._unshare is not None:
            for pid in (*self._children(), self._unshare.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._unshare.wait()
        if self._cgroup is not None:
            wait_for(lambda: _removed(self._cgroup), "the end of the control group")  # type: ignore[arg-type]

    def _is_up(self) -> bool:
        assert self._unshare is not None
        if self._unshare.poll() is not None:
            return True
        return bool(self._children()) and self.run("systemctl is-active -q qorum-test.target dbus").returncode == 0

    def _enter(self) -> list[str]:
        return ["nsenter", "-t", str(self._children()[0]), "-m", "-p", "-u", "-i", "-C", "-r", "-w"]

    def _children(self) -> list[int]:
        assert self._unshare is not None
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text()
            return [int(word) for word in text.split()]
        return []

    def _make_files(self) -> None:
        """What `make install` places, as far as systemd and the program need it."""
        (self._place / "t").mkdir()
        root = self._place / "files"
        units, lib = root / PREFIX / "lib/systemd/system", root / PREFIX / "lib/qorumctl"
        for directory in (units, lib / "packages", lib / "python", root / PREFIX / "bin", root / "etc/systemd/system"):
            directory.mkdir(parents=True)
        for unit in (ROOT / "contrib/systemd").glob("qorum-*"):
            shutil.copy(unit, units)
        for kind in ("sysusers", "tmpfiles"):
            (root / PREFIX / f"lib/{kind}.d").mkdir()
            shutil.copy(ROOT / f"contrib/systemd/qorum.{kind}", root / PREFIX / f"lib/{kind}.d/qorum.conf")
        shutil.copy(ROOT / "contrib/systemd/notify", lib)
        shutil.copytree(ROOT / "qorumctl", lib / "python/qorumctl", ignore=shutil.ignore_patterns("__pycache__"))
        for library in self._libraries:
            shutil.copy(library, root / PREFIX / "lib")
        (root / PREFIX / "bin/qorumctl").write_text(_PROGRAM)
        (root / PREFIX / "bin/qorumctl").chmod(0o755)
        (root / "etc/systemd/system/qorum-test.target").write_text(_TARGET)
        (root / "etc/fstab").touch()
        # A new file system's root has to be everybody's, and so has all below it.
        subprocess.run(["chmod", "-R", "u=rwX,go=rX", root], check=True)


def _packages() -> Path:
    """Where this interpreter has its packages from. Raises Unavailable where the service user could not read them."""
    import typer

    packages = Path(typer.__file__).resolve().parents[1]
    if sys.version_info[:2] != _version_of_the_system() or not Path(typer.__file__).stat().st_mode & 0o004:
        raise Unavailable("Python's packages are not for the distribution's interpreter, or for root alone")
    return packages


def _version_of_the_system() -> tuple[int, int]:
    ask = "import sys; print(*sys.version_info[:2])"
    said = subprocess.run(["/usr/bin/python3", "-I", "-c", ask], capture_output=True, check=True).stdout
    major, minor = said.split()
    return int(major), int(minor)


def _make_cgroup() -> Path:
    """Below our own, in the hierarchy of version 2."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    mount = next((fields[1] for fields in mounts if fields[2] == "cgroup2"), None)
    own = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::"), None)
    if mount is None or own is None:
        raise Unavailable("there are no control groups of version 2")
    made = Path(f"{mount}/{own}/qorum-test-{os.getpid()}")
    made.mkdir()
    return made


def _removed(cgroup: Path) -> bool:
    for directory in sorted((path for path in cgroup.rglob("*") if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            directory.rmdir()
    with contextlib.suppress(OSError):
        cgroup.rmdir()
    return not cgroup.exists()
