"""What holds for the project as a whole: who may import whom, who may print, and what is committed.

ruff, mypy and the drift of the schemas are run by `make check`, not here.
"""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# --- import direction (docs/architecture.md) --------------------------------------------------------------------------

BASE = {"errors", "units"}
# What touches files of the machine; among themselves they keep no order.
FILES = {
    "files",
    "explain",
    "paths",
    "service_user",
    "definitions",
    "hook_files",
    "identity",
    "images",
    "image_use",
    "store",
}

# A part of the package -> the parts it may import beside itself. A part is a module, or a package with all its modules;
# the longest name that fits a module is its part.
MAY_IMPORT: dict[str, set[str]] = {
    "": BASE | {"core", "model", "paths", "controller"},  # qorumctl/__init__.py, which loads them when they are used
    "errors": set(),
    "units": {"errors"},
    "core": BASE,
    "logbook": set(),
    "model": BASE | {"core"},
    **{part: BASE | {"core", "model", "logbook"} | FILES - {part} for part in FILES},
    "copies.base": BASE | {"core"},
    "copies": BASE | {"core", "copies.base"},
    "scrub": BASE | {"core", "copies.base"},
    "daemon": BASE | {"core", "model", "files"},
    "controller": BASE | FILES | {"core", "model", "logbook", "copies.base", "copies", "scrub", "daemon"},
    "cli": BASE | FILES | {"core", "model", "logbook", "controller"},
}

# A module from elsewhere -> the parts or modules that may import it. What is not named here may be imported by nobody,
# unless it comes with Python.
OWNERS: dict[str, set[str]] = {
    "qemu": {"daemon.client"},
    "cffi": {"copies.blkio"},
    "nbd": {"copies"},
    "prometheus_client": {"controller.metrics"},
    "jinja2": {"cli.page"},
    "markupsafe": {"cli.page"},
    "pydantic": {"model"} | FILES,
    "tomlkit": {"definitions"},
    "typer": {"cli"},
    "click": {"cli"},
    "rich": {"cli"},
    "sqlite3": {"store"},
}

# The core is pure: it is given what it works on, the time of day included.
IMPURE = {
    "asyncio",
    "io",
    "os",
    "pathlib",
    "random",
    "secrets",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "time",
}

OUTPUT_CALLS = {"print", "exit", "quit", "sys.exit", "os._exit", "sys.stdout.write", "sys.stderr.write"}


def within(module: str, parts: set[str]) -> bool:
    return any(module == part or module.startswith(f"{part}.") for part in parts)


def part_of(module: str, parts: dict[str, set[str]]) -> str | None:
    return max((part for part in parts if part and within(module, {part})), key=len, default=None)


def module_name(package: Path, path: Path) -> str:
    """`core.vote` for qorumctl/core/vote.py; a package's __init__.py has the package's name."""
    return ".".join(path.relative_to(package).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def dotted(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, full dotted name) of every import, wherever it stands: at the top, in a function, under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                here = ["qorumctl", *filter(None, module.split("."))]
                up = node.level - is_package
                source = ".".join([*here[: len(here) - up], *filter(None, [source])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and dotted(node.func) in {"__import__", "import_module", "importlib.import_module"}
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, str(node.args[0].value)


def without_programs(tree: ast.Module) -> ast.Module:
    """The module as others import it: without `if __name__ == "__main__":`, where it is a program of its own."""
    kept = [node for node in tree.body if not (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test))]
    return ast.Module(kept, tree.type_ignores)


def refusal(module: str, part: str, name: str) -> str | None:
    """Why `module`, which belongs to `part`, may not import `name`; None if it may."""
    top, _, inner = name.partition(".")
    if top == "qorumctl":
        target = part_of(inner, MAY_IMPORT)
        if target is None or target == part or target in MAY_IMPORT[part]:
            return None
        return f"{part or 'the package itself'} may not import {target}"
    if top in OWNERS:
        return None if within(module, OWNERS[top]) else f"only {', '.join(sorted(OWNERS[top]))} may import {top}"
    if top not in sys.stdlib_module_names:
        return f"{top} is in no list of what may be imported"
    if part == "core" and top in IMPURE:
        return f"core is pure and may not import {top}"
    return None


def violations(package: Path) -> list[str]:
    """One line for each import, print or exit in `package` that stands where it may not."""
    found = []
    for path in sorted(package.rglob("*.py")):
        module = module_name(package, path)
        part = part_of(module, MAY_IMPORT) if module else ""
        place = path.relative_to(package.parent).as_posix()
        if part is None:
            found.append(f"{place}: {module} has no line in MAY_IMPORT")
            continue
        tree = ast.parse(path.read_text(), str(path))
        for line, name in imported(tree, module, path.name == "__init__.py"):
            if reason := refusal(module, part, name):
                found.append(f"{place}:{line}: imports {name}: {reason}")
        found += [
            f"{place}:{node.lineno}: {dotted(node.func)}: only cli prints or exits"
            for node in ast.walk(without_programs(tree))
            if isinstance(node, ast.Call) and dotted(node.func) in OUTPUT_CALLS and part != "cli"
        ]
    return found


def test_imports_go_one_way_and_only_the_command_line_prints() -> None:
    assert violations(ROOT / "qorumctl") == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/vote.py", "import qorumctl.model.spec"),
        ("core/vote.py", "from qorumctl import store"),
        ("core/vote.py", "from ..model import spec"),
        ("core/__init__.py", "from ..model import spec"),
        ("core/vote.py", "import pydantic"),
        ("core/vote.py", "import time"),
        ("units.py", "from qorumctl.core import ranges"),
        ("model/spec.py", "import qorumctl.store"),
        ("store.py", "from qorumctl.controller import sets"),
        ("copies/nbd.py", "from qorumctl.daemon import client"),
        ("copies/base.py", "from qorumctl.copies import nbd"),
        ("daemon/quorum_set.py", "import qorumctl.copies.base"),
        ("daemon/quorum_set.py", "from qemu.qmp import QMPClient"),
        ("scrub/scan.py", "from qorumctl.copies.nbd import NbdCopy"),
        ("scrub/scan.py", "def scan():\n    from qorumctl.daemon import client"),
        ("scrub/scan.py", "import importlib\nimportlib.import_module('qorumctl.daemon')"),
        ("controller/scrubbing.py", "import nbd"),
        ("controller/scrubbing.py", "import qorumctl.cli.main"),
        ("cli/main.py", "import requests"),
        ("scrub/scan.py", "def scan():\n    print('done')"),
        ("controller/sets.py", "import sys\nsys.exit(1)"),
        ("elsewhere.py", ""),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, path: str, source: str) -> None:
    planted = tmp_path / "qorumctl" / path
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(source)
    assert len(violations(tmp_path / "qorumctl")) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "core/vote.py",
            "from dataclasses import dataclass\nfrom .ranges import Range\nfrom qorumctl.errors import UsageError",
        ),
        ("scrub/scan.py", "from qorumctl.copies.base import Copy\nfrom qorumctl import __version__\nimport time"),
        ("copies/nbd.py", "import nbd"),
        ("daemon/client.py", "from qemu.qmp import QMPClient"),
        ("cli/main.py", "import sys, typer\nprint('x')\nsys.exit(0)"),
        ("model/schema.py", "import sys\nif __name__ == '__main__':\n    sys.exit('usage')"),
    ],
)
def test_what_is_allowed_is_not_refused(tmp_path: Path, path: str, source: str) -> None:
    allowed = tmp_path / "qorumctl" / path
    allowed.parent.mkdir(parents=True, exist_ok=True)
    allowed.write_text(source)
    assert violations(tmp_path / "qorumctl") == []


# --- lints that no linter has -----------------------------------------------------------------------------------------

UNFINISHED = re.compile(r"\b(TO[D]O|FIX[M]E|XX[X])\b")
SLEEP = re.compile(r"\btime\.sleep\(|\bfrom time import .*\bsleep\b")


def lines_with(pattern: re.Pattern[str], *trees: Path) -> list[str]:
    return [
        f"{path.relative_to(tree.parent)}:{number}: {line.strip()}"
        for tree in trees
        for path in sorted(tree.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line)
    ]


def test_nothing_is_left_for_later() -> None:
    assert lines_with(UNFINISHED, ROOT / "qorumctl", ROOT / "tests") == []


def test_no_test_sleeps_to_wait() -> None:
    """One pause is allowed: that between two looks at a condition, in the helper that all tests wait with."""
    pauses = lines_with(SLEEP, ROOT / "tests")
    assert [line for line in pauses if not line.startswith("tests/live.py:")] == []
    assert len(pauses) <= 1


def test_the_lints_see_what_they_look_for(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text("time." + "sleep(1)\nfrom time import monotonic, " + "sleep\n# TO" + "DO: more\n")
    assert len(lines_with(SLEEP, tmp_path)) == 2
    assert len(lines_with(UNFINISHED, tmp_path)) == 1


# --- what is committed ------------------------------------------------------------------------------------------------

TOP_LEVEL = {
    ".ci", ".gitignore", "CHANGELOG.md", "LICENSE", "Makefile", "README.md",
    "contrib", "docs", "man", "pyproject.toml", "qorumctl", "schemas", "tests",
}  # fmt: skip
JUNK = ("*.pyc", "*.so", "*.o", "*.log", "*.pid", "*.sock", "*.db", "*.db-wal", "*.raw", "*.qcow2", "*.img", "*.deb",
        "*.whl", "*.orig", "*.rej", "*~", "*.swp", ".DS_Store", "core", "*.egg-info/*", "*__pycache__/*")  # fmt: skip


def git(*arguments: str) -> list[str]:
    # A checkout that belongs to another user is read all the same: CI clones as one user and runs as another.
    command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("this tree is no git checkout, or git is not installed")
    return git("ls-files")


def test_only_known_top_levels_are_committed(tracked: list[str]) -> None:
    assert {path.split("/")[0] for path in tracked} <= TOP_LEVEL


def test_nothing_generated_is_committed(tracked: list[str]) -> None:
    junk = [path for path in tracked if any(fnmatch(path, p) or fnmatch(Path(path).name, p) for p in JUNK)]
    assert junk == []
    assert git("ls-files", "--cached", "--ignored", "--exclude-standard") == []


@pytest.mark.parametrize("script", sorted((ROOT / ".ci").iterdir()), ids=lambda path: path.name)
def test_the_scripts_are_executable_and_parse(script: Path) -> None:
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)


def test_make_help_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    shown = subprocess.run(["make", "-s", "-C", ROOT], check=True, capture_output=True, text=True).stdout
    assert set(re.findall(r"^  make (\w+)", shown, re.MULTILINE)) == set(phony[1].split())
