"""Progress as people see it: a bar in the terminal, a line every ten seconds in a pipe, an artifact in Prefect.

All show the words that work says of itself (:mod:`infra.telling`). What is not counted is shown with the time that it
takes, so that no step is silent.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

from infra.redaction import redact
from infra.telling import Word, duration, listening, tell
from tasks.engine.progress import Progress as RunProgress

ARTIFACT_INTERVAL_S = 5.0  # the server records every update; more often only feeds its database
LINE_INTERVAL_S = 10.0
_FIRST_LINE_S = 3.0  # what is done by then needs no line in a pipe
_TICK_S = 0.5

logger = logging.getLogger(__name__)
_shown: list[Display] = []


@contextmanager
def progress_shown(console: Console | None) -> Iterator[None]:
    """Show what this process does on ``console`` for the time of the block; one within another changes nothing.

    Args:
        console: a terminal gets a bar, anything else a line every ten seconds; None shows nothing.
    """
    if console is None or _shown:
        yield
        return
    display = Display(console)
    _shown.append(display)
    try:
        with display.running():
            yield
    finally:
        _shown.remove(display)


def note(text: str) -> None:
    """A line that stays, where progress is shown; said to nobody else."""
    for display in _shown:
        display.note(text)


@contextmanager
def progress_recorded() -> Iterator[None]:
    """Inside of a Prefect flow: an artifact with its progress, kept up to date until the end of the block."""
    artifact = _Artifact()
    with listening(artifact.hear), _ticking(artifact.tick, ARTIFACT_INTERVAL_S):
        yield
    artifact.end()


def run_listener(doing: str) -> Callable[[RunProgress], None]:
    """For ``run_pool``: tells how far it is; ``doing``: "segmenting"."""

    def listen(progress: RunProgress) -> None:
        left = f", {duration(progress.eta_s)} left" if progress.eta_s else ""
        detail = f"{progress.items_done} items, {progress.rows_per_s_overall:.1f} items/s{left}{_trouble(progress)}"
        if not progress.workers and not progress.items_done:
            detail = f"the workers start{_trouble(progress)}"
        tell(doing, progress.shards_done, progress.shards_total, "shards", detail)

    return listen


def _trouble(progress: RunProgress) -> str:
    failed = sum(progress.failures.values())
    parts = [f"{failed} failed"] * bool(failed) + [f"{progress.deaths} workers lost"] * bool(progress.deaths)
    return "".join(f", {part}" for part in [*parts, *[progress.outage] * bool(progress.outage)])


class Display:
    """What goes on at the moment, on a console.

    Args:
        console: of people.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._word, self._began_s, self._line_s = Word(""), time.monotonic(), time.monotonic()
        self._is_new = False
        self._bar: Progress | None = None
        self._task: Any = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Listen and show."""
        if self._console.is_terminal:
            self._bar = _bar(self._console)
            self._task = self._bar.add_task("", total=None, count="", detail="")
            with listening(self._hear), self._bar:
                yield
            return
        with listening(self._hear), _ticking(self._tick, _TICK_S):
            yield

    def note(self, text: str) -> None:
        """A line that stays, above what changes."""
        self._console.print(escape(redact(text)), soft_wrap=True)

    def _hear(self, word: Word) -> None:
        if word.doing != self._word.doing:
            self._began_s, self._is_new = time.monotonic(), True
            if self._bar is not None:
                self._bar.reset(self._task, start=True)
        self._word = word
        if self._bar is not None:
            self._bar.update(
                self._task,
                description=escape(redact(word.doing)),
                completed=word.done,
                total=word.total or None,
                count=_count(word),
                detail=escape(redact(word.detail)),
            )

    def _tick(self) -> None:
        now_s = time.monotonic()
        is_due = now_s - self._line_s >= LINE_INTERVAL_S or (self._is_new and now_s - self._began_s >= _FIRST_LINE_S)
        if self._word.doing and is_due:
            self._line_s, self._is_new = now_s, False
            self._console.print(escape(redact(line_of(self._word, now_s - self._began_s))), soft_wrap=True)


def line_of(word: Word, seconds: float) -> str:
    """``segmenting: 3 of 12 shards, 310 items, 15.1 items/s, 40 s left (21 s)``."""
    told = ", ".join(part for part in (_count(word), word.detail) if part)
    return f"{word.doing}{': ' * bool(told)}{told} ({duration(seconds)})"


def _count(word: Word) -> str:
    if word.total:
        return f"{word.done:.0f} of {word.total:.0f} {word.unit}".rstrip()
    return f"{word.done:.0f} {word.unit}" if word.done else ""


def _bar(console: Console) -> Progress:
    columns: list[ProgressColumn] = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[count]}"),
        TextColumn("[dim]{task.fields[detail]}"),
        TimeElapsedColumn(),
    ]
    return Progress(*columns, console=console, transient=True)


class _Artifact:
    """The progress of a flow run on Prefect's page, from its first second to its end."""

    def __init__(self) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        self._update = update_progress_artifact
        self._word, self._began_s, self._told = Word("starting"), time.monotonic(), ""
        self._id: Any = create_progress_artifact(progress=0.0, key="visionmill-progress", description="starting")

    def hear(self, word: Word) -> None:
        """Remember it for the next update."""
        if word.doing != self._word.doing:
            self._began_s = time.monotonic()
        self._word = word

    def end(self) -> None:
        """All is done."""
        self._word = Word("done", 1, 1)
        self._say(100.0, "done")

    def tick(self) -> None:
        """Bring the page up to date; a server that does not answer costs an update and nothing else."""
        word, seconds = self._word, time.monotonic() - self._began_s
        told = redact(line_of(word, seconds))
        if told == self._told:
            return
        self._told = told
        self._say(100.0 * word.done / word.total if word.total else 0.0, told)

    def _say(self, percent: float, told: str) -> None:
        try:
            self._update(self._id, progress=percent, description=told)
        except Exception as error:  # noqa: BLE001 - progress is told again in some seconds
            logger.debug("the progress could not be recorded: %s", error)


@contextmanager
def _ticking(tick: Callable[[], None], every_s: float) -> Iterator[None]:
    """Call a function in a thread of its own, in the context of this one."""
    stop, context = threading.Event(), contextvars.copy_context()

    def go() -> None:
        while not stop.wait(every_s):
            tick()

    thread = threading.Thread(target=lambda: context.run(go), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10.0)
