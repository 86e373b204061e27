"""How the commands speak: people read stderr, programs read one JSON line at the end of stdout.

Exit codes: 0 done (failed items are listed, not fatal), 1 the run could not be completed, 2 wrong usage.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, TextIO

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from flows.cli.options import options_of, parameters_from
from infra.errors import UsageError, VisionmillError
from infra.redaction import redact

JsonFlag = Annotated[bool, typer.Option("--json", help="Print a machine-readable summary as the last line of stdout.")]
DebugFlag = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
PrefectFlag = Annotated[
    bool,
    typer.Option(
        "--prefect/--no-prefect", help="Record the run in the standing Prefect server.", envvar="VISIONMILL_PREFECT"
    ),
]


def _width(stream: TextIO) -> int | None:
    """A terminal's own width; elsewhere (files, pipes, logs) no line is cut for want of room."""
    return None if stream.isatty() or "COLUMNS" in os.environ else 1_000


people = Console(stderr=True, highlight=False, width=_width(sys.stderr))
answers = Console(highlight=False, width=_width(sys.stdout))

Summary = dict[str, object]


def say(text: str, *, style: str | None = None) -> None:
    """A line for people, on stderr; ``text`` is data (no markup)."""
    people.print(escape(redact(text)), style=style, soft_wrap=True)


@contextmanager
def long_work() -> Iterator[None]:
    """Progress is shown for the time of the block, from the first second: imports that take many belong into it."""
    from flows.progress import progress_shown
    from infra.telling import tell

    with progress_shown(people):
        tell("loading what this needs")
        yield


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


def command(function: Callable[..., Summary | None]) -> Callable[..., None]:
    """Make a command of a function that returns its summary; errors become one message and the right exit code.

    A parameter whose type is a Pydantic model becomes an option for each of its fields; ``--json`` and ``--debug`` are
    added. A function that has to know whether programs listen takes ``as_json`` (:data:`JsonFlag`).
    """
    own = inspect.signature(function, eval_str=True).parameters
    models = {name: each.annotation for name, each in own.items() if _is_model(each.annotation)}

    @functools.wraps(function)
    def run(**given: Any) -> None:
        try:
            parameters = {name: parameters_from(model, given) for name, model in models.items()}
            with _ended_like_ctrl_c():
                summary = function(**parameters, **{name: given[name] for name in own if name not in models})
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            say("interrupted; what is committed stays, the same command goes on from there", style="yellow")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            os._exit(0)  # the reader of our stdout has seen enough
        except Exception as error:  # noqa: BLE001  the last door before the user
            if given["debug"]:
                people.print(escape(redact(traceback.format_exc())), style="dim", soft_wrap=True)
            known = error if isinstance(error, VisionmillError) else _foreign(error)
            _fail(known, as_json=given["as_json"])
            raise typer.Exit(known.exit_code) from None
        exit_code = int(summary.pop("exit_code", 0)) if summary else 0  # type: ignore[call-overload]
        if given["as_json"]:
            emit({"ok": exit_code == 0, **(summary or {}), "exit_code": exit_code})
        if exit_code:
            raise typer.Exit(exit_code)

    run.__signature__ = _with_options(own, models)  # type: ignore[attr-defined]
    return run


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that what was started ends and leases are free; jobs make more of both."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _with_options(own: Mapping[str, inspect.Parameter], models: Mapping[str, type[BaseModel]]) -> inspect.Signature:
    """What Typer reads: the fields of the models, then what the function takes beside them, then the common flags."""
    shown = {each.name: each for model in models.values() for each in options_of(model)}
    shown |= {name: each for name, each in own.items() if name not in models}
    for name, flag in (("as_json", JsonFlag), ("debug", DebugFlag)):
        shown[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=flag)
    return inspect.Signature([each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in shown.values()])
