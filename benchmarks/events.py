"""When images were done: written by whoever runs a model, read afterwards; one rule for every contender.

*Steady state*: images per second between the moments at which 10 % and 90 % of the images had left the model, over all
processes. Start-up, first-call costs and the ragged end lie outside. *Overall*: all images by the whole time from the
start of the program to its end, in which everything is written.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FIRST_SHARE, LAST_SHARE = 0.1, 0.9


class ItemLog:
    """Appends a line for every call of the model to a file of its own process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._file = -1
        self._pid = -1

    def note(self, images: int) -> None:
        """So many images are through, now."""
        if self._pid != os.getpid():  # after a fork, or the first time
            self._pid = os.getpid()
            path = self._folder / f"{self._pid}.log"
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(self._file, f"{time.time():.6f} {images}\n".encode())


@dataclass(frozen=True, slots=True)
class Pace:
    """What the logs of one run say. Times in seconds.

    Args:
        images: through the model.
        steady_per_s: images per second in steady state; None with too few moments to tell.
        overall_per_s: images by the time from start to end.
        startup_s: from the start of the program to the first image through the model.
        tail_s: from the last image through the model to the end of the program.
    """

    images: int
    steady_per_s: float | None
    overall_per_s: float
    startup_s: float
    tail_s: float


def read_events(folder: Path) -> list[tuple[float, int]]:
    """(moment, images) of all processes, by time."""
    lines = [line.split() for path in folder.glob("*.log") for line in path.read_text().splitlines()]
    return sorted((float(moment), int(images)) for moment, images in lines)


def pace_of(events: Sequence[tuple[float, int]], began: float, ended: float) -> Pace:
    """The figures of one run.

    Raises:
        ValueError: when nothing went through the model.
    """
    if not events:
        raise ValueError("no image went through the model")
    total = sum(images for _, images in events)
    return Pace(
        images=total,
        steady_per_s=_steady(events, total),
        overall_per_s=total / (ended - began),
        startup_s=events[0][0] - began,
        tail_s=ended - events[-1][0],
    )


def _steady(events: Sequence[tuple[float, int]], total: int) -> float | None:
    done = 0
    begin: tuple[float, int] | None = None
    for moment, images in events:
        done += images
        if begin is None and done >= FIRST_SHARE * total:
            begin = (moment, done)
        elif begin is not None and done >= LAST_SHARE * total:
            return (done - begin[1]) / (moment - begin[0]) if moment > begin[0] else None
    return None
