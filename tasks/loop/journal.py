"""Where a loop stands, in a few small objects that are created once.

    _loops/<run id>/round-<k>.json    who teaches round k, and the how-many-th look at the gate set it takes
    _loops/<run id>/recipe.json       of all its models: derived or read once, whatever becomes of its file
    _loops/<run id>/labels.json       digest of the human labels, to see when others arrive (tasks.loop.due)
    _loops/<run id>/done.json         the loop has ended

A loop is named by what decides its outcome, and by a number: the same command goes on with the loop that has not ended,
or begins the next one. What round k was begun with is written down before anything is computed, so that a round that
was killed comes to the same decision, also when the champion has moved since.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from infra.store import Store
from tasks.loop.champion import Model
from tasks.loop.schemas import ROUNDS
from tasks.output import tables
from tasks.output.layout import canonical_json

LOOPS_FOLDER = "_loops/"


@dataclass(frozen=True, slots=True)
class RoundStart:
    """What a round begins with.

    Args:
        teacher: the champion at that moment.
        looks_used: at this gate set, this round included, over all loops of the output.
    """

    teacher: Model
    looks_used: int


def open_loop(store: Store, name: str) -> str:
    """The run id of the loop of this name that has not ended, or of a new one."""
    done = {info.key for info in store.list(f"{LOOPS_FOLDER}{name}-") if info.key.endswith("/done.json")}
    number = 1
    while _done_key(f"{name}-{number}") in done:
        number += 1
    return f"{name}-{number}"


def end_loop(store: Store, run_id: str) -> None:
    """The next one of this name will be another loop."""
    store.put_if_absent(_done_key(run_id), canonical_json({"run_id": run_id}))


def keep_recipe(store: Store, run_id: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe that a loop began with, plain JSON; written down now if it begins."""
    key = f"{LOOPS_FOLDER}{run_id}/recipe.json"
    store.put_if_absent(key, canonical_json(recipe))
    kept: dict[str, Any] = json.loads(store.get(key))
    return kept


def start_round(store: Store, run_id: str, number: int, champion: Model, gates: Collection[str]) -> RoundStart:
    """What a round was begun with; written down now if it is begun for the first time.

    Args:
        store: the loop's output.
        run_id, number: the round.
        champion: teaches it, if it is begun now.
        gates: names of the divisions with this gate set (``tasks.loop.splits.same_gate``), whose looks add up.
    """
    key = f"{LOOPS_FOLDER}{run_id}/round-{number}.json"
    start = RoundStart(champion, _looks_before(store, run_id, number, gates) + 1)
    store.put_if_absent(key, canonical_json(asdict(start)))
    found = json.loads(store.get(key))
    return RoundStart(Model(**found["teacher"]), found["looks_used"])


def _looks_before(store: Store, run_id: str, number: int, gates: Collection[str]) -> int:
    """Rounds that were judged by this gate set already; those that ended without a student were not."""
    rows = tables.read(store, ROUNDS).select(["run_id", "round", "splits_manifest_sha256", "candidate_id"]).to_pylist()
    judged = [row for row in rows if row["splits_manifest_sha256"] in gates and row["candidate_id"] is not None]
    looks = {(row["run_id"], row["round"]) for row in judged}
    return len(looks - {(run_id, number)})


def _done_key(run_id: str) -> str:
    return f"{LOOPS_FOLDER}{run_id}/done.json"
