"""The programs that are compared. Each ``run(job)`` carries the same workload out in its own way.

bare        one single-threaded process per core that calls the model on prepared images; no I/O, no masks, no rows
loop        the same with decoding, masks and rows, from bytes in memory; no I/O
visionmill  inventory, plan, pool of workers, commits
ray_data    a Ray Data pipeline as its documentation shows it: read, decode, actors with the model, write
daft        a Daft pipeline as its documentation shows it: download, a class with the model, write
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MODULES = {
    "bare": "benchmarks.contenders.bare",
    "loop": "benchmarks.contenders.bare",
    "visionmill": "benchmarks.contenders.ours",
    "visionmill_compiled": "benchmarks.contenders.ours",
    "ray_data": "benchmarks.contenders.ray_data",
    "daft": "benchmarks.contenders.daft_pipeline",
}
NAMES = tuple(_MODULES)


@dataclass(frozen=True, slots=True)
class Job:
    """One run of one contender.

    Args:
        name: the contender.
        model: key of ``benchmarks.workload.MODELS``.
        paths: the images.
        work: scratch folder of this run; ``events`` and ``output`` lie in it.
        cores: how many processes may hold the model.
        graphs: folder for compiled graphs, kept between runs.
    """

    name: str
    model: str
    paths: tuple[Path, ...]
    work: Path
    cores: int
    graphs: Path

    @property
    def events(self) -> Path:
        """Where the moments are logged."""
        return self.work / "events"

    @property
    def output(self) -> Path:
        """Where Parquet goes."""
        return self.work / "output"


def runner(name: str) -> Callable[[Job], dict[str, Any]]:
    """The ``run`` of a contender; what it returns goes into the results as it is."""
    run: Callable[[Job], dict[str, Any]] = importlib.import_module(_MODULES[name]).run
    return run
