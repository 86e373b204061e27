"""The page of a training: losses, rate and held-out figures over steps, with everything inside. A logger like others.

It is written again and again while the training goes on, and reloads itself so long; whoever opens it later sees the
whole of it, also if the training was stopped in between.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from infra.store import open_store
from infra.telling import duration
from tasks.report import charts
from tasks.report.page import page_template
from tasks.training.layout import curves_key
from tasks.training.run_log import LoggedRun, LogTarget

CURVES = LogTarget(f"{__name__}:open_page", name="curves")
"""Every training has it."""
WRITE_EVERY_S = 10.0
RELOAD_S = 15  # of the page itself while the run goes on
_RUNNING = "running"
_SMOOTHED_POINTS = 10  # a smoothed loss is a running mean over about so many points
_NOT_SHOWN_AS_LOSSES = ("train/loss", "train/rate", "train/norm", "train/images_per_second")

Points = list[tuple[float, float]]


class TrainingPage:
    """The curves of one run as they grow; see ``tasks.training.run_log.RunLogger``.

    Args:
        run: what an earlier process has done of it is shown, too, as the checkpoint remembers it.
    """

    def __init__(self, run: LoggedRun) -> None:
        self._run, self._store = run, open_store(run.output_uri)
        self._curves: dict[str, Points] = {}
        self._step, self._begin_s = run.begins_at, time.monotonic()
        for point in run.history:
            self._remember(point["step"], _figures_of_point(point))
        for look in run.looks:
            named = {f"by_class/{name}": value for name, value in look["by_class"].items()}
            known = {name: value for name, value in {"main": look["main"], **named}.items() if value >= 0}
            self._remember(look["step"], {f"validation/{name}": value for name, value in known.items()})
        self._write(_RUNNING)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Remember figures; the page is written where the last time is a while ago."""
        self._remember(step, figures)
        if time.monotonic() - self._written_s >= WRITE_EVERY_S:
            self._write(_RUNNING)

    def end(self, state: str) -> None:
        """The page as it stays."""
        self._write(state)

    def _remember(self, step: int, figures: Mapping[str, float]) -> None:
        self._step = max(self._step, step)
        for name, value in figures.items():
            self._curves.setdefault(name, []).append((step, value))

    def _write(self, state: str) -> None:
        page = render(self._run, self._curves, self._step, state, self._left_s())
        self._store.put(curves_key(self._run.fingerprint), page.encode())
        self._written_s = time.monotonic()

    def _left_s(self) -> float | None:
        done = self._step - self._run.begins_at
        return (time.monotonic() - self._begin_s) / done * (self._run.steps - self._step) if done else None


def open_page(where: str, run: LoggedRun) -> TrainingPage:
    """The page of a run beside its checkpoint; it knows its place by itself."""
    return TrainingPage(run)


def render(run: LoggedRun, curves: Mapping[str, Points], step: int, state: str, left_s: float | None) -> str:
    """The page as text; everything that comes from data is escaped by the template engine.

    Args:
        run: what is trained.
        curves: name of a figure -> (step, value) in order; names as ``tasks.training.run_log`` has them.
        step: steps done.
        state: "running", or how it ended.
        left_s: seconds to go, where that is known.
    """
    losses = {name.removeprefix("train/"): points for name, points in curves.items()
              if name.startswith("train/") and name not in _NOT_SHOWN_AS_LOSSES}  # fmt: skip
    return page_template("tasks.report", "training_report.html.j2").render(
        run=run,
        step=step,
        state=state,
        is_running=state == _RUNNING,
        reload_s=RELOAD_S,
        left=duration(left_s) if left_s is not None and state == _RUNNING else None,
        now={name: points[-1][1] for name, points in curves.items()},
        best=max(curves.get("validation/main", ()), key=lambda point: point[1], default=None),
        loss=_chart("Loss, the sum", curves.get("train/loss"), smooth=True),
        main=_chart("On held-out labels", curves.get("validation/main"), most=1.0),
        losses=[(name, points[-1][1], _chart(name, points, small=True, smooth=True))
                for name, points in losses.items()],
        others=[(words, curves[name][-1][1], _chart(words, curves[name], small=True))
                for name, words in (("train/rate", "learning rate"), ("train/norm", "norm of the gradient"),
                                    ("train/images_per_second", "images per second")) if name in curves],
        classes=_by_class(curves),
        recipe=json.dumps(run.recipe, indent=1, ensure_ascii=False),
        n=charts.number,
        written_at=f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M:%S}",
    )  # fmt: skip


def _by_class(curves: Mapping[str, Points]) -> list[tuple[str, float, Any]]:
    """(class, its last figure, its curve), the lowest figure first; all curves from 0 to 1."""
    prefix = "validation/by_class/"
    found = [(name.removeprefix(prefix), points) for name, points in curves.items() if name.startswith(prefix)]
    found.sort(key=lambda each: each[1][-1][1])
    return [(name, points[-1][1], _chart(name, points, small=True, most=1.0)) for name, points in found]


def _chart(title: str, points: Points | None, *, small: bool = False, smooth: bool = False, most: float | None = None):  # type: ignore[no-untyped-def]
    if not points:
        return None
    series = [(title, "var(--accent)", points)]
    if smooth and len(points) > _SMOOTHED_POINTS:
        series = [(title, "var(--line)", points), (f"{title}, smoothed", "var(--accent)", _smoothed(points))]
    return charts.lines(f"{title} by step", series, compact=small, most=most)


def _smoothed(points: Sequence[tuple[float, float]]) -> Points:
    """A running mean, with the weights of the first points corrected for there being none before them."""
    keep, mean, weight = 1 - 1 / _SMOOTHED_POINTS, 0.0, 0.0
    found: Points = []
    for step, value in points:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        found.append((step, mean / weight))
    return found


def _figures_of_point(point: Mapping[str, Any]) -> dict[str, float]:
    """A point of a record's history as figures, the sum of the losses included."""
    values = {name: float(value) for name, value in point.items() if name != "step" and math.isfinite(value)}
    total = sum(value for name, value in values.items() if name not in ("norm", "rate"))
    return {f"train/{name}": value for name, value in {"loss": total, **values}.items()}
