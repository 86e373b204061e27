"""How the commands speak: people read stderr, programs read one JSON line at the end of stdout.

Exit codes: 0 done (failed items are listed, not fatal), 1 the run could not be completed, 2 wrong usage.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, ParamSpec, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from infra.errors import UsageError, VisionmillError
from infra.redaction import redact

JsonFlag = Annotated[bool, typer.Option("--json", help="Print a machine-readable summary as the last line of stdout.")]
DebugFlag = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def _width(stream: TextIO) -> int | None:
    """A terminal's own width; elsewhere (files, pipes, logs) no line is cut for want of room."""
    return None if stream.isatty() or "COLUMNS" in os.environ else 1_000


people = Console(stderr=True, highlight=False, width=_width(sys.stderr))
answers = Console(highlight=False, width=_width(sys.stdout))

A = ParamSpec("A")
Summary = dict[str, object]


def say(text: str, *, style: str | None = None) -> None:
    """A line for people, on stderr; ``text`` is data (no markup)."""
    people.print(escape(redact(text)), style=style, soft_wrap=True)


def table(*names: str) -> Table:
    """An empty table whose cells wrap where a terminal is narrow: names and addresses are there to be copied."""
    return Table(*[Column(escape(name), overflow="fold") for name in names], box=None)


def _fail(error: VisionmillError, *, as_json: bool) -> None:
    people.print(f"[bold red]error:[/] {escape(redact(error.message))}", soft_wrap=True)
    if error.hint:
        people.print(f"[dim]what to do:[/] {escape(redact(error.hint))}", soft_wrap=True)
    if as_json:
        emit({"ok": False, "error": redact(error.message), "hint": redact(error.hint), "exit_code": error.exit_code})


def emit(summary: Summary) -> None:
    """Print the summary as one JSON line on stdout."""
    sys.stdout.write(json.dumps(summary, default=str, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _foreign(error: BaseException) -> VisionmillError:
    """An error nobody translated: still one clear line, with the way to see more."""
    if isinstance(error, ValueError):
        return UsageError(str(error) or type(error).__name__)
    return VisionmillError(
        f"{type(error).__name__}: {error}", hint="run again with --debug for the traceback, and please report it"
    )


def command(function: Callable[A, Summary | None]) -> Callable[A, None]:
    """Wrap a command: it returns its summary; errors become one message and the right exit code.

    The wrapped function must take ``as_json`` and ``debug`` (:data:`JsonFlag`, :data:`DebugFlag`).
    """

    @functools.wraps(function)
    def run(*args: A.args, **kwargs: A.kwargs) -> None:
        as_json, debug = bool(kwargs.get("as_json")), bool(kwargs.get("debug"))
        try:
            summary = function(*args, **kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            say("interrupted; what is committed stays, the same command goes on from there", style="yellow")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            os._exit(0)  # the reader of our stdout has seen enough
        except Exception as error:  # noqa: BLE001  the last door before the user
            if debug:
                people.print(escape(redact(traceback.format_exc())), style="dim", soft_wrap=True)
            known = error if isinstance(error, VisionmillError) else _foreign(error)
            _fail(known, as_json=as_json)
            raise typer.Exit(known.exit_code) from None
        exit_code = int(summary.pop("exit_code", 0)) if summary else 0  # type: ignore[call-overload]
        if as_json:
            emit({"ok": exit_code == 0, **(summary or {}), "exit_code": exit_code})
        if exit_code:
            raise typer.Exit(exit_code)

    return run
