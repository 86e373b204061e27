"""Images per second of visionmill's workers that hold or share one GPU, against a bare loop on that GPU.

    python -m benchmarks.gpu [--models light heavy] [--images N] [--heavy-images N] [--batch 16] [--workers 1 2 4 8]
                             [--repeats 1] [--work .bench/gpu] [--json FILE]

*bare*: prepared batches in memory through the model and back to the host, one process, nothing else: what the GPU and
one driving thread can do. *feed*: decoding and preparing alone, one thread: what a processor can hand on. *visionmill
N*: inventory done, plan, N workers with 1/N of the GPU each, masks, rows and commits; the steady pace (see
``benchmarks.events``). All in float32 as torch sets it up (cuDNN may use TF32), eager.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.events import pace_of, read_events
from benchmarks.workload import (
    MODELS,
    LoggedPredictor,
    decode,
    ensure_images,
    load_predictor,
    source_folder,
    version_of,
)
from infra.machine import cpu_slots
from tasks.engine.job import JobSpec

_HELD_BATCHES = 4
_WARM_S, _BARE_S = 1.0, 4.0
_FACTORY = "benchmarks.gpu:predictor"


def predictor(job: JobSpec) -> LoggedPredictor:
    """What ``JobSpec.predictor_factory`` names: called in every worker."""
    return load_predictor(job.model_options["model"], Path(job.model_options["events"]), job.device)


def bare(model: str, paths: Sequence[Path], batch: int, work: Path) -> dict[str, Any]:
    """Images per second of the model alone, and of one thread that decodes and prepares."""
    loaded = load_predictor(model, work / "bare", "cuda")
    files = [path.read_bytes() for path in paths[: _HELD_BATCHES * batch]]
    began = time.perf_counter()
    prepared = [loaded.prepare(decode(data)) for data in files]
    feed = len(files) / (time.perf_counter() - began)
    batches = [prepared[at : at + batch] for at in range(0, len(prepared), batch)]
    for budget in (_WARM_S, _BARE_S):
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < budget:
            for each in batches:
                done += len(loaded.infer(each))
        pace = done / (time.perf_counter() - began)
    raws, began = loaded.infer(batches[0]), time.perf_counter()
    for raw in raws:
        loaded.finish(raw)
    return {"bare": pace, "feed": feed, "finish": len(raws) / (time.perf_counter() - began)}


def ours(model: str, paths: Sequence[Path], batch: int, workers: int, work: Path) -> dict[str, Any]:
    """The pace of workers that share the GPU."""
    from infra.ray_session import ray_session
    from infra.store import open_store
    from tasks.engine.pool import run_pool
    from tasks.ingest.inventory import take_inventory
    from tasks.ingest.plan import PlanOptions, open_plan

    shutil.rmtree(work, ignore_errors=True)
    loaded = load_predictor(model, work / "unused")
    version = version_of(loaded.weights)
    inventory = take_inventory(str(source_folder(work, paths)), folder=work / "inventory")
    output, events = open_store(str(work / "output")), work / "events"
    output.probe()
    items = max(batch, min(256, len(paths) // (8 * workers)))
    plan = open_plan(output, version, inventory, PlanOptions(shard_items=items))
    assert plan is not None  # the output is empty
    spec = JobSpec(
        model=MODELS[model].name,
        version=version,
        output_uri=output.uri,
        run_id="benchmark",
        device="cuda",
        batch_size=batch,
        model_options={"model": model, "events": str(events)},
        predictor_factory=_FACTORY,
    )
    with ray_session() as session:
        began = time.time()
        outcome = run_pool(plan, spec, session=session, workers=workers, num_gpus=1 / workers)
        ended = time.time()
    if outcome.error is not None or outcome.ok != len(paths):
        raise RuntimeError(f"{outcome.ok} of {len(paths)} images are ok: {outcome.error or outcome.error_sample}")
    pace = pace_of(read_events(events), began, ended)
    shutil.rmtree(work)
    return {
        "steady": pace.steady_per_s,
        "overall": pace.overall_per_s,
        "startup_s": pace.startup_s,
        "stage_seconds": dict(outcome.stage_seconds),
    }


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs; each printed as it ends."""
    import torch

    rows: list[dict[str, Any]] = []
    counts = {"light": given.images, "heavy": given.heavy_images}
    where = {"gpu": torch.cuda.get_device_name(0), "torch": torch.__version__, "cores": cpu_slots()}
    for _ in range(given.repeats):
        for model in given.models:
            paths = ensure_images(given.work.resolve() / "images", counts[model])
            row: dict[str, Any] = {"model": model, "batch": given.batch, "images": len(paths), **where}
            for workers in (0, *given.workers):
                found = (
                    ours(model, paths, given.batch, workers, given.work.resolve() / f"run-{workers}")
                    if workers
                    else bare(model, paths, given.batch, given.work.resolve())
                )
                rows.append({**row, "run": f"visionmill {workers}" if workers else "bare", **found})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["light", "heavy"], default=["light", "heavy"])
    parser.add_argument("--images", type=int, default=8000, help="of the light model")
    parser.add_argument("--heavy-images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path(".bench/gpu"))
    parser.add_argument("--json", type=Path, help="write all rows there, too")
    given = parser.parse_args()
    rows = measure(given)
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
