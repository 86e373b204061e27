"""A loop is due when labels or enough objects have arrived since the last round, and not before."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.store import open_store
from tasks.loop.due import Arrivals, arrivals_since, label_content, reason_to_retrain, remember_labels
from tasks.loop.splits import group_by
from tests.tasks.loop.scenes import label_set
from tests.tasks.loop.test_lineage import a_round

LABELS = label_set([(f"g{k}", 1, [1]) for k in range(12)])


def listing(folder: Path, uris: list[str]) -> Path:
    path = folder / "inventory.parquet"
    pq.write_table(pa.table({"uri": pa.array(uris, pa.string())}), path)
    return path


@pytest.mark.parametrize(
    ("last", "changed", "new", "expected"),
    [
        (None, True, 0, "no round has ended"),
        ("run-1", True, 0, "labels are others"),
        ("run-1", False, 99, None),
        ("run-1", False, 100, "100 unlabelled objects are new"),
    ],
)
def test_the_rule(last: str | None, changed: bool, new: int, expected: str | None) -> None:
    reason = reason_to_retrain(Arrivals(last, changed, new, "s"), 100)
    assert reason is None if expected is None else expected in str(reason)


def test_what_arrived_since_the_last_round(store_uri: str, tmp_path: Path) -> None:
    store = open_store(store_uri)
    store.probe()
    known = LABELS.table["uri"].to_pylist()  # all that the manifest of a_round() knows
    first = arrivals_since(store, LABELS, listing(tmp_path, [*known, "u1"]))
    assert (first.last_run_id, first.labels_changed, first.new_objects) == (None, True, 13)
    remember_labels(store, "run-1", LABELS)
    a_round(store)
    same = arrivals_since(store, LABELS, listing(tmp_path, known))
    assert (same.last_run_id, same.labels_changed, same.new_objects) == ("run-1", False, 0)
    more = arrivals_since(store, LABELS, listing(tmp_path, [*known, "new1", "new2"]))
    assert (more.labels_changed, more.new_objects) == (False, 2)
    other = arrivals_since(store, label_set([("g0", 2, [1])]), listing(tmp_path, known))
    assert other.labels_changed
    assert len({each.signature for each in (first, same, more, other)}) == 4
    assert same == arrivals_since(store, LABELS, listing(tmp_path, known))


def test_a_round_that_ended_later_is_the_one_compared_with(store_uri: str, tmp_path: Path) -> None:
    store = open_store(store_uri)
    a_round(store)
    a_round(store, run_id="run-2", finished_at=dt.datetime(2026, 11, 26, tzinfo=dt.UTC))
    remember_labels(store, "run-2", LABELS)
    found = arrivals_since(store, LABELS, listing(tmp_path, ["x"]))
    assert (found.last_run_id, found.labels_changed, found.new_objects) == ("run-2", False, 1)


def test_groups_are_not_what_people_said() -> None:
    assert (
        label_content(LABELS)
        == label_content(group_by(LABELS, "folder"))
        != label_content(replace(LABELS, table=LABELS.table.slice(1)))
    )
