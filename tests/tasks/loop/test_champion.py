"""The champion pointer: one winner, a reason for every move, and nothing that waits needs a process."""

from __future__ import annotations

import datetime as dt
import threading
from dataclasses import replace

import pytest

from infra.errors import PromotionRefused, StoreError, UsageError
from infra.store import Store, open_store
from tasks.loop.champion import (
    CHAMPION_KEY,
    GATE,
    CandidateRecord,
    Model,
    Pointer,
    decline,
    list_candidates,
    promote,
    read_pointer,
    record_candidate,
    rollback,
)
from tasks.loop.gate import Criterion, Verdict

NOW = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)
WORDS = {"approver": "ada", "reason": "looked at fifty scenes", "at": NOW}


def model(name: str) -> Model:
    return Model(f"{name}@1", f"s3://w/{name}.safetensors", name.ljust(64, "0"), "run-1", 1)


def recorded(
    store: Store, name: str, champion: str | None, *, passed: bool = True, needs_approval: bool = True
) -> CandidateRecord:
    criteria = (Criterion("better", 0.02 if passed else 0.001, ">=", 0.01, "paired"),)
    verdict = Verdict("run-1", 1, champion and f"{champion}@1", f"{name}@1", criteria, NOW)
    return record_candidate(store, verdict, model(name), needs_approval=needs_approval, at=NOW)


def states(store: Store) -> dict[str, str]:
    return {record.model.model_id: state for record, state in list_candidates(store)}


def test_a_candidate_waits_as_an_object_and_is_promoted_later(store_uri: str) -> None:
    store = open_store(store_uri)
    first = recorded(store, "a", None)
    assert states(store) == {"a@1": "waiting"} and read_pointer(store) == (Pointer(), None)
    later = open_store(store_uri)  # another process, weeks later
    pointer = promote(later, None, **WORDS)  # type: ignore[arg-type]
    assert pointer.champion == model("a") and read_pointer(store)[0] == pointer
    (move,) = pointer.moves
    assert (move.approver, move.reason, move.at) == ("ada", WORDS["reason"], "2026-11-25T12:00:00.000000+00:00")
    assert (move.verdict_id, move.previous_model_id) == (first.verdict_id, None)
    assert states(store) == {"a@1": "promoted"}


def test_a_refused_candidate_keeps_its_reasons_and_cannot_be_promoted(store_uri: str) -> None:
    store = open_store(store_uri)
    record = recorded(store, "bad", None, passed=False)
    assert states(store) == {"bad@1": "refused"} and record.reasons == ("better: 0.001, must be >= 0.01 (paired)",)
    with pytest.raises(PromotionRefused, match=r"0\.001, must be >= 0\.01"):
        promote(store, record.verdict_id, **WORDS)  # type: ignore[arg-type]
    assert read_pointer(store) == (Pointer(), None)


def test_of_concurrent_promotions_one_wins(store_uri: str) -> None:
    store = open_store(store_uri)
    promote(store, recorded(store, "a", None).verdict_id, **WORDS)  # type: ignore[arg-type]
    records = [recorded(store, name, "a") for name in ("b", "c", "d", "e")]
    barrier = threading.Barrier(len(records))
    outcomes: list[str] = []

    def race(record: CandidateRecord) -> None:
        mine = open_store(store_uri)
        barrier.wait()
        try:
            promote(mine, record.verdict_id, **WORDS)  # type: ignore[arg-type]
            outcomes.append(record.model.model_id)
        except PromotionRefused:
            outcomes.append("refused")

    threads = [threading.Thread(target=race, args=(record,)) for record in records]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = set(outcomes) - {"refused"}
    pointer, _ = read_pointer(store)
    assert pointer.champion is not None and pointer.champion.model_id == winner
    assert len(pointer.moves) == 2 and outcomes.count("refused") == 3
    assert sorted(states(store).values()) == ["promoted", "promoted", "stale", "stale", "stale"]


def test_a_candidate_judged_against_another_champion_is_stale(store_uri: str) -> None:
    store = open_store(store_uri)
    one, other = recorded(store, "a", None), recorded(store, "b", None)
    promote(store, one.verdict_id, **WORDS)  # type: ignore[arg-type]
    with pytest.raises(PromotionRefused, match="judged against None, the champion is a@1"):
        promote(store, other.verdict_id, **WORDS)  # type: ignore[arg-type]


def test_promoting_twice_is_promoting_once(store_uri: str) -> None:
    store = open_store(store_uri)
    record = recorded(store, "a", None)
    once = promote(store, record.verdict_id, **WORDS)  # type: ignore[arg-type]
    assert promote(store, record.verdict_id, **WORDS) == once  # type: ignore[arg-type]


def test_the_gate_alone_promotes_only_what_needs_no_approval(store_uri: str) -> None:
    store = open_store(store_uri)
    asks = recorded(store, "a", None)
    with pytest.raises(PromotionRefused, match="person"):
        promote(store, asks.verdict_id, approver=GATE, reason="all criteria hold", at=NOW)
    free = recorded(store, "b", None, needs_approval=False)
    assert promote(store, free.verdict_id, approver=GATE, reason="all criteria hold", at=NOW).champion == model("b")


def test_rollback_goes_back_step_by_step_and_to_a_named_one(store_uri: str) -> None:
    store = open_store(store_uri)
    for name, before in (("a", None), ("b", "a"), ("c", "b")):
        promote(store, recorded(store, name, before).verdict_id, **WORDS)  # type: ignore[arg-type]
    assert rollback(store, **WORDS).champion == model("b")  # type: ignore[arg-type]
    assert rollback(store, **WORDS).champion == model("a")  # type: ignore[arg-type]
    with pytest.raises(PromotionRefused, match="first one"):
        rollback(store, **WORDS)  # type: ignore[arg-type]
    pointer = rollback(store, "c@1", **WORDS)  # type: ignore[arg-type]
    assert pointer.champion == model("c")
    assert [move.action for move in pointer.moves] == ["promote"] * 3 + ["rollback"] * 3
    assert [move.number for move in pointer.moves] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(PromotionRefused, match="no z@9"):
        rollback(store, "z@9", **WORDS)  # type: ignore[arg-type]


def test_a_declined_candidate_leaves_the_champion_and_stays_declined(store_uri: str) -> None:
    store = open_store(store_uri)
    promote(store, recorded(store, "a", None).verdict_id, **WORDS)  # type: ignore[arg-type]
    record = recorded(store, "b", "a")
    pointer = decline(store, record.verdict_id, **WORDS)  # type: ignore[arg-type]
    assert pointer.champion == model("a") and states(store)["b@1"] == "declined"
    with pytest.raises(PromotionRefused, match="declined"):
        promote(store, record.verdict_id, **WORDS)  # type: ignore[arg-type]
    with pytest.raises(PromotionRefused, match="declined already"):
        decline(store, record.verdict_id, **WORDS)  # type: ignore[arg-type]


@pytest.mark.parametrize("words", [{"approver": " "}, {"reason": ""}], ids=["nobody", "no reason"])
def test_every_move_says_who_and_why(store_uri: str, words: dict[str, str]) -> None:
    store = open_store(store_uri)
    recorded(store, "a", None)
    with pytest.raises(UsageError, match="approver and a reason"):
        promote(store, None, **{**WORDS, **words})  # type: ignore[arg-type]


def test_unclear_requests_are_refused(store_uri: str) -> None:
    store = open_store(store_uri)
    recorded(store, "bad", None, passed=False)
    with pytest.raises(UsageError, match="0 candidates"):
        promote(store, None, **WORDS)  # type: ignore[arg-type]
    recorded(store, "a", None), recorded(store, "b", None)
    with pytest.raises(UsageError, match="2 candidates"):
        promote(store, None, **WORDS)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no verdict id"):
        promote(store, "../x", **WORDS)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no candidate"):
        promote(store, "0" * 32, **WORDS)  # type: ignore[arg-type]


def test_a_damaged_pointer_is_an_error_and_never_an_empty_one(store_uri: str) -> None:
    store = open_store(store_uri)
    recorded(store, "a", None)
    store.put(CHAMPION_KEY, b'{"format": "something else"}')
    with pytest.raises(StoreError, match="damaged"):
        promote(store, None, **WORDS)  # type: ignore[arg-type]


def test_a_record_is_written_once(store_uri: str) -> None:
    store = open_store(store_uri)
    first = recorded(store, "a", None)
    again = recorded(store, "a", None, needs_approval=False)
    assert again == first and again.needs_approval  # what was said first stays
    verdict = Verdict("run-1", 1, None, "a@1", (), NOW)
    with pytest.raises(ValueError, match="is about"):
        record_candidate(store, verdict, replace(model("a"), model_id="b@1"), needs_approval=True, at=NOW)
