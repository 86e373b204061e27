"""Any past round again, from stored rows alone: the same function must give the same rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra.errors import DatasetError
from infra.store import Store
from tasks.loop.calibration import Calibration
from tasks.loop.kinds import loop_kind
from tasks.loop.schemas import CALIBRATORS, CANDIDATES, PSEUDO_IMAGES, PSEUDO_LABELS, ROUNDS, THRESHOLD_SETS
from tasks.loop.selection import Selection, select, train_set_id
from tasks.loop.thresholds import ThresholdSet
from tasks.output.tables import content_digest, read

_GIVEN = ["image_id", "uri", "group_id", "status"]


@dataclass(frozen=True, slots=True)
class Replay:
    """A round as it was decided again. ``same`` is whether every value and the training set's name came out equal."""

    selection: Selection
    train_set_id: str
    same: bool


def replay(store: Store, run_id: str, round_number: int, *, label_set_id: str) -> Replay:
    """Select again from the rows of a recorded round.

    Args:
        store: the loop's output.
        run_id, round_number: the round.
        label_set_id: of the human labels (``models.label_set_id`` of its student).

    Raises:
        DatasetError: the round is not recorded, or its thresholds or calibrators are gone.
    """
    record = _record(store, run_id, round_number)
    stored = _labels(store, record)
    before = _record_or_none(store, run_id, round_number - 1)
    try:
        thresholds = ThresholdSet.from_table(
            read(store, THRESHOLD_SETS).filter(pc.field("threshold_set_id") == record["threshold_set_id"])
        )
        selection = select(
            _candidates(stored),
            _images(read(store, PSEUDO_IMAGES), run_id, round_number),
            thresholds=thresholds,
            scores=_calibration(store, stored, "calibrator_id"),
            quality=_calibration(store, stored, "quality_calibrator_id")
            if stored["quality_calibrator_id"].null_count < stored.num_rows
            else None,
            previous=None if before is None else _labels(store, before),
        )
    except ValueError as error:
        raise DatasetError(f"round {round_number} of {run_id} cannot be replayed: {error}") from error
    named = train_set_id(selection, label_set_id=label_set_id, splits_manifest_sha256=record["splits_manifest_sha256"])
    is_same = content_digest(selection.labels) == content_digest(stored) and named == record["train_set_id"]
    return Replay(selection, named, is_same)


def _record(store: Store, run_id: str, round_number: int) -> dict[str, Any]:
    record = _record_or_none(store, run_id, round_number)
    if record is None:
        raise DatasetError(f"round {round_number} of {run_id} is not recorded in {store.uri}")
    return record


def _record_or_none(store: Store, run_id: str, round_number: int) -> dict[str, Any] | None:
    mine = (pc.field("run_id") == run_id) & (pc.field("round") == round_number)
    rows = read(store, ROUNDS).filter(mine).sort_by("finished_at").to_pylist()
    return rows[-1] if rows else None


def _labels(store: Store, record: dict[str, Any]) -> pa.Table:
    mine = (
        (pc.field("run_id") == record["run_id"])
        & (pc.field("round") == record["round"])
        & (pc.field("threshold_set_id") == record["threshold_set_id"])
    )
    rows = read(store, PSEUDO_LABELS).filter(mine)
    if rows.num_rows == 0:
        raise DatasetError(f"round {record['round']} of {record['run_id']} has no labels in {store.uri}")
    return rows.sort_by([("image_id", "ascending"), ("seq", "ascending")])


def _candidates(labels: pa.Table) -> pa.Table:
    further = loop_kind(labels["kind"][0].as_py()).columns
    return labels.select([*CANDIDATES.schema.names, *(each.name for each in further)])


def _images(images: pa.Table, run_id: str, round_number: int) -> list[dict[str, Any]]:
    mine = images.filter((pc.field("run_id") == run_id) & (pc.field("round") == round_number))
    rows = mine.select(_GIVEN).to_pylist()
    return list({row["image_id"]: row for row in rows}.values())  # a round that was selected twice lists them twice


def _calibration(store: Store, labels: pa.Table, column: str) -> Calibration:
    pairs = zip(labels["label"].to_pylist(), labels[column].to_pylist(), strict=True)
    return Calibration.from_table(read(store, CALIBRATORS), dict(pairs))
