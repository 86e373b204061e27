"""How shall the model be run? Measured once at the start of a run, on the kind of worker that will do the work."""

from __future__ import annotations

import math
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from infra.outage import Patience
from infra.ray_session import RaySession
from infra.store import open_store
from modelkit.compile.decision import Decision, Policy, choose_execution
from tasks.engine.execution import compile_cache
from tasks.engine.job import JobSpec
from tasks.engine.predictors import load_predictor
from tasks.ingest.plan import Plan
from tasks.media.decoding import EntryReader, decode_entry
from tasks.records import Entry, Shard

MIN_ITEMS = 64  # fewer are done before a process that measures has started
SAMPLE_S = 60.0  # for reading those; an item may hang, or its store not answer
_SAMPLE_ENTRIES = 32  # of a shard, to see which shapes are frequent

T = TypeVar("T")


def choose_for_run(
    plan: Plan,
    job: JobSpec,
    policy: Policy,
    *,
    workers: int,
    session: RaySession | None,
    num_gpus: float,
) -> dict[str, Any]:
    """The decision for all workers of a plan, as JSON for ``JobSpec.execution``.

    Args:
        plan: what is left of it decides whether measuring and compiling repay.
        workers: that will share the work.
        session: where to measure; None measures in this process.
        num_gpus: of a worker.
    """
    committed = plan.committed()
    first = next(iter(plan.shards(committed)), None)
    left = plan.num_shards - len(committed)
    items = left * items_of(first, job.decode.stride) if first is not None else 0
    if first is None or policy == "off" or (policy == "auto" and items < MIN_ITEMS):
        reason = "switched off" if policy == "off" else f"{items} items do not repay measuring"
        return Decision(reason=reason).to_json()
    measure: Callable[..., dict[str, Any]] = _measure
    if session is None:
        return measure(job, first, items, workers, policy)
    import ray

    remote = ray.remote(_measure).options(
        num_cpus=1,
        num_gpus=num_gpus,
        max_retries=1,
        runtime_env={"env_vars": session.worker_environment(num_gpus=num_gpus)},
    )
    try:
        answer: dict[str, Any] = session.get(remote.remote(job, first, items, workers, policy))
    except ray.exceptions.WorkerCrashedError:  # by an item, maybe: the workers find out which
        return Decision(reason="the process that measured died").to_json()
    return answer


def items_of(shard: Shard, stride: int) -> int:
    """Items that a shard will give, about (videos of unknown length count as one full shard of frames)."""
    return sum(_frames(entry, stride) for entry in shard.entries)


def _frames(entry: Entry, stride: int) -> int:
    if entry.media == "image":
        return 1
    frames = 256 if entry.end_frame is None else entry.end_frame - entry.first_frame
    return math.ceil(frames / stride)


def _measure(job: JobSpec, shard: Shard, items: int, workers: int, policy: Policy) -> dict[str, Any]:
    if job.predictor_factory is not None:
        return Decision(reason="the job brings its own predictor").to_json()
    if job.carries_state and any(entry.media == "video" for entry in shard.entries):
        return Decision(reason="a model with a memory looks at clips frame by frame, eagerly").to_json()
    threads = torch.get_num_threads()
    if job.device == "cpu":
        torch.set_num_threads(1)
    try:
        predictor = load_predictor(job)
        found = _within(SAMPLE_S, lambda: [(predictor.piece(i), frames) for i, frames in _sample_images(job, shard)])
        if found is None:
            return Decision(reason=f"a sample of the items could not be read within {SAMPLE_S:.0f} s").to_json()
        if not found:
            return Decision(reason="no readable item to measure on").to_json()
        seen = [prepared.bucket for prepared, frames in found for _ in range(frames)]
        frequent, _ = Counter(seen).most_common(1)[0]
        sample = [prepared for prepared, _ in found if prepared.bucket == frequent][:1] * job.batch_size
        return choose_execution(
            predictor, sample, items, compile_cache(), workers=workers, policy=policy, seen=seen
        ).to_json()
    finally:
        torch.set_num_threads(threads)


def _within(seconds: float, function: Callable[[], T]) -> T | None:
    """What a function gives, or None if it has not ended by then: nobody watches here over an item that hangs."""
    answers: queue.SimpleQueue[T | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(function())
        except Exception as error:  # noqa: BLE001 - raised below, where somebody waits
            answers.put(error)

    threading.Thread(target=ask, name="sample", daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        return None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _sample_images(job: JobSpec, shard: Shard) -> Iterator[tuple[Any, int]]:
    """Images (H, W, 3) uint8 of a shard, and how many items each stands for: of a video its first frame."""
    patience = Patience(job.outage_s)
    reader = EntryReader(lambda root: open_store(root, patience=patience))
    step = max(1, len(shard.entries) // _SAMPLE_ENTRIES)
    for entry in shard.entries[::step][:_SAMPLE_ENTRIES]:
        for frame in decode_entry(entry, reader, job.decode):
            if frame.image_rgb_hwc_u8 is not None:
                yield frame.image_rgb_hwc_u8, _frames(entry, job.decode.stride)
            break
