"""visionmill through its own tasks: inventory, plan, pool; eager, or compiled as a run would choose it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.contenders import Job
from benchmarks.workload import MODELS, LoggedPredictor, decode, load_predictor, source_folder, version_of
from modelkit.compile.decision import Decision, apply, choose_execution
from tasks.engine.job import JobSpec

_FACTORY = "benchmarks.contenders.ours:predictor"


def run(job: Job) -> dict[str, Any]:
    """The steps of a run, on a local Ray with one worker per core."""
    from infra.ray_session import ray_session
    from infra.store import open_store
    from tasks.engine.pool import run_pool
    from tasks.ingest.inventory import take_inventory
    from tasks.ingest.plan import PlanOptions, open_plan

    decision = _decide(job) if job.name == "visionmill_compiled" else None
    with ray_session(num_cpus=job.cores) as session:
        inventory = take_inventory(str(source_folder(job.work, job.paths)), folder=job.work / "inventory")
        output = open_store(str(job.output))
        output.probe()  # as every run does; it makes the folder, too
        version = version_of(_weights(job))
        plan = open_plan(output, version, inventory, PlanOptions(shard_items=MODELS[job.model].shard_items))
        assert plan is not None  # the output is empty
        spec = JobSpec(
            model=MODELS[job.model].name,
            version=version,
            output_uri=str(job.output),
            run_id="benchmark",
            model_options={
                "model": job.model,
                "events": str(job.events),
                "decision": None if decision is None else decision.to_json(),
                "graphs": str(job.graphs),
            },
            predictor_factory=_FACTORY,
        )
        outcome = run_pool(plan, spec, session=session, workers=job.cores)
    if outcome.error is not None:
        raise outcome.error
    if not outcome.finished or outcome.ok != len(job.paths):
        raise RuntimeError(f"{outcome.ok} of {len(job.paths)} images are ok: {outcome.error_sample}")
    return {
        "decision": None if decision is None else decision.to_json(),
        "worker_start_s": outcome.worker_start_s,
        "stage_seconds": dict(outcome.stage_seconds),
        "peak_rss_bytes_of_one_worker": outcome.peak_rss_bytes,
    }


def predictor(job: JobSpec) -> LoggedPredictor:
    """What ``JobSpec.predictor_factory`` names: called in every worker."""
    options = job.model_options
    loaded = load_predictor(options["model"], Path(options["events"]))
    if options["decision"] is not None:
        problem = apply(loaded, Decision.from_json(options["decision"]), Path(options["graphs"]))
        if problem is not None:
            raise RuntimeError(f"this worker would stay eager: {problem}")
    return loaded


def _weights(job: Job) -> Any:
    """The record alone; a model in the driver would only cost memory."""
    import modelkit

    spec = MODELS[job.model]
    return modelkit.load(spec.name, **spec.options).weights


def _decide(job: Job) -> Decision:
    """Measure in a process of its own, which goes away again; its time belongs to the run's start-up."""
    arguments = [job.model, str(job.paths[0]), str(len(job.paths)), str(job.graphs), str(job.cores)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.contenders.ours", *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return Decision.from_json(json.loads(done.stdout.splitlines()[-1]))


def _main(model: str, path: str, images: str, graphs: str, cores: str) -> None:
    loaded = load_predictor(model, Path(graphs).parent / "calibration")
    sample = [loaded.prepare(decode(Path(path).read_bytes()))]
    decision = choose_execution(loaded, sample, int(images), graphs, workers=int(cores), policy="on")
    print(json.dumps(decision.to_json()))


if __name__ == "__main__":
    _main(*sys.argv[1:])
