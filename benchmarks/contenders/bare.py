"""The yardstick: one single-threaded process per core, nothing between the images and the model."""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from benchmarks.contenders import Job
from benchmarks.workload import decode, load_predictor, look

_HELD_IMAGES = 32  # of each process; gone through again and again, for memory is not what is measured


def run(job: Job) -> dict[str, Any]:
    """As many inferences as there are images, spread over the cores."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(job.cores)
    shares = [job.paths[core :: job.cores] for core in range(job.cores)]
    processes = [
        context.Process(target=_loop, args=(job.name, job.model, share, job.events, barrier)) for share in shares
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"a process of {job.name} ended with {[process.exitcode for process in processes]}")
    return {}


def _loop(name: str, model: str, paths: tuple[Path, ...], events: Path, barrier: Barrier) -> None:
    predictor = load_predictor(model, events)
    files = [path.read_bytes() for path in paths[:_HELD_IMAGES]]
    prepared = [predictor.prepare(decode(data)) for data in files] if name == "bare" else []
    barrier.wait()  # no process may have the machine to itself while the others load
    for index in range(len(paths)):
        if name == "bare":
            predictor.infer([prepared[index % len(prepared)]])
        else:
            look(predictor, paths[index].name, files[index % len(files)])
