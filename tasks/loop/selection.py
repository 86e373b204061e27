"""Which candidates become pseudo-labels: a pure function from rows and thresholds to rows.

All candidates come out again, the accepted, the ignored and the rejected, each with the rule that decided, the
thresholds and the weights. Equal input gives equal bytes, so any past round can be replayed from what is stored, and
other thresholds need no new inference.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.errors import DatasetError
from infra.store import Store
from tasks.loop.calibration import Calibration
from tasks.loop.kinds import loop_kind
from tasks.loop.methods import LoopMethods
from tasks.loop.schemas import PSEUDO_IMAGES, PSEUDO_LABELS
from tasks.loop.split_names import UNLABELLED
from tasks.loop.thresholds import ThresholdSet
from tasks.output.tables import append, checked, column, table_of
from tasks.product import LoopKind
from tasks.training.examples import save_training_set

LABEL_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "visionmill:pseudo_labels.v1")
WEIGHT_CAP = 2.0
MIN_PREVIOUS_IOU = 0.1
SAME_IOU = 0.5
_ONE_PER_ROUND = ("run_id", "round", "kind", "class_map_sha256", "teacher_model_id", "teacher_weights_sha256")
_IN_ORDER = [("image_id", "ascending"), ("seq", "ascending")]
_ONLY_FOR_RULES = (
    column("quality", pa.float64(), "mean of the measured features of the kind; the score where none was measured"),
    column("t_quality", pa.float64(), "certified quality of the class; null where it abstains"),
)

Decided = Mapping[str, np.ndarray]
"""What a kind's rule says of (n,) candidates, by column: their ``decision`` ("accept": teaches at least its class,
"ignore" or "reject"), the ``reason`` in the rule's own word, the ``weight`` (float64, 0 where not accepted), and the
columns of ``LoopKind.decided``. Rules are pure: no clock, no chance, no file."""


@dataclass(frozen=True, slots=True)
class Selection:
    """``pseudo_labels.v2`` of all candidates and ``pseudo_images.v2`` of all items of a round."""

    labels: pa.Table
    images: pa.Table

    @property
    def kind(self) -> LoopKind:
        """Of the teacher."""
        return loop_kind(self.labels["kind"][0].as_py())

    @property
    def accepted(self) -> pa.Table:
        """The rows that teach."""
        return self.labels.filter(pc.equal(self.labels["decision"], "accept"))

    def accepted_by_class(self) -> dict[int, int]:
        """How much of each class id is accepted, in the unit of the kind."""
        return self._accepted_by("label")

    def accepted_by_name(self) -> dict[str, int]:
        """The same by class name, sorted."""
        return dict(sorted(self._accepted_by("name").items()))

    def _accepted_by(self, column: str) -> dict[Any, int]:
        accepted, amount = self.accepted, self.kind.amount
        amounts = [1] * accepted.num_rows if amount is None else accepted[amount].to_pylist()
        counts: Counter[Any] = Counter()
        for key, count in zip(accepted[column].to_pylist(), amounts, strict=True):
            counts[key] += count
        return dict(counts)


def select(
    candidates: pa.Table,
    images: Iterable[Mapping[str, Any]],
    *,
    thresholds: ThresholdSet,
    scores: Calibration,
    quality: Calibration | None = None,
    previous: pa.Table | None = None,
) -> Selection:
    """Decide about all candidates of one round.

    The kind's rule is given them sorted by image and position, with all columns of ``pseudo_labels.v2`` but those that
    it decides, and with ``quality`` and ``t_quality``; null is not measured, not calibrated, or a class that abstains.

    Args:
        candidates: ``candidates.v2`` of one round and teacher.
        images: one mapping per unlabelled item, also for empty and failed ones: image_id, uri, group_id, status.
        thresholds: certified for this teacher in this round.
        scores: calibrators of the scores.
        quality: calibrators of the quality; without, no geometry is taught.
        previous: ``pseudo_labels.v2`` of the round before, to tell what changed.

    Raises:
        DatasetError: rows of several rounds, teachers or class maps; thresholds of another one; items that are not
            unlabelled.
    """
    shared = _one_round(candidates, thresholds)
    kind = loop_kind(str(shared["kind"]))
    rows = _with_evidence(candidates.sort_by(_IN_ORDER), kind, thresholds, scores, quality, previous)
    decided = {name: values.tolist() for name, values in kind.rule(rows).items()}
    schema = pa.schema([*PSEUDO_LABELS.schema, *kind.columns, *kind.decided])
    labels = checked(PSEUDO_LABELS, _with_columns(rows, decided, schema).select(schema.names))
    return Selection(labels, _images(list(images), labels, shared, kind))


def remember_selection(store: Store, selection: Selection, taught: pa.Table, methods: LoopMethods) -> str | None:
    """Make its rows exist, and a training set of what was accepted; the set's id, None where nothing was accepted.

    Args:
        taught: its labels, with the weights that they have in the training set (``tasks.loop.balance``).
    """
    number, kind = (selection.labels[name][0].as_py() for name in ("round", "kind"))
    for spec, rows in ((PSEUDO_LABELS, selection.labels), (PSEUDO_IMAGES, selection.images)):
        append(store, spec, rows, round_number=number, kind=kind)
    return save_training_set(store, methods.examples(taught)) if selection.accepted.num_rows else None


def _one_round(candidates: pa.Table, thresholds: ThresholdSet) -> dict[str, Any]:
    if candidates.num_rows == 0:
        raise DatasetError("a round without a single candidate", hint="Did the teacher's run fail?")
    shared: dict[str, Any] = {}
    for name in _ONE_PER_ROUND:
        values = candidates[name].unique().to_pylist()
        if len(values) != 1:
            raise DatasetError(f"candidates of {len(values)} different {name}: {', '.join(map(str, values[:3]))}",
                               hint="Rows of two rounds or teachers never mix.")  # fmt: skip
        shared[name] = values[0]
    if (thresholds.model_id, thresholds.round) != (shared["teacher_model_id"], shared["round"]):
        raise DatasetError(
            f"thresholds for {thresholds.model_id} in round {thresholds.round}, candidates of "
            f"{shared['teacher_model_id']} in round {shared['round']}",
            hint="Thresholds hold for the scores they were certified on, for no others.",
        )
    outside = sorted(set(candidates["split"].unique().to_pylist()) - {UNLABELLED})
    if outside:
        raise DatasetError(f"candidates on items of the split {', '.join(outside)}: machines label no others' items")
    return shared


def _with_evidence(
    rows: pa.Table,
    kind: LoopKind,
    thresholds: ThresholdSet,
    scores: Calibration,
    quality: Calibration | None,
    previous: pa.Table | None,
) -> pa.Table:
    """The candidates with all that is known of them before the rule decides; see :func:`select`."""
    label, score = rows["label"].to_numpy().astype(np.int64), rows["score"].to_numpy()
    classes = {each.label: each for each in thresholds.classes}
    missing = sorted(set(label.tolist()) - classes.keys())
    if missing:
        raise DatasetError(f"the classes {missing} have no thresholds in the set {thresholds.threshold_set_id}")
    mine = [classes[each] for each in label.tolist()]
    measured = quality_feature({name: floats(rows[name]) for name in kind.features}, score)
    expected = np.full(len(score), np.nan) if quality is None else np.round(quality.apply(label, measured), 6)
    names = zip(*(rows[name].to_pylist() for name in ("run_id", "round", "image_id", "seq")), strict=True)
    links = _links(rows, previous, kind)
    known: dict[str, Any] = {
        "label_id": [str(uuid.uuid5(LABEL_NAMESPACE, "/".join(map(str, name)))) for name in names],
        "score_calibrated": np.round(scores.apply(label, score), 6),
        "quality": measured,
        "quality_calibrated": _nulls(expected),
        **{
            name: _nulls(np.array([getattr(each, name) for each in mine], np.float64)) for name in ("t_hi", "t_quality")
        },
        "t_lo": np.array([each.t_lo for each in mine], np.float64),
        "threshold_set_id": [thresholds.threshold_set_id] * len(mine),
        "threshold_basis": [each.basis for each in mine],
        "calibrator_id": [scores.of(each.label).calibrator_id for each in mine],
        "quality_calibrator_id": [quality and quality.of(each.label).calibrator_id for each in mine],
        **{name: [link.get(name) for link in links] for name in ("previous_label_id", "previous_iou", "class_changed")},
    }
    return _with_columns(rows, known, [*PSEUDO_LABELS.schema, *_ONLY_FOR_RULES])


def _with_columns(rows: pa.Table, columns: Mapping[str, Any], fields: Iterable[pa.Field]) -> pa.Table:
    for field in fields:
        if field.name in columns:
            rows = rows.append_column(field, pa.array(columns[field.name], field.type))
    return rows


def _nulls(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float64(), mask=np.isnan(values))


def _links(rows: pa.Table, previous: pa.Table | None, kind: LoopKind) -> list[dict[str, Any]]:
    """For each row what is said of the label of the round before that it overlaps most; empty where there is none."""
    links: list[dict[str, Any]] = [{} for _ in range(rows.num_rows)]
    if previous is None:
        return links
    before: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in previous.filter(pc.equal(previous["decision"], "accept")).to_pylist():
        before[row["image_id"]].append(row)
    now: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for k, row in enumerate(rows.to_pylist()):
        if row["image_id"] in before:
            now[row["image_id"]].append((k, row))
    for image_id, mine in now.items():
        old = before[image_id]
        for (k, row), found in zip(mine, kind.iou([row for _, row in mine], old), strict=True):
            best = int(found.argmax())
            if found[best] >= MIN_PREVIOUS_IOU:
                links[k] = {
                    "previous_label_id": old[best]["label_id"],
                    "previous_iou": round(float(found[best]), 6),
                    "class_changed": old[best]["label"] != row["label"],
                }
    return links


def _images(images: list[Mapping[str, Any]], labels: pa.Table, shared: Mapping[str, Any], kind: LoopKind) -> pa.Table:
    totals: dict[str, _Total] = {str(image["image_id"]): _Total() for image in images}
    if len(totals) < len(images):
        raise DatasetError("items must be listed once each, some are listed twice")
    found = ["label", "score", *(each.name for each in kind.columns)]
    for row in labels.select(["image_id", "name", "decision", "score_calibrated", *found]).to_pylist():
        if row["image_id"] not in totals:
            raise DatasetError(f"items must be listed once each, {row['image_id']} has candidates and is not listed")
        totals[row["image_id"]].add(row, [row[name] for name in found])
    rows = [
        {
            **image,
            **totals[str(image["image_id"])].columns(),
            "run_id": shared["run_id"],
            "round": shared["round"],
            "teacher_weights_sha256": shared["teacher_weights_sha256"],
        }
        for image in sorted(images, key=lambda each: str(each["image_id"]))
    ]
    return table_of(PSEUDO_IMAGES, rows)


class _Total:
    """What the candidates of one item add up to."""

    def __init__(self) -> None:
        self._decisions: Counter[str] = Counter()
        self._accepted: Counter[str] = Counter()
        self._uncovered = 0.0
        self._digest = hashlib.sha256()

    def add(self, row: Mapping[str, Any], found: list[Any]) -> None:
        """One candidate, in the order of their positions, and what the teacher said of it."""
        self._decisions[row["decision"]] += 1
        self._accepted[row["name"]] += row["decision"] == "accept"
        self._uncovered += row["score_calibrated"] if row["decision"] == "ignore" else 0.0
        self._digest.update(repr(found).encode())

    def columns(self) -> dict[str, Any]:
        """The columns of ``pseudo_images.v2`` that are sums."""
        return {
            "n_candidates": self._decisions.total(),
            "n_accept": self._decisions["accept"],
            "n_ignore": self._decisions["ignore"],
            "per_class_counts": sorted((name, count) for name, count in self._accepted.items() if count),
            "uncovered_score_mass": round(self._uncovered, 6),
            "output_sha256": self._digest.hexdigest(),
        }


def train_set_id(selection: Selection, *, label_set_id: str, splits_manifest_sha256: str) -> str:
    """What a training set is called: SHA-256 over the human part and the sorted (label_id, weight) of the accepted."""
    rows = selection.accepted.select(["label_id", "weight"]).to_pylist()
    lines = sorted(f"{row['label_id']} {row['weight']:.6f}" for row in rows)
    digest = hashlib.sha256(f"human {label_set_id} {splits_manifest_sha256}\n".encode())
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def changed_share(before: Selection | None, after: Selection) -> float:
    """Share of what is accepted that is new or gone since the round before, for the stopping rule; 1 in the first."""
    if before is None or before.accepted.num_rows == 0:
        return 1.0
    kept, total = before.kind.kept(before.accepted, after.accepted)
    return 1.0 - kept / total if total else 0.0


def kept_candidates(before: pa.Table, after: pa.Table) -> tuple[float, float]:
    """Candidates that were accepted twice (they overlap by half and have one class), and those accepted at all."""
    kept = sum(
        link is not None and iou >= SAME_IOU and not changed
        for link, iou, changed in zip(
            *(after[name].to_pylist() for name in ("previous_label_id", "previous_iou", "class_changed")),
            strict=True,
        )
    )
    return kept, before.num_rows + after.num_rows - kept


def first_reason(*ordered: tuple[str, np.ndarray]) -> np.ndarray:
    """(n,) str: the first name in order whose (n,) bool array holds, "certified" where none does."""
    reason = np.full(len(ordered[0][1]), "certified", dtype=object)
    for name, applies in reversed(ordered):
        reason[applies] = name
    return reason


def quality_feature(features: Mapping[str, np.ndarray], score: np.ndarray) -> np.ndarray:
    """(n,) mean of the features that were measured; the score where none was."""
    if not features:
        return score
    stacked = np.stack(list(features.values()))
    measured = ~np.isnan(stacked)
    count = measured.sum(axis=0)
    mean = np.where(measured, stacked, 0.0).sum(axis=0) / np.maximum(count, 1)
    return np.where(count > 0, mean, score)


def floats(column: pa.ChunkedArray) -> np.ndarray:
    """(n,) float64 of a column; null becomes NaN."""
    return column.cast(pa.float64()).to_numpy().astype(np.float64)


def normalised(weights: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Weights with mean 1 over ``where``, then capped at 2, and 0 elsewhere; six decimals, the same on any machine."""
    mean = weights[where].mean() if where.any() else 1.0
    scaled = np.minimum(weights / mean, WEIGHT_CAP) if mean > 0 else np.ones_like(weights)
    return np.where(where, np.round(scaled, 6), 0.0)
