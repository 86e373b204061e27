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
from pycocotools import mask as coco_mask

from infra.errors import DatasetError
from tasks.loop.calibration import Calibration
from tasks.loop.rules import Decisions, Evidence, quality_feature, rules_of
from tasks.loop.schemas import PSEUDO_IMAGES, PSEUDO_LABELS
from tasks.loop.thresholds import ThresholdSet
from tasks.output.tables import checked, content_digest, table_of

LABEL_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "visionmill:pseudo_labels.v1")
MIN_PREVIOUS_IOU = 0.1
_EXTRA_FEATURES = ("q_jitter",)  # read by rules, not part of the quality: it falls as geometry gets better
_ONE_PER_ROUND = ("run_id", "round", "task", "class_map_sha256", "teacher_model_id", "teacher_weights_sha256")


@dataclass(frozen=True, slots=True)
class Selection:
    """``pseudo_labels.v1`` of all candidates and ``pseudo_images.v1`` of all items of a round."""

    labels: pa.Table
    images: pa.Table

    @property
    def accepted(self) -> pa.Table:
        """The rows that teach."""
        return self.labels.filter(pa.compute.equal(self.labels["decision"], "accept"))

    def accepted_by_class(self) -> dict[int, int]:
        """Accepted objects by class id; of semantic segmentation, pixels."""
        return self._accepted_by("class_id")

    def accepted_by_name(self) -> dict[str, int]:
        """The same by class name, sorted."""
        return dict(sorted(self._accepted_by("class_name").items()))

    def _accepted_by(self, column: str) -> dict[Any, int]:
        accepted = self.accepted
        counts: Counter[Any] = Counter()
        for key, task, area in zip(
            *(accepted[name].to_pylist() for name in (column, "task", "mask_area")), strict=True
        ):
            counts[key] += area if task == "semantic" else 1
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

    Args:
        candidates: ``candidates.v1`` of one round and teacher.
        images: one mapping per item of U, also for empty and failed ones: image_id, media_uri, group_id, status,
            elapsed_ms and whatever else ``pseudo_images.v1`` has.
        thresholds: certified for this teacher in this round.
        scores: calibrators of the scores.
        quality: calibrators of the mask quality; without, no mask is taught.
        previous: ``pseudo_labels.v1`` of the round before, to tell what changed.

    Raises:
        DatasetError: rows of several rounds, teachers or class maps; thresholds of another one; items outside U.
    """
    shared = _one_round(candidates, thresholds)
    rules = rules_of(str(shared["task"]))
    rows = candidates.sort_by([("image_id", "ascending"), ("seq", "ascending")])
    evidence = _evidence(rows, rules.features, thresholds, scores, quality)
    decisions = rules.rule(evidence)
    labels = _decided(rows, evidence, decisions, thresholds, (scores, quality), previous)
    return Selection(labels, _images(list(images), labels, shared))


def _one_round(candidates: pa.Table, thresholds: ThresholdSet) -> dict[str, Any]:
    if candidates.num_rows == 0:
        raise DatasetError("a round without a single candidate", hint="Did the teacher's run fail?")
    shared: dict[str, Any] = {}
    for column in _ONE_PER_ROUND:
        values = candidates[column].unique().to_pylist()
        if len(values) != 1:
            raise DatasetError(f"candidates of {len(values)} different {column}: {', '.join(map(str, values[:3]))}",
                               hint="Rows of two rounds or teachers never mix.")  # fmt: skip
        shared[column] = values[0]
    if (thresholds.model_id, thresholds.round) != (shared["teacher_model_id"], shared["round"]):
        raise DatasetError(
            f"thresholds for {thresholds.model_id} in round {thresholds.round}, candidates of "
            f"{shared['teacher_model_id']} in round {shared['round']}",
            hint="Thresholds hold for the scores they were certified on, for no others.",
        )
    outside = sorted(set(candidates["split"].unique().to_pylist()) - {"U"})
    if outside:
        raise DatasetError(f"candidates on items of the split {', '.join(outside)}: only U is labelled by machines")
    return shared


def _evidence(
    rows: pa.Table,
    features: Iterable[str],
    thresholds: ThresholdSet,
    scores: Calibration,
    quality: Calibration | None,
) -> Evidence:
    class_id = rows["class_id"].to_numpy().astype(np.int64)
    score = rows["score_raw"].to_numpy()
    measured = {name: _floats(rows[name]) for name in [*features, *_EXTRA_FEATURES]}
    read = quality_feature({name: measured[name] for name in features}, score)
    _, image = np.unique(np.array(rows["image_id"].to_pylist(), object).astype(str), return_inverse=True)
    bands = {each.class_id: (each.t_hi, each.t_lo, each.t_mask) for each in thresholds.classes}
    missing = sorted(set(class_id.tolist()) - bands.keys())
    if missing:
        raise DatasetError(f"the classes {missing} have no thresholds in the set {thresholds.threshold_set_id}")
    t_hi, t_lo, t_mask = (np.array([bands[k][j] for k in class_id.tolist()], np.float64) for j in range(3))
    size_hw = np.stack([rows["height"].to_numpy(), rows["width"].to_numpy()], axis=1).astype(np.int64)
    boxes = np.array([box or [0, 0, 0, 0] for box in rows["bbox_xywh"].to_pylist()], np.float64)
    area = _floats(rows["mask_area"])
    area = np.where(np.isnan(area), boxes[:, 2] * boxes[:, 3], area)
    return Evidence(
        image=image,
        class_id=class_id,
        score=score,
        score_cal=np.round(scores.apply(class_id, score), 6),
        quality=read,
        quality_cal=np.full(len(score), np.nan) if quality is None else np.round(quality.apply(class_id, read), 6),
        features=measured,
        t_hi=t_hi,
        t_lo=t_lo,
        t_mask=t_mask,
        area=np.rint(area).astype(np.int64),
        area_share=area / size_hw.prod(axis=1),
        masks=rows["mask_rle"].to_pylist(),
        boxes_xywh=boxes,
        size_hw=size_hw,
    )


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.float64()).to_numpy().astype(np.float64)  # null becomes NaN


def _decided(
    rows: pa.Table,
    evidence: Evidence,
    decisions: Decisions,
    thresholds: ThresholdSet,
    calibrations: tuple[Calibration, Calibration | None],
    previous: pa.Table | None,
) -> pa.Table:
    scores, quality = calibrations
    class_id = evidence.class_id.tolist()
    basis = {each.class_id: each.basis for each in thresholds.classes}
    names = zip(*(rows[name].to_pylist() for name in ("run_id", "round", "image_id", "seq")), strict=True)
    links = _links(rows, previous)
    n = rows.num_rows

    def linked(name: str) -> list[Any]:
        return [links[k][name] if k in links else None for k in range(n)]

    decided: dict[str, Any] = {
        "label_id": [str(uuid.uuid5(LABEL_NAMESPACE, "/".join(map(str, name)))) for name in names],
        "score_cal": evidence.score_cal,
        "quality_cal": _nulls(evidence.quality_cal),
        "decision": decisions.decision.tolist(),
        "accept_cls": decisions.accept_cls,
        "accept_box": decisions.accept_box,
        "accept_mask": decisions.accept_mask,
        "reason_code": decisions.reason.tolist(),
        "t_hi": _nulls(evidence.t_hi),
        "t_lo": evidence.t_lo,
        "threshold_set_id": [thresholds.threshold_set_id] * n,
        "threshold_basis": [basis[label] for label in class_id],
        "calibrator_id": [scores.of(label).calibrator_id for label in class_id],
        "quality_calibrator_id": [quality and quality.of(label).calibrator_id for label in class_id],
        "weight_cls": decisions.weight_cls,
        "weight_geom": decisions.weight_geom,
        "sample_weight": decisions.weight_cls,
        "source": ["model"] * n,
        **{name: linked(name) for name in ("prev_round_label_id", "prev_iou", "class_changed")},
    }
    schema = PSEUDO_LABELS.schema
    columns = []
    for field in schema:
        if field.name in decided:
            columns.append(pa.array(decided[field.name], field.type))
        elif field.name in rows.column_names:
            columns.append(rows[field.name])
        else:
            columns.append(pa.nulls(n, field.type))
    return checked(PSEUDO_LABELS, pa.Table.from_arrays(columns, schema=schema))


def _nulls(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float64(), mask=np.isnan(values))


def _links(rows: pa.Table, previous: pa.Table | None) -> dict[int, dict[str, Any]]:
    """For each row: the label of the round before that it overlaps most, where there is one."""
    if previous is None:
        return {}
    before: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in previous.filter(pa.compute.equal(previous["decision"], "accept")).to_pylist():
        if row["mask_rle"] is not None:
            before[row["image_id"]].append(row)
    now: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for k, row in enumerate(rows.select(["image_id", "mask_rle", "class_id", "height", "width"]).to_pylist()):
        if row["mask_rle"] is not None and row["image_id"] in before:
            now[row["image_id"]].append((k, row))
    links = {}
    for image_id, mine in now.items():
        old = before[image_id]
        size = [old[0]["height"], old[0]["width"]]
        rles = [[{"size": size, "counts": row["mask_rle"]} for row in side] for side in ([r for _, r in mine], old)]
        ious = np.asarray(coco_mask.iou(rles[0], rles[1], [0] * len(old)))
        for (k, row), found in zip(mine, ious, strict=True):
            best = int(found.argmax())
            if found[best] >= MIN_PREVIOUS_IOU:
                links[k] = {
                    "prev_round_label_id": old[best]["label_id"],
                    "prev_iou": round(float(found[best]), 6),
                    "class_changed": old[best]["class_id"] != row["class_id"],
                }
    return links


def _images(images: list[Mapping[str, Any]], labels: pa.Table, shared: Mapping[str, Any]) -> pa.Table:
    totals: dict[str, _Total] = {str(image["image_id"]): _Total() for image in images}
    if len(totals) < len(images):
        raise DatasetError("items must be listed once each, some are listed twice")
    columns = ("image_id", "class_id", "class_name", "decision", "score_cal", "score_raw", "mask_rle")
    for image_id, *values in zip(*(labels[name].to_pylist() for name in columns), strict=True):
        if image_id not in totals:
            raise DatasetError(f"items must be listed once each, {image_id} has candidates and is not listed")
        totals[image_id].add(*values)
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

    def add(
        self, class_id: int, class_name: str, decision: str, score_cal: float, score_raw: float, mask: bytes | None
    ) -> None:
        """One candidate, in the order of their positions."""
        self._decisions[decision] += 1
        self._accepted[class_name] += decision == "accept"
        self._uncovered += score_cal if decision == "ignore" else 0.0
        self._digest.update(f"{class_id} {score_raw!r} ".encode() + (mask or b"") + b"\n")

    def columns(self) -> dict[str, Any]:
        """The columns of ``pseudo_images.v1`` that are sums."""
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
    rows = selection.accepted.select(["label_id", "sample_weight"]).to_pylist()
    lines = sorted(f"{row['label_id']} {row['sample_weight']:.6f}" for row in rows)
    digest = hashlib.sha256(f"human {label_set_id} {splits_manifest_sha256}\n".encode())
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def changed_share(before: Selection | None, after: Selection) -> float:
    """Share of what is accepted that is new or gone since the round before, for the stopping rule; 1 in the first.

    Objects are the same if they overlap by half and have one class; of semantic segmentation pixels are compared.
    """
    if before is None or before.accepted.num_rows == 0:
        return 1.0
    semantic = before.accepted["task"][0].as_py() == "semantic"
    kept, total = (_kept_pixels if semantic else _kept_objects)(before.accepted, after.accepted)
    return 1.0 - kept / total if total else 0.0


def _kept_objects(before: pa.Table, after: pa.Table) -> tuple[int, int]:
    kept = sum(
        link is not None and iou >= 0.5 and not changed
        for link, iou, changed in zip(
            *(after[name].to_pylist() for name in ("prev_round_label_id", "prev_iou", "class_changed")),
            strict=True,
        )
    )
    return kept, before.num_rows + after.num_rows - kept


def _kept_pixels(before: pa.Table, after: pa.Table) -> tuple[int, int]:
    """Pixels that were accepted twice with one class, and those that were accepted at all."""
    regions: dict[tuple[str, int], tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
    areas = 0
    for side, table in enumerate((before, after)):
        columns = ("image_id", "class_id", "height", "width", "mask_rle", "mask_area")
        for image_id, class_id, height, width, mask, area in zip(*(table[c].to_pylist() for c in columns), strict=True):
            regions[image_id, class_id][side].append({"size": [height, width], "counts": mask})
            areas += area
    kept = 0
    for ours, theirs in regions.values():
        if ours and theirs:
            merged = [coco_mask.merge(ours), coco_mask.merge(theirs)]
            kept += int(coco_mask.area(coco_mask.merge(merged, intersect=True)))
    return kept, areas - kept


def candidates_digest(candidates: pa.Table) -> str:
    """Names the input of a selection: the same candidates in any order have the same digest."""
    return content_digest(candidates.sort_by([("image_id", "ascending"), ("seq", "ascending")]))
