"""The champion pointer: which model is in use, moved by one compare-and-swap, with who, why and when.

    _champion.json                       the model in use, and every move that led there
    _candidates/<verdict id>.json        what the gate said about a candidate; immutable

A candidate waits as an object, not as a process: approving it weeks later is one swap. It may only replace the champion
that it was judged against; whoever comes second finds another one there and is refused. Refused candidates keep their
reasons.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from infra.errors import BucketMissing, Conflict, ObjectGone, PromotionRefused, StoreError, UsageError
from infra.store import Store, open_store
from tasks.output.layout import canonical_json

if TYPE_CHECKING:  # moving a pointer needs no statistics
    from tasks.loop.gate import Verdict

CHAMPION_KEY = "_champion.json"
CANDIDATES_FOLDER = "_candidates/"
FORMAT = "visionmill.champion.v1"
GATE = "gate"  # approver of promotions that nobody had to approve

_VERDICT_ID = re.compile(r"[0-9a-f]{32}")

Action = Literal["promote", "rollback", "decline"]
State = Literal["waiting", "promoted", "refused", "declined", "stale"]


@dataclass(frozen=True, slots=True)
class Model:
    """A trained model as the pointer names it."""

    model_id: str
    weights_uri: str
    weights_sha256: str
    run_id: str
    round: int


@dataclass(frozen=True, slots=True)
class Move:
    """One entry of the history.

    Args:
        number: 1, 2, ...; a later move has a larger one.
        action: "promote", "rollback", or "decline" (the champion stays).
        model: that the move was about.
        previous_model_id: champion before; None for the first.
        verdict_id: of the gate; None for a rollback.
        approver, reason: who and why.
        at: ISO time, UTC.
    """

    number: int
    action: Action
    model: Model
    previous_model_id: str | None
    verdict_id: str | None
    approver: str
    reason: str
    at: str


@dataclass(frozen=True, slots=True)
class Pointer:
    """What stands in ``_champion.json``: all moves, oldest first; the last promotion or rollback names the champion."""

    moves: tuple[Move, ...] = ()

    @property
    def champion(self) -> Model | None:
        """The model in use; None before the first promotion."""
        return next((move.model for move in reversed(self.moves) if move.action != "decline"), None)

    def encode(self) -> bytes:
        """The JSON bytes, the champion first, for other programs to read."""
        champion = self.champion
        content = {
            "format": FORMAT,
            "champion": None if champion is None else asdict(champion),
            "moves": [asdict(move) for move in self.moves],
        }
        return canonical_json(content)

    @classmethod
    def decode(cls, data: bytes) -> Pointer:
        """The inverse of :meth:`encode`. Raises ValueError for anything else."""
        content = json.loads(data)
        if content.get("format") != FORMAT:
            raise ValueError(f"format must be {FORMAT!r}, got {content.get('format')!r}")
        return cls(tuple(Move(**{**move, "model": Model(**move["model"])}) for move in content["moves"]))


@dataclass(frozen=True, slots=True)
class CandidateRecord:
    """A candidate after the gate; stored once, under its verdict's id.

    Args:
        verdict_id: names it.
        model: the candidate.
        champion_id: model that it was judged against; None if there was none.
        passed: whether all criteria held.
        reasons: those that did not, in words.
        criteria: all of them with value, relation and limit.
        needs_approval: a person has to say yes.
        recorded_at: ISO time, UTC.
    """

    verdict_id: str
    model: Model
    champion_id: str | None
    passed: bool
    reasons: tuple[str, ...]
    criteria: tuple[dict[str, Any], ...]
    needs_approval: bool
    recorded_at: str = field(default="")

    def encode(self) -> bytes:
        """The JSON bytes."""
        return canonical_json(asdict(self))

    @classmethod
    def decode(cls, data: bytes) -> CandidateRecord:
        """The inverse of :meth:`encode`."""
        content = json.loads(data)
        known = {name: content[name] for name in (each.name for each in fields(cls))}
        known |= {"model": Model(**content["model"])}
        known |= {name: tuple(content[name]) for name in ("reasons", "criteria")}
        return cls(**known)


def read_pointer(store: Store) -> tuple[Pointer, str | None]:
    """The pointer and the etag that a swap must name; an empty one and None before the first promotion."""
    try:
        data, etag = store.get_with_etag(CHAMPION_KEY)
    except ObjectGone:
        return Pointer(), None
    try:
        return Pointer.decode(data), etag
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"the champion pointer {store.uri_of(CHAMPION_KEY)} is damaged: {error}") from error


def in_use(model: str) -> str:
    """The champion's weights where ``model`` is the output of a retraining; any other name, file or URI is itself.

    Who follows a champion asks once, before anything begins: a promotion meanwhile changes nothing of a run.

    Raises:
        StoreError: a bucket that does not answer, or a damaged pointer.
    """
    is_bucket = "://" in model
    if model.endswith(".safetensors") or not (is_bucket or Path(model, CHAMPION_KEY).is_file()):
        return model
    champion = read_pointer(open_store(model))[0].champion
    return model if champion is None else champion.weights_uri


def record_candidate(
    store: Store, verdict: Verdict, model: Model, *, needs_approval: bool, at: dt.datetime
) -> CandidateRecord:
    """Keep what the gate said about a candidate; saying it again changes nothing.

    Raises:
        ValueError: a verdict about another model.
    """
    if verdict.candidate_id != model.model_id:
        raise ValueError(f"the verdict is about {verdict.candidate_id}, not about {model.model_id}")
    record = CandidateRecord(
        verdict_id=verdict.verdict_id,
        model=model,
        champion_id=verdict.champion_id,
        passed=verdict.promoted,
        reasons=verdict.reasons,
        criteria=tuple(
            {"name": row["criterion"], "value": row["value"], "relation": row["relation"], "limit": row["demanded"],
             "passed": row["passed"]}
            for row in verdict.to_table().to_pylist()
        ),
        needs_approval=needs_approval,
        recorded_at=_iso(at),
    )  # fmt: skip
    store.put_if_absent(_candidate_key(record.verdict_id), record.encode())
    return read_candidate(store, record.verdict_id)


def read_candidate(store: Store, verdict_id: str) -> CandidateRecord:
    """One record. Raises UsageError when there is none."""
    try:
        return CandidateRecord.decode(store.get(_candidate_key(verdict_id)))
    except ObjectGone as error:
        raise UsageError(f"no candidate {verdict_id} in {store.uri}", hint="`visionmill promote --list`") from error


def check_output(store: Store) -> None:
    """Raises UsageError where no model was ever judged: most likely the wrong place."""
    places = (CHAMPION_KEY, CANDIDATES_FOLDER)
    try:
        if any(next(iter(store.list(place)), None) for place in places):
            return
        what = "holds no model that was judged"
    except BucketMissing:
        what = "does not exist"
    raise UsageError(f"{store.uri} {what}", hint="give the --output of `visionmill retrain`, after its first round")


def list_candidates(store: Store) -> list[tuple[CandidateRecord, State]]:
    """All candidates, the newest first, each with its state at this moment."""
    pointer, _ = read_pointer(store)
    records = [CandidateRecord.decode(store.get(info.key)) for info in store.list(CANDIDATES_FOLDER)]
    records.sort(key=lambda record: (record.recorded_at, record.verdict_id), reverse=True)
    return [(record, state_of(record, pointer)) for record in records]


def state_of(record: CandidateRecord, pointer: Pointer) -> State:
    """What became of a candidate; "stale" was judged against a champion that is none any more."""
    for move in reversed(pointer.moves):
        if move.verdict_id == record.verdict_id:
            return "declined" if move.action == "decline" else "promoted"
    if not record.passed:
        return "refused"
    champion = pointer.champion
    return "waiting" if record.champion_id == (champion and champion.model_id) else "stale"


def promote(store: Store, verdict_id: str | None, *, approver: str, reason: str, at: dt.datetime) -> Pointer:
    """Make a candidate the champion, in one swap.

    Args:
        verdict_id: of the candidate; None takes the one that waits, if it is the only one.
        approver: a person, or :data:`GATE` for candidates that need nobody's approval.
        reason: in words, not empty.

    Raises:
        PromotionRefused: the gate refused it, it was judged against another champion, or somebody was faster.
        UsageError: no such candidate, several that wait, or no reason given.
    """
    check_output(store)
    _check_words(approver, reason)
    record = _waiting(store) if verdict_id is None else read_candidate(store, verdict_id)
    pointer, etag = read_pointer(store)
    state = state_of(record, pointer)
    champion = pointer.champion
    if state == "promoted" and champion is not None and champion.model_id == record.model.model_id:
        return pointer  # asked twice, or an answer that was lost: it is what it should be
    if state != "waiting":
        raise PromotionRefused(f"{record.model.model_id} is {state}: {_why(record, state, champion)}")
    if record.needs_approval and approver == GATE:
        raise PromotionRefused(f"{record.model.model_id} needs a person's approval", hint="Give --approver NAME.")
    return _move(store, pointer, etag, "promote", record.model, record.verdict_id, approver, reason, at)


def decline(store: Store, verdict_id: str, *, approver: str, reason: str, at: dt.datetime) -> Pointer:
    """Say no to a waiting candidate; the champion stays.

    Raises:
        PromotionRefused: it does not wait, or somebody was faster.
    """
    check_output(store)
    _check_words(approver, reason)
    record = read_candidate(store, verdict_id)
    pointer, etag = read_pointer(store)
    state = state_of(record, pointer)
    if state not in ("waiting", "stale"):
        raise PromotionRefused(f"{record.model.model_id} is {state} already")
    return _move(store, pointer, etag, "decline", record.model, record.verdict_id, approver, reason, at)


def rollback(store: Store, to_model_id: str | None = None, *, approver: str, reason: str, at: dt.datetime) -> Pointer:
    """Make an earlier champion the champion again.

    Args:
        to_model_id: which; the one before the present one unless given.

    Raises:
        PromotionRefused: there is no earlier champion of that name, or somebody was faster.
    """
    check_output(store)
    _check_words(approver, reason)
    pointer, etag = read_pointer(store)
    champion = pointer.champion
    earlier = [move.model for move in pointer.moves if move.action != "decline" and move.model != champion]
    wanted = [model for model in earlier if to_model_id in (None, model.model_id)]
    if champion is None or not wanted:
        named = to_model_id or "an earlier champion"
        raise PromotionRefused(f"there is no {named} to go back to in {store.uri}", hint="`visionmill promote --list`")
    target = wanted[-1] if to_model_id is not None else _before(pointer)
    return _move(store, pointer, etag, "rollback", target, None, approver, reason, at)


def _before(pointer: Pointer) -> Model:
    """The champion that the present one replaced; after a rollback, the one before that one."""
    stack: list[Model] = []
    for move in pointer.moves:
        if move.action == "promote":
            stack.append(move.model)
        elif move.action == "rollback":
            while stack and stack[-1] != move.model:
                stack.pop()
    if len(stack) < 2:
        raise PromotionRefused("the champion is the first one: there is nothing before it")
    return stack[-2]


def _move(
    store: Store,
    pointer: Pointer,
    etag: str | None,
    action: Action,
    model: Model,
    verdict_id: str | None,
    approver: str,
    reason: str,
    at: dt.datetime,
) -> Pointer:
    champion = pointer.champion
    move = Move(
        number=len(pointer.moves) + 1,
        action=action,
        model=model,
        previous_model_id=None if champion is None else champion.model_id,
        verdict_id=verdict_id,
        approver=approver,
        reason=reason,
        at=_iso(at),
    )
    moved = Pointer((*pointer.moves, move))
    try:
        store.compare_and_swap(CHAMPION_KEY, moved.encode(), etag)
    except Conflict as error:
        raise PromotionRefused(
            f"somebody else moved the champion of {store.uri} at the same time", hint="Look at it, then try again."
        ) from error
    return moved


def _waiting(store: Store) -> CandidateRecord:
    found = [record for record, state in list_candidates(store) if state == "waiting"]
    if len(found) != 1:
        names = ", ".join(record.verdict_id for record in found) or "none"
        raise UsageError(f"{len(found)} candidates wait in {store.uri}: {names}", hint="Name one of them.")
    return found[0]


def _why(record: CandidateRecord, state: State, champion: Model | None) -> str:
    if state == "refused":
        return "; ".join(record.reasons)
    if state == "stale":
        return f"it was judged against {record.champion_id}, the champion is {champion and champion.model_id}"
    return "that was decided before"


def _check_words(approver: str, reason: str) -> None:
    if not approver.strip() or not reason.strip():
        raise UsageError("a move of the champion needs an approver and a reason", hint="--approver NAME --reason TEXT")


def _candidate_key(verdict_id: str) -> str:
    if _VERDICT_ID.fullmatch(verdict_id) is None:
        raise UsageError(f"{verdict_id!r} is no verdict id", hint="32 hex digits, see `visionmill promote --list`")
    return f"{CANDIDATES_FOLDER}{verdict_id}.json"


def _iso(at: dt.datetime) -> str:
    return at.astimezone(dt.UTC).isoformat(timespec="microseconds")
