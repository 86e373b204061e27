"""Run one contender once: ``python -m benchmarks.contender NAME --model light --images 100 --work DIR``.

Prints one JSON line. ``benchmarks.throughput`` calls it in a process of its own for every run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.contenders import NAMES, Job, runner
from benchmarks.workload import MODELS, ensure_images


def main() -> None:
    """Parse, run, check that every image has its row, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--model", choices=sorted(MODELS), default="light")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path(".bench"))
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    job = Job(
        name=given.name,
        model=given.model,
        paths=tuple(ensure_images(given.cache.resolve(), given.images)),
        work=given.work.resolve(),
        cores=given.cores,
        graphs=given.cache.resolve() / "graphs",
    )
    extra = runner(given.name)(job)
    print(json.dumps({"rows": _count_rows(job.output), **extra}))


def _count_rows(output: Path) -> int:
    """Rows in the Parquet files that the contender left; plans and other tables do not count."""
    files = [path for path in output.rglob("*.parquet") if "_plans" not in path.parts]
    return sum(pq.read_metadata(path).num_rows for path in files)


if __name__ == "__main__":
    main()
