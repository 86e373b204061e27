"""The pipeline: order, bounds in bytes, one way out for errors, no lock-up whatever breaks."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.engine import batches
from tasks.engine.batches import BatchLimits, forward
from tasks.engine.pipeline import BatchStage, JobCancelledError, Pipeline, Stage

KB = 1000


def blocks_of(size: int) -> Any:
    """Groups of so many neighbouring values."""
    return lambda at, value: (at // size * size, at // size * size + size)


def four_stages(
    *,
    fetch: Any = None,
    decode: Any = None,
    infer: Any = None,
    encode: Any = None,
    bucket_of: Any = None,
    batch: int = 4,
    size_bytes: int = KB,
    budget_bytes: int = 8 * KB,
    threads: int = 2,
    many: bool = False,
) -> Pipeline:
    """A pipeline of the worker's shape; every stage passes its value on unless told otherwise. ``many``: of each value
    come many, which share batches among themselves only."""

    def size_of(value: Any) -> int:
        return size_bytes

    return Pipeline(
        [
            Stage("fetch", fetch or (lambda v: v), size_of, budget_bytes, threads=threads, expect=size_of),
            Stage("decode", decode or (lambda v: [v]), size_of, budget_bytes, threads=threads, many=True),
            BatchStage(
                "infer",
                infer or (lambda values: values),
                size_of,
                budget_bytes,
                bucket_of=bucket_of or (lambda v: "one"),
                limit_of=lambda bucket: batch,
                group_of=lambda at, value: (at, at + 1) if many else blocks_of(4 * batch)(at, value),
            ),
            Stage("encode", encode or (lambda v: v), lambda v: 10, budget_bytes, threads=threads),
        ]
    )


@pytest.fixture
def pipelines() -> Iterator[Any]:
    """Builds pipelines that are closed when the test ends."""
    made: list[Pipeline] = []

    def build(**options: Any) -> Pipeline:
        made.append(four_stages(**options))
        return made[-1]

    yield build
    for pipeline in made:
        pipeline.close(timeout_s=2)


def results_of(pipeline: Pipeline, values: list[Any], **options: Any) -> list[Any]:
    with pipeline.submit(values, **options) as job:
        return job.results()


def test_results_come_in_the_order_of_the_values_however_long_each_takes(pipelines: Any) -> None:
    pipeline = pipelines(fetch=lambda v: time.sleep((v * 7 % 5) / 1000) or v, threads=4)
    assert results_of(pipeline, list(range(60))) == list(range(60))


def test_a_stage_may_make_many_of_one_or_none(pipelines: Any) -> None:
    pipeline = pipelines(decode=lambda v: ((v, n) for n in range(v)))
    assert results_of(pipeline, [3, 0, 2]) == [(3, 0), (3, 1), (3, 2), (2, 0), (2, 1)]


def test_batches_hold_one_bucket_and_never_more_than_its_limit(pipelines: Any) -> None:
    seen: list[list[int]] = []
    pipeline = pipelines(
        infer=lambda values: seen.append(list(values)) or values,
        bucket_of=lambda v: v % 3,
        batch=4,
        budget_bytes=99 * KB,
    )
    assert results_of(pipeline, list(range(50))) == list(range(50))
    assert all(len(batch) <= 4 and len({v % 3 for v in batch}) == 1 for batch in seen)
    assert max(map(len, seen)) == 4


def test_values_without_a_bucket_pass_the_model_by(pipelines: Any) -> None:
    seen: list[int] = []
    pipeline = pipelines(
        infer=lambda values: seen.extend(values) or [v * 10 for v in values],
        bucket_of=lambda v: None if v % 2 else "even",
    )
    assert results_of(pipeline, [0, 1, 2, 3, 4]) == [0, 1, 20, 3, 40]
    assert sorted(seen) == [0, 2, 4]


def test_infer_runs_on_one_thread_only(pipelines: Any) -> None:
    threads: set[str] = set()
    pipeline = pipelines(infer=lambda values: threads.add(threading.current_thread().name) or values, threads=4)
    jobs = [pipeline.submit(range(40)) for _ in range(3)]
    for job in jobs:
        assert job.results() == list(range(40))
        job.close()
    assert threads == {"infer-0"}


def test_legs_overlap_instead_of_adding_up(pipelines: Any) -> None:
    def slow(v: Any) -> Any:
        time.sleep(0.01)
        return v

    pipeline = pipelines(fetch=slow, decode=lambda v: [slow(v)], infer=slow, encode=slow, batch=1, threads=1)
    start = time.monotonic()
    results_of(pipeline, list(range(30)))
    assert time.monotonic() - start < 0.8  # one after the other would be 1.2 s


def test_bytes_in_flight_stay_below_the_bound_when_a_later_leg_is_slow(pipelines: Any) -> None:
    pipeline = pipelines(encode=lambda v: time.sleep(0.005) or v, budget_bytes=5 * KB, threads=4, batch=1)
    worst = 0
    with pipeline.submit(range(100)) as job:
        while job.num_done < 100:
            worst = max(worst, pipeline.bytes_in_flight)
            time.sleep(0.002)
        assert job.results() == list(range(100))
    assert 5 * KB < worst <= pipeline.peak_bytes <= 3 * 5 * KB + 100 * 10
    assert pipeline.bytes_in_flight == 0
    assert pipeline.clocks["infer"].blocked_s > 0.1  # and the clocks say who waits for whom
    assert pipeline.clocks["encode"].busy_s > 0.4


def test_an_item_larger_than_the_budget_passes_alone(pipelines: Any) -> None:
    pipeline = pipelines(size_bytes=50 * KB, budget_bytes=8 * KB, threads=4, batch=1)
    assert results_of(pipeline, list(range(10))) == list(range(10))
    assert pipeline.peak_bytes <= 3 * 50 * KB + 10 * 10


def test_bytes_that_only_wait_for_company_stop_nobody(pipelines: Any) -> None:
    pipeline = pipelines(bucket_of=lambda v: v, batch=64, budget_bytes=3 * KB)  # every item in a bucket of its own
    start = time.monotonic()
    assert results_of(pipeline, list(range(40))) == list(range(40))
    assert time.monotonic() - start < 1.0
    assert pipeline.bytes_in_flight == 0


@pytest.mark.parametrize("many", [False, True], ids=["images", "frames"])
def test_who_shares_a_batch_depends_on_places_and_never_on_timing(pipelines: Any, many: bool) -> None:
    """The last digits of a result depend on its company; so company must be the same when a shard is done again."""

    def companies(seed: int, budget_bytes: int) -> set[tuple[Any, ...]]:
        chance, seen = random.Random(seed), []

        def dawdle(v: Any) -> Any:
            time.sleep(chance.random() / 200)
            return v

        def frames(v: int) -> Iterator[tuple[int, int]]:
            yield from ((v, dawdle(n)) for n in range(v % 7 + 1))

        pipeline = pipelines(
            fetch=dawdle,
            decode=frames if many else lambda v: [dawdle((v, 0))],
            infer=lambda values: seen.append(tuple(values)) or values,
            bucket_of=lambda v: None if v[0] % 5 == 4 else (v[0] * v[0] + v[1] // 5) % 3,
            batch=4,
            budget_bytes=budget_bytes,
            threads=3,
            many=many,
        )
        with pipeline.submit(range(40)) as one, pipeline.submit(range(40, 60)) as other:
            one.results()
            one.close()  # younger jobs wait outside while results fill the budget
            other.results()
        return set(seen)

    undisturbed = companies(0, 99 * KB)
    assert max(map(len, undisturbed)) == 4
    for seed in range(1, 5):
        assert companies(seed, KB if seed % 2 else 99 * KB) == undisturbed


def test_where_a_batch_does_not_fit_the_same_items_stay_together_whenever_that_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "free_memory", lambda: None)  # it looks through all that the tests before have left

    def companies(limits: BatchLimits, sizes: list[int]) -> list[tuple[int, ...]]:
        seen: list[tuple[int, ...]] = []

        def model(values: list[int]) -> list[int]:
            if len(values) > 2:
                raise MemoryError("out of memory")
            seen.append(tuple(values))
            return values

        for size in sizes:
            assert forward(model, list(range(size)), "bucket", limits) == list(range(size))
        return seen

    fresh, informed = BatchLimits(10), BatchLimits(10)
    companies(informed, [6, 10, 3])
    assert informed("bucket") == 2
    for size in range(1, 11):
        assert companies(BatchLimits(10), [size]) == companies(informed, [size]) == companies(fresh, [size])


def test_younger_jobs_wait_outside_while_results_fill_the_budget(pipelines: Any) -> None:
    pipeline = pipelines(budget_bytes=1 * KB)  # results are 10 bytes each: 100 of them fill it
    with pipeline.submit(range(150)) as first, pipeline.submit(range(50)) as second:
        assert len(first.results()) == 150
        time.sleep(0.1)
        assert second.num_done == 0
        first.close()
        assert len(second.results()) == 50


def test_one_by_one_never_has_two_values_on_the_way(pipelines: Any) -> None:
    inside, most = set(), []

    def enter(v: int) -> int:
        inside.add(v)
        most.append(len(inside))
        return v

    pipeline = pipelines(fetch=enter, encode=lambda v: inside.discard(v) or v, threads=4, batch=16)
    assert results_of(pipeline, list(range(20)), one_by_one=True) == list(range(20))
    assert max(most) == 1


@pytest.mark.parametrize("stage", ["fetch", "decode", "infer", "encode"])
def test_an_error_in_any_stage_comes_out_once_and_costs_no_other_job(pipelines: Any, stage: str) -> None:
    def broken(v: Any) -> Any:
        values = v if isinstance(v, list) else [v]
        if "bad" in values:
            raise OSError(f"{stage} broke")
        return [v] if stage == "decode" else v

    pipeline = pipelines(**{stage: broken}, batch=1, threads=3)
    with pipeline.submit(range(30)) as before, pipeline.submit(["bad" if i == 7 else i for i in range(30)]) as job:
        with pipeline.submit(range(30)) as after:
            with pytest.raises(OSError, match=f"{stage} broke"):
                job.results()
            assert before.results() == after.results() == list(range(30))
    assert pipeline.bytes_in_flight == 0


def test_cancelling_frees_the_bytes_and_the_thread_that_waits(pipelines: Any) -> None:
    gate = threading.Event()
    pipeline = pipelines(encode=lambda v: gate.wait(5) and v)
    job = pipeline.submit(range(100))
    time.sleep(0.05)
    threading.Timer(0.05, gate.set).start()
    job.cancel()
    with pytest.raises(JobCancelledError):
        job.results()
    job.close()
    assert pipeline.bytes_in_flight == 0
    assert results_of(pipeline, [1, 2]) == [1, 2]


def test_closing_the_pipeline_ends_every_wait_and_every_thread(pipelines: Any) -> None:
    pipeline = pipelines(infer=lambda values: time.sleep(0.02) or values, batch=1)
    job = pipeline.submit(range(1000))
    time.sleep(0.05)
    pipeline.close()
    with pytest.raises(JobCancelledError):
        job.results()
    assert not [t for t in pipeline._threads if t.is_alive()]


faults = st.sampled_from(["ok", "fetch", "decode", "infer", "encode", "none", "many", "bypass", "huge"])


@settings(max_examples=60, deadline=None)
@given(
    jobs=st.lists(st.lists(faults, max_size=12), min_size=1, max_size=4),
    budget_bytes=st.sampled_from([1, KB, 3 * KB, 50 * KB]),
    threads=st.integers(1, 3),
    batch=st.integers(1, 5),
)
def test_whatever_breaks_where_every_job_ends_and_every_byte_comes_back(
    jobs: list[list[str]], budget_bytes: int, threads: int, batch: int
) -> None:
    def check(stage: str, kind: str) -> None:
        if kind == stage:
            raise ValueError(stage)

    def fetch(value: tuple[str, int]) -> tuple[str, int]:
        check("fetch", value[0])
        return value

    def decode(value: tuple[str, int]) -> Iterator[tuple[str, int]]:
        check("decode", value[0])
        yield from [value] * {"none": 0, "many": 3}.get(value[0], 1)

    def infer(values: list[tuple[str, int]]) -> list[tuple[str, int]]:
        for value in values:
            check("infer", value[0])
        return values

    def encode(value: tuple[str, int]) -> tuple[str, int]:
        check("encode", value[0])
        return value

    pipeline = Pipeline(
        [
            Stage("fetch", fetch, lambda v: KB, budget_bytes, threads=threads, expect=lambda v: KB),
            Stage(
                "decode", decode, lambda v: 90 * KB if v[0] == "huge" else KB, budget_bytes, threads=threads, many=True
            ),
            BatchStage(
                "infer",
                infer,
                lambda v: KB,
                budget_bytes,
                bucket_of=lambda v: None if v[0] == "bypass" else v[1] % 2,
                limit_of=lambda bucket: batch,
                group_of=blocks_of(3),
            ),
            Stage("encode", encode, lambda v: 5, budget_bytes, threads=threads),
        ]
    )
    try:
        running = [pipeline.submit([(kind, i) for i, kind in enumerate(kinds)]) for kinds in jobs]
        outcomes: list[list[Any] | None] = []
        for job in running:
            try:
                outcomes.append(job.results())
            except ValueError:
                outcomes.append(None)
            job.close()
        assert pipeline.bytes_in_flight == 0
    finally:
        pipeline.close()
    broken = {"fetch", "decode", "infer", "encode"}
    for kinds, outcome in zip(jobs, outcomes, strict=True):
        wanted = [(k, i) for i, k in enumerate(kinds) for _ in range({"none": 0, "many": 3}.get(k, 1))]
        if not broken & set(kinds) and not any("infer" in other for other in jobs):
            assert outcome == wanted
        elif broken & set(kinds):
            assert outcome is None
