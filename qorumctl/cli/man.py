"""The man pages, from what the program itself says: commands and options, the keys of a definition, states.

`python -m qorumctl.cli.man --write DIRECTORY` writes them all; `make man` writes man/.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import typer

from qorumctl import __version__
from qorumctl.cli.main import grammar
from qorumctl.cli.man_texts import (
    DEFINITION,
    ENVIRONMENT,
    EXAMPLE,
    EXIT_STATUS,
    FILES,
    OVERVIEW,
    WORDS,
)
from qorumctl.controller.options import VARIABLES, Timeouts
from qorumctl.model.spec import CopySpec, DeviceSource, FileSource, NbdSource, ScrubSpec, SetSpec, VolumeSpec

_TABLES: tuple[tuple[str, str, type[Any]], ...] = (
    ("", "KEYS", SetSpec),
    ("[[copies]]", "One table for each copy", CopySpec),
    ("[copies.source]", "An image file", FileSource),
    ("[copies.source]", "A block device", DeviceSource),
    ("[copies.source]", "An NBD export", NbdSource),
    ("[volume]", "Who may connect", VolumeSpec),
    ("[scrub]", "How the set is scrubbed", ScrubSpec),
)


def pages() -> dict[str, str]:
    """File name -> roff, for every page."""
    return {"qorumctl.1": _program(), "qorumctl.toml.5": _definition(), "qorum.7": _overview()}


# -- roff


def escaped(text: str) -> str:
    """Text as man(7) prints it: nothing in it is a request, and a hyphen can be copied from the screen."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\`")
    return re.sub(r"^\.", r"\\&.", text, flags=re.MULTILINE)


def _page(name: str, section: int, about: str, *parts: str) -> str:
    head = f'.TH "{name.upper()}" "{section}" "" "qorumctl {__version__}" "qorumctl"'
    return "\n".join([head, ".SH NAME", f"{escaped(name)} \\- {escaped(about)}", *parts]) + "\n"


def _section(title: str, *lines: str) -> str:
    return "\n".join([f'.SH "{escaped(title)}"', *lines])


def _paragraphs(*texts: str) -> list[str]:
    """They are folded by whoever shows them."""
    blocks = [block for text in texts for block in re.split(r"\n\s*\n", dedent(text).strip("\n")) if block.strip()]
    lines = [line for block in blocks for line in (".PP", escaped(" ".join(block.split())))]
    return lines[1:]


def _items(items: Sequence[tuple[str, str]]) -> list[str]:
    return [line for term, text in items for line in (".TP", f"\\fB{escaped(term)}\\fR", escaped(text) or "\\&")]


# -- qorumctl(1)


def _program() -> str:
    root = typer.main.get_command(grammar())
    commands = list(_commands(root, "qorumctl"))
    synopsis = "\n.br\n".join(f".B {escaped(name)}\n{escaped(_usage(command, name))}" for name, command in commands)
    listed: list[str] = []
    for name, command in commands:
        listed += [f'.SS "{escaped(f"{name} {_usage(command, name)}".strip())}"', *_paragraphs(command.help or "")]
        listed += _items(_parameters(command, name))
    waits = Timeouts()
    timeouts = [(name, f"Default: {getattr(waits, field):g} seconds.") for name, field in VARIABLES.items()]
    return _page(
        "qorumctl",
        1,
        "keep a disk as three or more copies, vote on every sector, repair the minority",
        _section("SYNOPSIS", synopsis),
        _section("DESCRIPTION", *_paragraphs(str(grammar().info.help), "What a set is: see qorum(7).")),
        _section("OPTIONS", *_items(_parameters(root, "qorumctl", everywhere=True))),
        _section("COMMANDS", *listed),
        _section("EXIT STATUS", *_paragraphs(EXIT_STATUS)),
        _section("ENVIRONMENT", *_items([*ENVIRONMENT, *timeouts])),
        _section("FILES", *_items(FILES)),
        _section("SEE ALSO", *_paragraphs("qorumctl.toml(5), qorum(7), qemu-storage-daemon(1)")),
    )


def _commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix} {name}")
        elif not command.hidden:
            yield f"{prefix} {name}", command


def _usage(command: Any, name: str) -> str:
    arguments = [p for p in command.get_params(_context(command, name)) if p.param_type_name == "argument"]
    return " ".join(["[OPTIONS]", *map(_argument, arguments)])


def _argument(parameter: Any) -> str:
    shown = _term(parameter) if parameter.required else f"[{_term(parameter)}]"
    return f"{shown}..." if parameter.nargs == -1 else shown


def _context(command: Any, name: str) -> typer.Context:
    return typer.Context(command, info_name=name, help_option_names=["--help", "-h"])


_EVERYWHERE = {"--json", "--verbose", "--version", "--help"}


def _parameters(command: Any, name: str, *, everywhere: bool = False) -> list[tuple[str, str]]:
    """Those of the command alone; with `everywhere` those that all have."""
    found = []
    context = _context(command, name)
    for parameter in command.get_params(context):
        common = bool(_EVERYWHERE.intersection(parameter.opts))
        if common is everywhere and not getattr(parameter, "hidden", False):
            value = "" if parameter.param_type_name == "argument" else _value(parameter, context)
            found.append((f"{_term(parameter)}{value}", str(parameter.help or "").strip()))
    return found


def _term(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper()).strip("[]")
    return ", ".join(sorted(parameter.opts, key=len))


def _value(parameter: Any, context: typer.Context) -> str:
    """` S`, or the words that can be given; how typer sets them off differs between its versions."""
    if parameter.is_flag or "--help" in parameter.opts:
        return ""
    return f" {parameter.metavar or parameter.get_help_record(context)[0].rpartition(' ')[2].strip('<>[]')}"


# -- qorumctl.toml(5)


def _definition() -> str:
    parts = [_section("DESCRIPTION", *_paragraphs(DEFINITION))]
    for table, about, model in _TABLES:
        title = f'.SS "{escaped(f"{table}: {about}")}"' if table else '.SH "KEYS"'
        parts.append("\n".join([title, *_items([_key(name, field) for name, field in model.model_fields.items()])]))
    return _page(
        "qorumctl.toml",
        5,
        "the definition of a set",
        *parts,
        _section("EXAMPLE", ".nf", escaped(EXAMPLE.strip("\n")), ".fi"),
        _section("SEE ALSO", *_paragraphs("qorumctl(1), qorum(7). As a JSON schema: qorumctl schema definition")),
    )


def _key(name: str, field: Any) -> tuple[str, str]:
    text = field.description or ""
    default = field.default
    if field.is_required():
        text += " Required."
    elif isinstance(default, str) and default and name != "type":
        text += f' Default: "{default}".'
    return name, text


# -- qorum(7)


def _overview() -> str:
    words = [
        _section(title, *_items([(str(value), meanings[value]) for value in enumeration]))
        for title, enumeration, meanings in WORDS
    ]
    return _page(
        "qorum",
        7,
        "a disk as an odd number of copies that vote",
        *(_section(title, *_paragraphs(text)) for title, text in OVERVIEW),
        *words,
        _section("SEE ALSO", *_paragraphs("qorumctl(1), qorumctl.toml(5)")),
    )


def write(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--write", target]:
            write(Path(target))
        case _:
            sys.exit("usage: python -m qorumctl.cli.man --write DIRECTORY")
