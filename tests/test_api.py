"""What `from qorumctl import ...` promises: names that exist, are typed, and cost nothing before they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qorumctl

INIT = Path(qorumctl.__file__)


def promised_to_type_checkers() -> dict[str, str]:
    """Name -> module, from the imports under TYPE_CHECKING."""
    guarded = next(node for node in ast.parse(INIT.read_text()).body if isinstance(node, ast.If))
    return {
        alias.name: node.module or ""
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_type_checkers_and_python_see_the_same() -> None:
    typed = promised_to_type_checkers()
    assert [*sorted(typed), "__version__"] == qorumctl.__all__
    for name, module in typed.items():
        assert getattr(qorumctl, name) is getattr(sys.modules[module], name), name


def test_a_name_that_is_not_promised_is_an_error_as_of_any_module() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        qorumctl.Nonsense
    with pytest.raises(ImportError, match="cannot import name 'Nonsense'"):
        exec("from qorumctl import Nonsense")


def test_to_import_it_is_cheap() -> None:
    """Nothing but itself: neither pydantic nor libnbd, before somebody uses what needs them."""
    program = "import sys; before = set(sys.modules); import qorumctl; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in loaded if name.split(".")[0] not in sys.stdlib_module_names] == ["qorumctl"]


def test_it_says_that_it_is_typed() -> None:
    assert INIT.with_name("py.typed").exists()
    assert 'qorumctl = ["py.typed"]' in (INIT.parents[1] / "pyproject.toml").read_text()
