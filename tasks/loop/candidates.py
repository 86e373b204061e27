"""Candidates: one row per thing that a model found, on unlabelled items for teaching, on labelled ones for calibration.

Both come from rows as the product stores them: those of the teacher's committed run, and those that are made in the
same way of labelled images. The rest is one and the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from infra.errors import DatasetError
from infra.store import Store
from modelkit import Predictor
from tasks.evaluation.evaluate import predictions
from tasks.labels.label_sets import LabelSet, image_id_of
from tasks.loop.kinds import loop_kind
from tasks.loop.schemas import CANDIDATES
from tasks.loop.split_names import UNLABELLED
from tasks.output.tables import table_of
from tasks.output.views import views_of
from tasks.product import Product, find_kind, find_product

_ROWS_AT_ONCE = 2_000

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Teacher:
    """Who inferred, with what: the lineage columns that all candidates of a round share."""

    teacher_model_id: str
    teacher_weights_sha256: str
    teacher_round: int
    teacher_train_set_id: str | None
    class_map_sha256: str
    code_commit: str
    config_sha256: str
    preproc_sha256: str | None = None
    tta_spec: str = "[]"


@dataclass(frozen=True, slots=True)
class Asked:
    """Whose candidates are asked for, and when.

    Args:
        kind: what the teacher does.
        score_floor: less confident predictions are left out.
        teacher: every row must be its work.
        run_id, round_number: of the round.
    """

    kind: str
    score_floor: float
    teacher: Teacher
    run_id: str
    round_number: int

    @property
    def product(self) -> Product:
        """That the teacher's results are stored as."""
        return find_product(find_kind(self.kind).product)

    def candidates(self, row: Row, item: Row) -> list[dict[str, Any]]:
        """The candidates of one item.

        Args:
            row: of the product.
            item: ``split_items.v2`` row of it or of its video.
        """
        if row["status"] != "ok":
            return []
        shared = {
            **asdict(self.teacher),
            "run_id": self.run_id,
            "round": self.round_number,
            "kind": self.kind,
            "image_id": _image_id(row),
            **{name: item[name] for name in ("group_id", "sha256", "phash64", "split")},
            **{name: row[name] for name in ("uri", "media", "frame", "pts_s", "width", "height", "shard_id")},
            "inferred_at": row["processed_at"],
        }
        return [{**shared, **each} for each in loop_kind(self.kind).candidates(row, self.score_floor)]

    def table(self, rows: list[dict[str, Any]]) -> pa.Table:
        """``candidates.v2`` with the kind's own columns."""
        return table_of(CANDIDATES, rows, loop_kind(self.kind).columns)


def read_candidates(store: Store, split_items: pa.Table, asked: Asked) -> tuple[pa.Table, list[Row]]:
    """The newest rows of an output as candidates.

    Args:
        store: output of the teacher's job over the unlabelled source.
        split_items: ``split_items.v2``; only objects whose rows are all unlabelled are used.
        asked: whose candidates.

    Returns:
        ``candidates.v2``, and a record of every unlabelled item, as :func:`tasks.loop.selection.select` takes them.

    Raises:
        DatasetError: rows of another model, or objects that the splits do not know.
    """
    known: dict[str, Row] = {}
    kept_out: set[str] = set()
    for item in split_items.to_pylist():
        known.setdefault(item["uri"], item)
        if item["split"] != UNLABELLED:
            kept_out.add(item["uri"])
    tables: list[pa.Table] = [asked.table([])]
    images: list[Row] = []
    for rows in _stored(store, asked):
        candidates: list[dict[str, Any]] = []
        for row in rows:
            if row["uri"] not in known:
                raise DatasetError(f"{row['uri']} is in no split: it was never checked against labelled items")
            if row["uri"] in kept_out:
                continue
            mine = asked.candidates(row, known[row["uri"]])
            candidates += mine
            images.append(_image(row, known[row["uri"]], len(mine)))
        tables.append(asked.table(candidates))
    return pa.concat_tables(tables), images


def _stored(store: Store, asked: Asked) -> Iterator[list[dict[str, Any]]]:
    """Rows of the product, some at a time. Raises DatasetError for those of another model."""
    views = views_of(store, product=asked.product.name)
    try:
        for batch in views.connection.sql("SELECT * FROM items ORDER BY uri, frame").to_arrow_reader(_ROWS_AT_ONCE):
            rows = batch.to_pylist()
            for row in rows:
                if row["model"] != asked.teacher.teacher_model_id:
                    raise DatasetError(f"{row['uri']} was looked at by {row['model']}, not by the teacher")
            yield rows
    finally:
        views.connection.close()


def candidates_on(predictor: Predictor, labels: LabelSet, split_items: pa.Table, asked: Asked) -> pa.Table:
    """``candidates.v2`` of a model on labelled images, for calibration and for the gate's check of it.

    The same floor, limits and rows as on unlabelled ones, so that the scores are of one population.

    Args:
        predictor: as it looks at unlabelled items.
        labels: of the images, or items without labels.
        split_items: ``split_items.v2``, which knows all of them.
        asked: whose candidates.
    """
    items = {row["uri"]: row for row in split_items.to_pylist()}
    items |= {row["image_id"]: row for row in split_items.to_pylist()}
    rows = [
        candidate
        for row in _looked_at(predictor, labels, asked)
        for candidate in asked.candidates(row, items.get(_image_id(row)) or items[row["uri"]])
    ]
    return asked.table(rows)


def _looked_at(predictor: Predictor, labels: LabelSet, asked: Asked) -> Iterator[dict[str, Any]]:
    """Rows of labelled images as the product would store them."""
    columns, names = asked.product.columns, predictor.weights.class_names()
    facts = dict.fromkeys(("pts_s", "shard_id", "processed_at"))
    for item, found in predictions(predictor, labels.table.to_pylist(), floor=asked.score_floor):
        stored = {name: column[0].as_py() for name, column in columns([found], names).items()}
        place = {name: item[name] for name in ("uri", "media", "frame", "width", "height")}
        yield {**facts, **place, **stored, "status": "ok"}


def _image_id(row: Row) -> str:
    return image_id_of(row["uri"], row["frame"] if row["media"] == "video" else None)


def _image(row: Row, item: Row, num_candidates: int) -> dict[str, Any]:
    status = "ok" if num_candidates else "empty"
    if row["status"] != "ok":
        status = "decode_error" if row["stage"] == "decode" else "failed"
        status = "timeout" if "imeout" in (row["error_type"] or "") else status
    return {"image_id": _image_id(row), "uri": row["uri"], "group_id": item["group_id"], "status": status}
