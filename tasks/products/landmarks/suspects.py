"""Points that are probably in the wrong place: far from where a model sees them, and where it sees nothing of them.

Errors are shares of the object's size, the diagonal of its labelled box. A model that gives maps is asked what it sees
at the labelled place, too: where a point is ambiguous (the leftmost one of an upright stroke) it names one place and
sees another as well; an error of a person lies where it sees nothing at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.errors import UsageError
from tasks.evaluation.claims import ObjectEvidence
from tasks.evaluation.object_suspects import object_suspects
from tasks.evaluation.suspects import doubts, folds_of
from tasks.labels.label_sets import LabelSet
from tasks.product import Suspect, Suspects
from tasks.products.landmarks.in_boxes import Row
from tasks.products.landmarks.pairs import ObjectPairs, PointEvidence, pairs_of

_USUAL, _LIMITS = 6.0, (0.05, 0.3)
"""A point is far off from six times the usual error on, if that is between these shares of an object's size."""
_UNSEEN = (0.02, 0.01, 0.005)  # of a map whose peak may be 1: at a place with less nothing is seen
_FARTHER = (1.0, 0.66, 0.5)  # how far off counts as near, over how far off a point is, for models without maps
_WORTH = 0.5  # points are told whose probability is at least this share of the object's
POINT_OFF, SWAPPED = "point far off", "points swapped"


@dataclass(frozen=True, slots=True)
class _Compared:
    """Labelled objects beside what was found of them: n objects of K points.

    Args:
        pairs: these.
        sizes: (n,) pixels. off: (n, K) how far the two are apart over them; NaN where either does not say.
        support: (n, K) what the model sees at the labelled places; None of models that cannot say.
    """

    pairs: ObjectPairs
    sizes: np.ndarray
    off: np.ndarray
    support: np.ndarray | None


def point_suspects(evidence: PointEvidence | ObjectEvidence) -> Suspects:
    """The objects with points that a model disagrees with; of a model without points, as of any that finds objects.

    Raises:
        DatasetError: a single labelled image.
        UsageError: a model that says of no point how sure it is.
    """
    if isinstance(evidence, ObjectEvidence):
        return object_suspects(evidence)
    rows, folds = evidence.labels.table.to_pylist(), folds_of(evidence.labels)
    compared, notes = _compare(evidence, rows)
    known = np.isfinite(compared.off)
    if len(compared.pairs.scores[known]) > 1 and np.ptp(compared.pairs.scores[known]) == 0:
        raise UsageError(
            f"{evidence.model} says of no point how sure it is, so its doubts are worth nothing",
            hint="Judge the labels with a model that gives heatmaps, such as heatmap_landmarker.",
        )
    far = float(np.clip(_USUAL * np.median(compared.off[known]), *_LIMITS)) if known.any() else _LIMITS[1]
    near = compared.off[known] < far
    if compared.support is None:
        agreement, levels = far / np.maximum(compared.off[known], far), _FARTHER
    else:
        agreement, levels = compared.support[known], _UNSEEN
    probability = np.zeros(known.shape)
    parts = np.repeat(folds[compared.pairs.image][:, None], known.shape[1], 1)[known]
    probability[known] = doubts(compared.pairs.scores[known], np.where(near, 1.0, agreement), levels, parts)
    told = (
        _told(k, compared, probability[k], far, rows, evidence.labels)
        for k in np.flatnonzero(probability.max(1)).tolist()
    )
    ordered = sorted(told, key=lambda each: (-each.probability, -each.facts["points"][0]["score"], each.image_id))
    return Suspects(tuple(ordered), (), notes)


def _compare(evidence: PointEvidence, rows: Sequence[Row]) -> tuple[_Compared, tuple[str, ...]]:
    pairs = pairs_of(evidence, rows)
    support = None if evidence.supports is None else np.concatenate(evidence.supports).astype(np.float64)
    left = f"{pairs.not_found} labelled objects were not found, so that nothing is said of their points"
    sizes = np.linalg.norm(pairs.boxes_xyxy[:, 2:] - pairs.boxes_xyxy[:, :2], axis=1)
    off = np.linalg.norm(pairs.true_xyv[..., :2] - pairs.found_xy, axis=2) / sizes[:, None]
    off = np.where(pairs.true_xyv[..., 2] > 0, off, np.nan)
    return _Compared(pairs, sizes, off, support), (left,) if pairs.not_found else ()


def _told(
    k: int, compared: _Compared, probability: np.ndarray, far: float, rows: Sequence[Row], labels: LabelSet
) -> Suspect:
    """An object of which the points with these probabilities (K,) are doubted."""
    assert labels.points is not None
    row, place, names = rows[int(compared.pairs.image[k])], int(compared.pairs.place[k]), labels.points.names
    doubted = [
        p for p in np.argsort(-probability, kind="stable").tolist() if probability[p] >= _WORTH * probability.max()
    ]
    points = [
        {
            "point": names[p], "probability": round(float(probability[p]), 4),
            "off": round(float(compared.off[k, p]), 4), "score": round(float(compared.pairs.scores[k, p]), 4),
            "model_xy": [round(float(value), 2) for value in compared.pairs.found_xy[k, p]],
        }
        for p in doubted
    ]  # fmt: skip
    x0, y0, x1, y1 = (float(value) for value in row["boxes_xyxy"][place])
    swapped = _swapped(compared, k, doubted, far)
    words = "; ".join(
        f"{each['point']}: {each['off']:.2f} of the size away (score {each['score']:.2f})" for each in points
    )
    if swapped is not None:
        words = f"the model sees {names[swapped[0]]} and {names[swapped[1]]} in each other's place"
    facts: dict[str, Any] = {"points": points}
    if swapped is not None:
        facts["swapped"] = [names[p] for p in swapped]
    return Suspect(
        image_id=row["image_id"], uri=row["uri"], frame=row["frame"] if row["media"] == "video" else None, object=place,
        origin_id=row["origin_ids"][place], name=row["names"][place], wrong=POINT_OFF if swapped is None else SWAPPED,
        words=words, probability=round(float(probability.max()), 4), box_xyxy=(x0, y0, x1, y1), facts=facts,
    )  # fmt: skip


def _swapped(compared: _Compared, k: int, doubted: Sequence[int], far: float) -> tuple[int, int] | None:
    """Two points of which each lies where the model sees the other; None: there are no such two."""
    labelled, found = compared.pairs.true_xyv[k, :, :2], compared.pairs.found_xy[k]
    for one in doubted:
        for other in range(len(found)):
            if compared.pairs.true_xyv[k, other, 2] > 0 and compared.off[k, other] >= far:
                crossed = labelled[[one, other]] - found[[other, one]]
                if (np.linalg.norm(crossed, axis=1) < far * compared.sizes[k]).all():
                    return min(one, other), max(one, other)
    return None
