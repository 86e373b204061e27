"""Progress as people see it: a bar in the terminal, an artifact in Prefect. Both show numbers computed from commits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tasks.engine.progress import Progress as RunProgress

ARTIFACT_INTERVAL_S = 5.0  # the server records every update; more often only feeds its database

Listener = Callable[[RunProgress], None]


@contextmanager
def progress_display(console: Console | None, doing: str, *, orchestrated: bool) -> Iterator[Listener]:
    """A listener for ``run_pool`` that draws a bar on ``console`` and, inside a flow, keeps an artifact up to date.

    ``doing`` is what the bar says: "segmenting".
    """
    listeners: list[Listener] = []
    bar = _bar(console) if console is not None else None
    if bar is not None:
        bar.start()
        listeners.append(_bar_listener(bar, doing))
    if orchestrated:
        listeners.append(_artifact_listener())

    def tell_all(progress: RunProgress) -> None:
        for listen in listeners:
            listen(progress)

    try:
        yield tell_all
    finally:
        if bar is not None:
            bar.stop()


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("shards  {task.fields[items]} items"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[eta]}"),
        TextColumn("[yellow]{task.fields[trouble]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _bar_listener(bar: Progress, doing: str) -> Listener:
    task_id = bar.add_task(doing, total=None, items=0, rate="", eta="", trouble="")

    def listen(progress: RunProgress) -> None:
        bar.update(
            task_id,
            completed=progress.shards_done,
            total=progress.shards_total,
            items=progress.items_done,
            rate=f"{progress.rows_per_s:.1f} items/s",
            eta=f"{_duration(progress.eta_s)} left" if progress.eta_s else "",
            trouble=_trouble(progress),
        )

    return listen


def _trouble(progress: RunProgress) -> str:
    failed = sum(progress.failures.values())
    parts = [f"{failed} failed"] * bool(failed) + [f"{progress.deaths} workers lost"] * bool(progress.deaths)
    return ", ".join([*parts, *[progress.outage] * bool(progress.outage)])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _artifact_listener() -> Listener:
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    created = create_progress_artifact(progress=0.0, key="visionmill-progress", description="items committed")
    artifact_id = cast(UUID, created)  # a coroutine only where a loop runs, and steps run outside of any
    last = [0.0]

    def listen(progress: RunProgress) -> None:
        finished = progress.shards_done >= progress.shards_total
        if not finished and time.monotonic() - last[0] < ARTIFACT_INTERVAL_S:
            return
        last[0] = time.monotonic()
        eta = f", {_duration(progress.eta_s)} left" if progress.eta_s else ""
        trouble = f", {_trouble(progress)}" if _trouble(progress) else ""
        update_progress_artifact(
            artifact_id,
            progress=100.0 * progress.shards_done / max(progress.shards_total, 1),
            description=f"{progress.shards_done} of {progress.shards_total} shards, {progress.items_done} items "
            f"in this run{trouble}, {progress.rows_per_s:.1f} items/s{eta}",
        )

    return listen
