"""Daft, as its documentation shows batch inference: download, a class that holds the model, write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.contenders import Job
from benchmarks.workload import MODELS, load_predictor, look, table_of
from tasks.output.schema import schema_named

_BATCH = 16


def run(job: Job) -> dict[str, Any]:
    """One process with the model per core, on Daft's native runner."""
    for variable in ("DO_NOT_TRACK", "SCARF_NO_ANALYTICS"):
        os.environ[variable] = "true"
    os.environ["DAFT_ANALYTICS_ENABLED"] = "0"
    os.environ["DAFT_PROGRESS_BAR"] = "0"
    import daft

    fields = pa.struct(list(schema_named("segments", "segments.v1")))

    @daft.cls(max_concurrency=job.cores, use_process=True)
    class Segment:
        """Holds the model in a process of its own."""

        def __init__(self, model: str, events: Path) -> None:
            self._predictor = load_predictor(model, events)

        @daft.method.batch(
            return_dtype=daft.DataType.from_arrow_type(fields),
            unnest=True,
            batch_size=min(_BATCH, MODELS[job.model].shard_items),
        )
        def rows(self, path: daft.Series, data: daft.Series) -> daft.Series:
            pairs = zip(path.to_pylist(), data.to_pylist(), strict=True)
            rows = [look(self._predictor, uri, content) for uri, content in pairs]
            table = table_of(rows, self._predictor.weights, "daft").combine_chunks()
            return daft.Series.from_arrow(pa.array(table.to_struct_array().combine_chunks()))

    frame = daft.from_pydict({"path": [str(path) for path in job.paths]})
    frame = frame.into_partitions(-(-len(job.paths) // MODELS[job.model].shard_items))
    frame = frame.with_column("data", frame["path"].download())
    segmenter: Any = Segment(job.model, job.events)  # called with expressions, its method is handed series
    frame = frame.select(segmenter.rows(frame["path"], frame["data"]))
    frame.write_parquet(str(job.output), compression="zstd")
    return {}
