"""Ray Data, as its documentation shows batch inference: read, decode in tasks, a pool of actors, write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.contenders import Job
from benchmarks.workload import MODELS, decode, load_predictor, row_of, table_of

_BATCH = 16  # images that an actor is handed at once; each goes through the model alone


class _Segment:
    """Holds the model in an actor."""

    def __init__(self, model: str, events: Path) -> None:
        self._predictor = load_predictor(model, events)

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        predictor, rows = self._predictor, []
        for uri, size_bytes, image in zip(batch["path"], batch["size_bytes"], batch["image"], strict=True):
            raw = predictor.infer([predictor.prepare(np.ascontiguousarray(image))])[0]
            rows.append(row_of(str(uri), int(size_bytes), predictor.finish(raw)))
        return table_of(rows, predictor.weights, "ray-data")


def _decode(row: dict[str, Any]) -> dict[str, Any]:
    return {"path": row["path"], "size_bytes": len(row["bytes"]), "image": decode(row["bytes"])}


def run(job: Job) -> dict[str, Any]:
    """One actor per core; decoding tasks share the cores with them (half a processor each is what Ray is told)."""
    from infra.ray_session import ray_session

    with ray_session(num_cpus=job.cores, object_store_bytes=2 << 30):
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        blocks = -(-len(job.paths) // MODELS[job.model].shard_items)
        dataset = ray.data.read_binary_files(
            [str(path) for path in job.paths], include_paths=True, override_num_blocks=blocks
        )
        dataset = dataset.map(_decode)
        dataset = dataset.map_batches(
            _Segment,
            fn_constructor_args=(job.model, job.events),
            batch_size=min(_BATCH, MODELS[job.model].shard_items),
            concurrency=job.cores,
            num_cpus=0.5,  # with 1 the actors would hold every processor and no task could ever read
        )
        dataset.write_parquet(str(job.output), compression="zstd")
    return {}
