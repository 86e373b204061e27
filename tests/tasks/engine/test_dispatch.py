"""The dispatcher against simulated workers: every shard ends once, the guilty are named, the innocent lose nothing."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from infra.errors import AccessDenied, CircuitOpen, StoreUnavailable
from infra.retry import RetryPolicy
from tasks.engine.dispatch import Dispatcher, DispatchPolicy, Loss
from tasks.engine.heartbeat import Mark
from tasks.engine.job import Assignment
from tasks.records import Entry, Receipt, Shard

QUICK = DispatchPolicy(backoff=RetryPolicy(first_delay_s=1.0, max_delay_s=4.0))


def shards_of(count: int, items: int = 8) -> list[Shard]:
    entries = [Entry(f"/in/{i:04d}.jpg", "1", 100, "image") for i in range(count * items)]
    return [
        Shard(f"s{n}", 1, n, tuple(entries[n * items : (n + 1) * items]), float(items + n % 3)) for n in range(count)
    ]


def receipt_for(assignment: Assignment) -> Receipt:
    n, bad = len(assignment.shard.entries), len(assignment.quarantined)
    return Receipt(assignment.shard.shard_id, assignment.attempt_id, "committed", n, n - bad, 0, bad, 0, 0)


class Simulation:
    """Workers that take a second a shard; ``fate(worker, assignment)`` may name a loss or an error instead."""

    def __init__(self, dispatcher: Dispatcher, workers: int, fate: Callable[[Assignment], Loss | Exception | None]):
        self.dispatcher, self.fate, self.now = dispatcher, fate, 0.0
        self.names = [f"w{i}" for i in range(workers)]
        self.new_name = itertools.count(workers)
        self.committed: list[Assignment] = []
        self.most_alone_violations = 0

    def run(self, limit: int = 20_000) -> None:
        for _ in range(limit):
            for worker in self.names:
                while self.dispatcher.next(worker, self.now) is not None:
                    pass
                self.check_alone(worker)
            if self.dispatcher.finished:
                return
            self.now += 1.0
            for worker in list(self.names):
                self.finish_oldest(worker)
        raise AssertionError("the dispatcher does not come to an end")

    def check_alone(self, worker: str) -> None:
        running = self.dispatcher.running(worker)
        if any(a.kind == "probe" for a in running):
            assert len(running) == 1

    def finish_oldest(self, worker: str) -> None:
        running = self.dispatcher.running(worker)
        if not running:
            return
        assignment, outcome = running[0], self.fate(running[0])
        if isinstance(outcome, Loss):
            self.dispatcher.lost(worker, outcome, self.now)
            self.names[self.names.index(worker)] = f"w{next(self.new_name)}"
        elif isinstance(outcome, Exception):
            self.dispatcher.failed(worker, assignment.attempt_id, outcome, self.now)
        elif assignment.kind == "probe":
            self.dispatcher.survived(worker, assignment.attempt_id, self.now)
        else:
            self.committed.append(assignment)
            self.dispatcher.completed(worker, assignment.attempt_id, receipt_for(assignment), self.now)


def touched(assignment: Assignment) -> set[str]:
    """Uris that a worker would really work on."""
    left_alone = {q.entry for q in assignment.quarantined}
    return {entry.uri for index, entry in assignment.entries() if index not in left_alone}


def poison(*uris: str, hints: bool = False, **loss: object) -> Callable[[Assignment], Loss | None]:
    def fate(assignment: Assignment) -> Loss | None:
        hit = sorted(touched(assignment) & set(uris))
        if not hit:
            return None
        index = [entry.uri for entry in assignment.shard.entries].index(hit[0])
        suspects = (Mark(assignment.shard.shard_id, index, 0),) if hints else ()
        return Loss("died of SIGABRT", suspects=suspects, stage="decode", **loss)  # type: ignore[arg-type]

    return fate


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_every_shard_is_committed_once_and_the_largest_start_first(workers: int) -> None:
    shards = shards_of(20)
    simulation = Simulation(Dispatcher(iter(shards)), workers, lambda a: None)
    simulation.run()
    assert sorted(a.shard.shard_id for a in simulation.committed) == sorted(s.shard_id for s in shards)
    works = [a.shard.work for a in simulation.committed]
    assert works[0] == max(works)
    assert works[-1] == min(works)
    assert simulation.now == -(-20 // workers)


def test_a_worker_gets_the_next_shard_while_it_has_one_but_never_a_third() -> None:
    dispatcher = Dispatcher(iter(shards_of(5)))
    assert dispatcher.next("w", 0.0) is not None
    assert dispatcher.next("w", 0.0) is not None
    assert dispatcher.next("w", 0.0) is None


@pytest.mark.parametrize("hints", [True, False])
def test_a_poisonous_item_is_quarantined_and_its_shard_is_carried_out_whole(hints: bool) -> None:
    dispatcher = Dispatcher(iter(shards_of(6)), QUICK)
    simulation = Simulation(dispatcher, 2, poison("/in/0019.jpg", hints=hints))
    simulation.run()
    assert len(simulation.committed) == 6
    assert [uri for uri, _ in dispatcher.quarantined] == ["/in/0019.jpg"]
    failure = dispatcher.quarantined[0][1]
    assert (failure.stage, failure.error_type) == ("decode", "WorkerCrash")
    assert "SIGABRT" in failure.error
    (shard,) = [a for a in simulation.committed if a.quarantined]
    assert len(touched(shard)) == 7
    deaths = [a for a in dispatcher.attempts if (a.end, a.kind, a.shard_id) == ("died", "process", "s2")]
    assert len(deaths) == 2


@hypothesis_settings(max_examples=40, deadline=None)
@given(guilty=st.sets(st.integers(0, 47), max_size=5), workers=st.integers(1, 4), hints=st.booleans())
def test_any_set_of_poisonous_items_is_named_exactly(guilty: set[int], workers: int, hints: bool) -> None:
    uris = {f"/in/{i:04d}.jpg" for i in guilty}
    policy = DispatchPolicy(backoff=RetryPolicy(first_delay_s=1.0), max_failures_in_a_row=1000)
    dispatcher = Dispatcher(iter(shards_of(6)), policy)
    simulation = Simulation(dispatcher, workers, poison(*uris, hints=hints))
    simulation.run()
    assert dispatcher.error is None
    assert {uri for uri, _ in dispatcher.quarantined} == uris
    assert len(simulation.committed) == 6


def test_an_item_that_hangs_is_named_as_such() -> None:
    dispatcher = Dispatcher(iter(shards_of(3)), QUICK)
    Simulation(dispatcher, 2, poison("/in/0009.jpg", hung=True)).run()
    assert [(uri, f.error_type) for uri, f in dispatcher.quarantined] == [("/in/0009.jpg", "WorkerHang")]


def test_the_shard_that_was_only_prefetched_is_not_blamed_for_its_neighbours_death() -> None:
    dispatcher = Dispatcher(iter(shards_of(2)), QUICK)
    first, second = dispatcher.next("w0", 0.0), dispatcher.next("w0", 0.0)
    assert first is not None
    assert second is not None
    dispatcher.lost("w0", Loss("died", suspects=(Mark(first.shard.shard_id, 3, 0),)), 1.0)
    ends = {a.shard_id: a.end for a in dispatcher.attempts}
    assert ends == {first.shard.shard_id: "died", second.shard.shard_id: "bystander"}
    again = dispatcher.next("w1", 100.0)
    assert again is not None
    assert again.shard.shard_id == second.shard.shard_id
    assert again.attempt == 1


def test_workers_that_die_at_random_cost_no_row_and_blame_nobody() -> None:
    chance = random.Random(7)
    dispatcher = Dispatcher(iter(shards_of(40)), QUICK)

    def fate(assignment: Assignment) -> Loss | None:
        marks = tuple(Mark(assignment.shard.shard_id, i, 0) for i in range(3))
        return Loss("died of SIGKILL", suspects=marks) if chance.random() < 0.15 else None

    simulation = Simulation(dispatcher, 3, fate)
    simulation.run()
    assert dispatcher.error is None
    assert len({a.shard.shard_id for a in simulation.committed}) == len(simulation.committed) == 40
    assert not dispatcher.quarantined


def test_a_machine_on_which_everything_dies_opens_the_circuit_instead_of_quarantining_the_data() -> None:
    dispatcher = Dispatcher(iter(shards_of(50)), QUICK)
    simulation = Simulation(dispatcher, 2, lambda a: Loss("died of SIGSEGV", stage="infer"))
    simulation.run()
    assert isinstance(dispatcher.error, CircuitOpen)
    assert "SIGSEGV" in dispatcher.error.message
    assert not simulation.committed
    assert not dispatcher.quarantined


def test_a_shard_that_only_dies_in_company_is_carried_out_one_by_one() -> None:
    def fate(assignment: Assignment) -> Loss | None:
        crowded = {"/in/0001.jpg", "/in/0006.jpg"} <= touched(assignment) and not assignment.one_by_one
        return Loss("died of SIGKILL") if crowded and assignment.kind == "process" else None

    dispatcher = Dispatcher(iter(shards_of(2)), QUICK)
    simulation = Simulation(dispatcher, 2, fate)
    simulation.run()
    assert len(simulation.committed) == 2
    assert not dispatcher.quarantined


def test_a_transient_error_is_tried_again_after_a_while() -> None:
    failures = iter([StoreUnavailable("503"), StoreUnavailable("503")])
    dispatcher = Dispatcher(iter(shards_of(3)), QUICK)
    simulation = Simulation(dispatcher, 1, lambda a: next(failures, None) if a.shard.shard_id == "s1" else None)
    simulation.run()
    assert len(simulation.committed) == 3
    assert [a.end for a in dispatcher.attempts if a.shard_id == "s1"] == ["error", "error", "committed"]


def test_an_error_that_stays_stops_the_run_and_names_the_shard() -> None:
    dispatcher = Dispatcher(iter(shards_of(3)), QUICK)
    simulation = Simulation(dispatcher, 1, lambda a: RuntimeError("odd") if a.shard.shard_id == "s2" else None)
    simulation.run()
    assert isinstance(dispatcher.error, CircuitOpen)
    assert "s2" in dispatcher.error.message
    assert "RuntimeError: odd" in dispatcher.error.message


def test_an_error_of_the_whole_job_stops_at_once() -> None:
    dispatcher = Dispatcher(iter(shards_of(9)), QUICK)
    simulation = Simulation(dispatcher, 2, lambda a: AccessDenied("no key"))
    simulation.run()
    assert isinstance(dispatcher.error, AccessDenied)
    assert not simulation.committed


def test_stopping_lets_running_shards_finish_and_starts_no_other() -> None:
    dispatcher = Dispatcher(iter(shards_of(9)), QUICK)
    simulation = Simulation(dispatcher, 2, lambda a: None)
    for worker in simulation.names:
        dispatcher.next(worker, 0.0)
    dispatcher.stop()
    assert not dispatcher.finished
    simulation.run()
    assert len(simulation.committed) == 2
    assert dispatcher.has_work


def chained(*lengths: int) -> list[Shard]:
    """Clips of so many shards each, one after another as in a plan; between them stands a shard of images."""
    shards: list[Shard] = []
    for clip, length in enumerate(lengths):
        for piece in range(length):
            entry = Entry(f"/in/{clip}.mp4", "1", 100, "video", first_frame=10 * piece, end_frame=10 * piece + 10)
            before = shards[-1].shard_id if piece else None
            shards.append(Shard(f"c{clip}-{piece}", 1, len(shards), (entry,), 10.0, continues=before))
        shards.append(Shard(f"images{clip}", 1, len(shards), (Entry(f"/in/{clip}.x.jpg", "1", 1, "image"),), 1.0))
    return shards


@pytest.mark.parametrize("workers", [1, 3])
def test_a_shard_that_goes_on_with_a_clip_waits_for_the_one_before_and_others_go_on(workers: int) -> None:
    shards = chained(4, 1, 6)
    simulation = Simulation(Dispatcher(iter(shards), QUICK, ordered=True), workers, lambda a: None)
    simulation.run()
    order = [assignment.shard.shard_id for assignment in simulation.committed]
    assert sorted(order) == sorted(shard.shard_id for shard in shards)
    for shard in shards:
        if shard.continues is not None:
            assert order.index(shard.continues) < order.index(shard.shard_id)
    if workers == 3:
        assert simulation.now == 6, "the longest clip decides: the rest is done beside it"


def test_order_is_kept_when_shards_before_fail_or_lose_their_worker() -> None:
    failures = {"c0-1": [Loss("died"), StoreUnavailable("x")], "c1-0": [Loss("died"), Loss("died")]}

    def fate(assignment: Assignment) -> Loss | Exception | None:
        left = failures.get(assignment.shard.shard_id)
        return left.pop(0) if left else None

    shards = chained(3, 3)
    simulation = Simulation(Dispatcher(iter(shards), QUICK, ordered=True), 2, fate)
    simulation.run()
    order = [assignment.shard.shard_id for assignment in simulation.committed]
    assert sorted(order) == sorted(shard.shard_id for shard in shards)
    assert all(order.index(s.continues) < order.index(s.shard_id) for s in shards if s.continues is not None)


def test_models_without_a_memory_take_the_pieces_of_a_clip_at_once() -> None:
    simulation = Simulation(Dispatcher(iter(chained(6)), QUICK), 7, lambda a: None)
    simulation.run()
    assert simulation.now <= 2, "not one by one: that would take six"


def test_no_more_workers_are_asked_for_than_clips_can_use() -> None:
    dispatcher = Dispatcher(iter(chained(5)[:-1]), QUICK, ordered=True)
    assert dispatcher.could_run == 1
    assignment = dispatcher.next("w", 0.0)
    assert assignment is not None
    assert dispatcher.next("w", 0.0) is None
    assert dispatcher.next("other", 0.0) is None
    assert (dispatcher.could_run, dispatcher.has_work, dispatcher.finished) == (1, False, False)
    dispatcher.completed("w", assignment.attempt_id, receipt_for(assignment), 1.0)
    assert (dispatcher.could_run, dispatcher.has_work) == (1, True)
    assert Dispatcher(iter(shards_of(100)), QUICK, ordered=True).could_run > 64


def test_a_resumed_plan_waits_only_for_what_is_not_committed() -> None:
    dispatcher = Dispatcher(iter(chained(4)[2:]), QUICK, ordered=True)
    first = dispatcher.next("w", 0.0)
    assert first is not None
    assert first.shard.shard_id == "c0-2"
