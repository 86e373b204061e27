"""Are accepted labels right? A random sample, stratified by class, judged by people, or by truth that was hidden."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from modelkit import rle
from tasks.loop.gate import Audit
from tasks.loop.matching import CLASS_IOU, match_candidates
from tasks.loop.pixels import VOID, truth_map
from tasks.loop.schemas import AUDITS
from tasks.loop.thresholds import ThresholdSet, audit_bound
from tasks.output.layout import canonical_json
from tasks.output.tables import table_of


def draw_audit(accepted: pa.Table, n: int, *, seed: int) -> pa.Table:
    """A sample of accepted rows: as many of each class as its share (by largest remainders), without replacement.

    Args:
        accepted: ``pseudo_labels.v1``.
        n: rows to draw; all of them if there are fewer.
        seed: the same seed draws the same rows, whatever their order.
    """
    rows = accepted.sort_by("label_id")
    if rows.num_rows <= n:
        return rows
    classes = rows["class_id"].to_numpy()
    labels, counts = np.unique(classes, return_counts=True)
    exact = counts * n / len(classes)
    quota = np.floor(exact).astype(int)
    quota[np.argsort(-(exact - quota), kind="stable")[: n - quota.sum()]] += 1
    rng = np.random.default_rng(seed)
    chosen = [
        rng.choice(np.flatnonzero(classes == label), k, replace=False) for label, k in zip(labels, quota, strict=True)
    ]
    return rows.take(pa.array(np.sort(np.concatenate(chosen))))


def verdicts_by_truth(accepted: pa.Table, truth: pa.Table) -> dict[str, bool]:
    """label_id -> right, for accepted objects on images whose truth was hidden from the loop.

    Right is class and IoU .5 in COCO's greedy match of all accepted rows. Rows on crowds or void have no verdict.

    Args:
        accepted: all accepted rows of these images, not a sample: a duplicate must find its object taken.
        truth: ``labels.v1`` of the images.
    """
    matches = match_candidates(accepted, truth, limit=CLASS_IOU)
    names = accepted["label_id"].to_pylist()
    return {names[row]: bool(right) for row, right in zip(matches.row.tolist(), matches.correct.tolist(), strict=True)}


def look_at_objects(accepted: pa.Table, truth: pa.Table, n: int, *, seed: int) -> dict[str, bool]:
    """label_id -> right, of a sample of accepted objects; those on crowds or void have no verdict.

    Args:
        accepted: ``pseudo_labels.v1`` of the images of ``truth``, all accepted rows of them.
        truth: ``labels.v1``.
        n, seed: of :func:`draw_audit`.
    """
    verdicts = verdicts_by_truth(accepted, truth)
    sample = draw_audit(accepted, n, seed=seed)
    return {name: verdicts[name] for name in sample["label_id"].to_pylist() if name in verdicts}


def look_at_pixels(
    accepted: pa.Table, truth: pa.Table, n: int, *, background: int | None, seed: int
) -> dict[str, bool]:
    """label_id -> right, of a sample of accepted regions, each judged by one of its pixels.

    Regions are drawn by class, as many as its share of the accepted pixels, and within a class by their areas; so what
    is estimated is the precision of pixels, which is what the thresholds promise. Void pixels have no verdict.

    Args:
        accepted, truth, n, seed: see :func:`look_at_objects`.
        background: class of the pixels that no object covers; None: they are void.
    """
    rows = accepted.sort_by("label_id").to_pylist()
    area, classes = (np.array([row[name] for row in rows]) for name in ("mask_area", "class_id"))
    maps = {row["image_id"]: truth_map(row, background) for row in truth.to_pylist()}
    rng = np.random.default_rng(seed)
    looked: dict[str, bool] = {}
    for label in np.unique(classes).tolist():
        mine = np.flatnonzero((classes == label) & (area > 0))
        quota = min(len(mine), math.ceil(n * area[mine].sum() / area.sum()))
        for k in np.sort(rng.choice(mine, quota, replace=False, p=area[mine] / area[mine].sum())).tolist():
            row, true_map = rows[k], maps[rows[k]["image_id"]]
            inside = np.flatnonzero(rle.decode(row["mask_rle"], true_map.shape))
            true_class = int(true_map.ravel()[rng.choice(inside)])
            if true_class != VOID:
                looked[row["label_id"]] = true_class == label
    return looked


def precision_by_class(accepted: pa.Table, verdicts: Mapping[str, bool]) -> dict[str, tuple[int, int]]:
    """Class name -> (right, judged)."""
    judged: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for label_id, name in zip(accepted["label_id"].to_pylist(), accepted["class_name"].to_pylist(), strict=True):
        if label_id in verdicts:
            judged[name] += 1
            right[name] += verdicts[label_id]
    return {name: (right[name], judged[name]) for name in sorted(judged)}


def audit_of(accepted: pa.Table, verdicts: Mapping[str, bool], thresholds: ThresholdSet) -> Audit:
    """The audit for the gate: the promise is the mean of the classes' promises, weighted as they were looked at."""
    found = precision_by_class(accepted, verdicts)
    promised = {each.class_name: each.target_precision for each in thresholds.classes}
    n = sum(judged for _, judged in found.values())
    errors = n - sum(right for right, _ in found.values())
    mean = sum(promised[name] * judged for name, (_, judged) in found.items()) / n if n else 0.0
    return Audit(n=n, errors=errors, promised=round(mean, 6))


def audit_table(
    accepted: pa.Table, verdicts: Mapping[str, bool], *, train_set_id: str, reviewers: Sequence[str]
) -> pa.Table:
    """Rows of ``audits.v1``: one per class, and one for all together.

    Args:
        accepted: all accepted rows of the round: the frame that was drawn from.
        verdicts: of the rows that were looked at.
    """
    frame = Counter(accepted["class_name"].to_pylist())
    found: dict[str | None, tuple[int, int]] = dict(precision_by_class(accepted, verdicts).items())
    found[None] = (sum(right for right, _ in found.values()), sum(judged for _, judged in found.values()))
    named = canonical_json([train_set_id, sorted(verdicts.items()), list(reviewers)])
    shared = {
        "audit_id": hashlib.sha256(named).hexdigest()[:32],
        "run_id": accepted["run_id"][0].as_py(),
        "round": accepted["round"][0].as_py(),
        "train_set_id": train_set_id,
        "reviewers": list(reviewers),
    }
    rows = [
        {
            **shared,
            "class_name": name,
            "n_frame": accepted.num_rows if name is None else frame[name],
            "n": judged,
            "n_errors": judged - right,
            "lower_bound": audit_bound(judged, judged - right) if judged else 0.0,
        }
        for name, (right, judged) in found.items()
    ]
    return table_of(AUDITS, rows)
