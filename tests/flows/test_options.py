"""The command line is a promise: scripts name its options and rely on their defaults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from flows.cli.app import app

FROZEN = Path(__file__).with_name("command_line.txt")


def described(command: Any, path: str = "") -> Iterator[str]:
    """One line for each parameter of each command: its names, its default, the variable that sets it."""
    for name, each in sorted(getattr(command, "commands", {}).items()):
        yield from described(each, f"{path}{name} ")
    for each in command.params if path else ():
        names = "/".join([*each.opts, *each.secondary_opts])
        default = "required" if each.required else "" if each.default in (None, [], ()) else repr(each.default)
        takes = "flag" if getattr(each, "is_flag", False) else "values" if each.multiple else "value"
        yield " ".join(f"{path}{names} {takes} {default} {each.envvar or ''}".split())


def test_names_and_defaults_of_all_options_are_those_that_were_published() -> None:
    assert sorted(described(get_command(app))) == sorted(FROZEN.read_text("utf-8").splitlines())
