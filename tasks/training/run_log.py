"""The plug for loggers: what hears the figures of a training while it goes on, found by name.

A logger is a record called ``LOGGER`` in a module below ``tasks.training.loggers``, or in a module that an installed
package names in an entry point of the group ``visionmill.loggers``. ``--log NAME:WHERE`` asks for it. Its library is
imported by the function that opens it, in the process that trains; the record itself costs nothing.

Figures are called ``train/loss`` (the sum), ``train/<loss>``, ``train/rate``, ``train/norm`` (of the gradient),
``train/images_per_second``, ``validation/main`` and ``validation/by_class/<class>``.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import pkgutil
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol

from infra.by_name import resolve
from infra.errors import UsageError, VisionmillError
from infra.redaction import redact

ENTRY_POINTS = "visionmill.loggers"
FINISHED, STOPPED = "finished", "stopped"
"""How a run ends for its loggers: with weights, or before (the same command goes on from the checkpoint)."""
_WAITING = 1000  # points that a slow logger may owe
_LAST_WORDS_S = 30.0  # that the end of a run waits for a logger

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """What a logger is told of the run that it will hear.

    Args:
        name: of the weights. fingerprint: of the run; the same command has the same, so that a logger finds it again.
        steps: in all. begins_at: steps that were done already, by an earlier process that was stopped.
        recipe: plain JSON. sets: role -> id of what is learnt from and judged by.
        output_uri: where the run's files lie.
        history: points of the steps done already, as the weights' record keeps them: {"step": ..., loss: ...}.
        looks: looks at held-out labels done already: {"step": ..., "main": ..., "by_class": {...}}.
    """

    name: str
    fingerprint: str
    steps: int
    output_uri: str
    begins_at: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    sets: Mapping[str, str] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    looks: Sequence[Mapping[str, Any]] = ()


class RunLogger(Protocol):
    """What hears one run, called from one thread; whatever it raises costs the points that it was given, no more."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Finite figures by name, after so many steps; steps never decrease."""
        ...

    def end(self, state: str) -> None:
        """The last call, with one of ``FINISHED`` and ``STOPPED``."""
        ...


@dataclass(frozen=True, slots=True)
class Logger:
    """A place where figures can go.

    Args:
        name: as ``--log`` is given it.
        where: what stands behind the colon, for ``--help``: "FOLDER".
        opener: "module:function" of (what stood behind the colon, run) -> :class:`RunLogger`.
        package: module that has to be installed. extra: of visionmill's that installs it.
        settled: what stood behind the colon -> the same for a process that works in another folder.
    """

    name: str
    where: str
    opener: str
    package: str | None = None
    extra: str | None = None
    settled: Callable[[str], str] = str


@dataclass(frozen=True, slots=True)
class LogTarget:
    """A logger as workers are told of it: the function that opens it, and where to; ``name`` for messages."""

    opener: str
    where: str = ""
    name: str = ""


def loggers() -> dict[str, Logger]:
    """All loggers by name: those that come along, and those of installed packages."""
    package = importlib.import_module("tasks.training.loggers")
    modules = [f"{package.__name__}.{each.name}" for each in pkgutil.iter_modules(package.__path__)]
    modules += [point.value for point in entry_points(group=ENTRY_POINTS)]
    found = [getattr(importlib.import_module(module), "LOGGER", None) for module in modules]
    return {each.name: each for each in found if isinstance(each, Logger)}


def logger_words() -> str:
    """What ``--log`` takes, for its help: "mlflow:URI or tensorboard:FOLDER"."""
    return " or ".join(f"{each.name}:{each.where}" for each in loggers().values())


def log_target(spec: str) -> LogTarget:
    """``NAME:WHERE`` as a target.

    Raises:
        UsageError: there is no such logger, it does not say where to, or its package is not installed.
    """
    name, _, where = spec.partition(":")
    found = loggers().get(name)
    if found is None:
        raise UsageError(f"there is no logger {name!r}", hint=f"known: {logger_words()}")
    if not where:
        raise UsageError(f"--log {name} does not say where to", hint=f"write {name}:{found.where}")
    if found.package is not None and importlib.util.find_spec(found.package) is None:
        hint = f"pip install 'visionmill[{found.extra}]'" if found.extra else f"install {found.package}"
        raise UsageError(f"--log {spec} needs the package {found.package!r}, which is not installed", hint=hint)
    return LogTarget(found.opener, found.settled(where), name)


def absolute(where: str) -> str:
    """A path as seen from this process's folder; addresses stay as they are."""
    return where if "://" in where else os.path.abspath(where)


@contextmanager
def logs_of(targets: Sequence[LogTarget], run: LoggedRun) -> Iterator[RunLogs]:
    """All logs of a run for the time of a block, which says ``finished`` where the run has come to its end.

    Raises:
        UsageError: a place that cannot be opened; nothing has been trained yet.
    """
    logs = RunLogs()
    try:
        for target in targets:
            logs.add(_opened(target, run))
        yield logs
    finally:
        logs.end()


def _opened(target: LogTarget, run: LoggedRun) -> _InBackground:
    name = target.name or target.opener
    try:
        return _InBackground(name, resolve(target.opener)(target.where, run))
    except VisionmillError:
        raise
    except Exception as error:
        said = redact(f"cannot log to {name}:{target.where}: {type(error).__name__}: {error}")
        raise UsageError(said, hint="mend the address, or train without --log") from error


class RunLogs:
    """The logs of one run."""

    def __init__(self) -> None:
        self._logs: list[_InBackground] = []
        self._state = STOPPED

    def add(self, log: _InBackground) -> None:
        """One more that hears what comes from now on."""
        self._logs.append(log)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Hand figures to every log; what is not finite is left out. Takes no time."""
        finite = {name: float(value) for name, value in figures.items() if abs(value) < float("inf")}
        for each in self._logs:
            each.log(step, finite)

    def finished(self) -> None:
        """The run has come to its end."""
        self._state = FINISHED

    def end(self) -> None:
        """Nothing more comes."""
        for each in self._logs:
            each.end(self._state)


class _InBackground:
    """A logger in a thread of its own: a place that is slow or gone costs points, never steps."""

    def __init__(self, name: str, opened: RunLogger) -> None:
        self._name, self._opened = name, opened
        self._lost, self._why = 0, "it is too slow"
        self._points: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(_WAITING)
        self._state = STOPPED
        self._thread = threading.Thread(target=self._work, name=f"log {name}", daemon=True)
        self._thread.start()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        try:
            self._points.put_nowait((step, figures))
        except queue.Full:
            self._lost += 1

    def end(self, state: str) -> None:
        self._state = state
        try:
            self._points.put(None, timeout=_LAST_WORDS_S)
        except queue.Full:
            self._lost += 1
        self._thread.join(_LAST_WORDS_S)
        if self._thread.is_alive():
            logger.warning("%s has not taken the end of the run yet and is not waited for", self._name)
        if self._lost:
            logger.warning("%s lost %d points: %s", self._name, self._lost, redact(self._why))

    def _work(self) -> None:
        while (point := self._points.get()) is not None:
            self._try(lambda point=point: self._opened.log(*point))  # type: ignore[misc]
        self._try(lambda: self._opened.end(self._state))

    def _try(self, call: Any) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - foreign libraries; a training does not end for its log
            self._lost, self._why = self._lost + 1, f"{type(error).__name__}: {error}"
