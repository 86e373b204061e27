"""Candidates, matches and thresholds for tests of the decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.evaluation.calibrators import Calibrator
from tasks.loop.calibration import Calibration
from tasks.loop.matching import Matches
from tasks.loop.schemas import CANDIDATES
from tasks.loop.thresholds import ClassThreshold, ThresholdSet
from tasks.output.tables import table_of
from tasks.products.segments.loop_candidates import COLUMNS
from tests.tasks.loop.scenes import SIZE_HW, rectangle

TEACHER = {
    "teacher_model_id": "teacher@1",
    "teacher_weights_sha256": "aa" * 32,
    "teacher_round": 0,
    "class_map_sha256": "cc" * 32,
    "code_commit": "c0ffee",
    "config_sha256": "dd" * 32,
    "tta_spec": "[]",
}
NAMES = {1: "disc", 2: "box", 3: "star"}


def candidate(image: str, seq: int, score: float, box: Sequence[int], label: int = 1, **more: Any) -> dict[str, Any]:
    """A candidate with a filled rectangle for a mask; ``box`` is x0, y0, x1, y1."""
    x0, y0, x1, y1 = box
    return {
        **TEACHER,
        "run_id": "run-1",
        "round": 1,
        "image_id": image,
        "seq": seq,
        "uri": image,
        "width": SIZE_HW[1],
        "height": SIZE_HW[0],
        "group_id": image,
        "media": "image",
        "frame": 0,
        "split": "unlabelled",
        "kind": "instance",
        "label": label,
        "name": NAMES.get(label, "background"),
        "score": score,
        "box_xyxy": [x0, y0, x1, y1],
        "rle": rectangle(x0, y0, x1, y1),
        "area": (x1 - x0) * (y1 - y0),
        **more,
    }


def candidates(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """``candidates.v2`` with the columns of segments."""
    return table_of(CANDIDATES, rows, COLUMNS)


def identity() -> Calibration:
    """Scores mean what they say."""
    return Calibration({}, Calibrator(None, (0.0, 1.0), (0.0, 1.0), 10, "score", "true positive", 0.0, 0.0))


def thresholds(
    t_hi: dict[int, float | None], *, t_lo: float = 0.2, t_quality: float | None = 0.75, model: str = "teacher@1"
) -> ThresholdSet:
    """Thresholds by class id; None abstains."""
    classes = tuple(
        ClassThreshold(
            label=label,
            name=NAMES[label],
            basis="abstain" if value is None else "class",
            target_precision=0.9,
            t_hi=value,
            t_lo=0.05 if value is None else t_lo,
            lower_bound=None,
            n_calibration=100,
            n_accepted=0,
            n_correct=0,
            truth_per_image=1.0,
            coverage=0.5,
            t_quality=t_quality,
            note="test",
        )
        for label, value in sorted(t_hi.items())
    )
    return ThresholdSet(model, 1, "manifest", classes)


def matches_of(
    scores: Sequence[float] | np.ndarray,
    correct: Sequence[bool] | np.ndarray,
    *,
    label: int = 1,
    image: np.ndarray | None = None,
    truth: int | None = None,
) -> Matches:
    """Matches of one class, each candidate in an image of its own unless told."""
    n = len(scores)
    right = np.asarray(correct, bool)
    return Matches(
        image=np.arange(n) if image is None else image,
        label=np.full(n, label),
        score=np.asarray(scores, np.float64),
        iou=np.where(right, 0.9, 0.2),
        correct=right,
        row=np.arange(n),
        image_ids=tuple(f"i{k}" for k in range(n)),
        truth_count={label: n if truth is None else truth},
    )


def joined(*parts: Matches) -> Matches:
    """Matches of several classes."""
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in
               ("image", "label", "score", "iou", "correct", "row")}  # fmt: skip
    truth = {label: count for part in parts for label, count in part.truth_count.items()}
    return Matches(**columns, image_ids=max((part.image_ids for part in parts), key=len), truth_count=truth)
