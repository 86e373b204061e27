"""Are accepted labels right? A random sample, stratified by class, judged by people, or by truth that was hidden."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from tasks.loop.gate import Audit
from tasks.loop.schemas import AUDITS
from tasks.loop.thresholds import ThresholdSet, audit_bound
from tasks.output.layout import canonical_json
from tasks.output.tables import table_of


def draw_audit(accepted: pa.Table, n: int, *, seed: int) -> pa.Table:
    """A sample of accepted rows: as many of each class as its share (by largest remainders), without replacement.

    Args:
        accepted: ``pseudo_labels.v2``.
        n: rows to draw; all of them if there are fewer.
        seed: the same seed draws the same rows, whatever their order.
    """
    rows = accepted.sort_by("label_id")
    if rows.num_rows <= n:
        return rows
    classes = rows["label"].to_numpy()
    labels, counts = np.unique(classes, return_counts=True)
    exact = counts * n / len(classes)
    quota = np.floor(exact).astype(int)
    quota[np.argsort(-(exact - quota), kind="stable")[: n - quota.sum()]] += 1
    rng = np.random.default_rng(seed)
    chosen = [
        rng.choice(np.flatnonzero(classes == label), k, replace=False) for label, k in zip(labels, quota, strict=True)
    ]
    return rows.take(pa.array(np.sort(np.concatenate(chosen))))


def precision_by_class(accepted: pa.Table, verdicts: Mapping[str, bool]) -> dict[str, tuple[int, int]]:
    """Class name -> (right, judged)."""
    judged: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for label_id, name in zip(accepted["label_id"].to_pylist(), accepted["name"].to_pylist(), strict=True):
        if label_id in verdicts:
            judged[name] += 1
            right[name] += verdicts[label_id]
    return {name: (right[name], judged[name]) for name in sorted(judged)}


def audit_of(accepted: pa.Table, verdicts: Mapping[str, bool], thresholds: ThresholdSet) -> Audit:
    """The audit for the gate: the promise is the mean of the classes' promises, weighted as they were looked at."""
    found = precision_by_class(accepted, verdicts)
    promised = {each.name: each.target_precision for each in thresholds.classes}
    n = sum(judged for _, judged in found.values())
    errors = n - sum(right for right, _ in found.values())
    mean = sum(promised[name] * judged for name, (_, judged) in found.items()) / n if n else 0.0
    return Audit(n=n, errors=errors, promised=round(mean, 6))


def audit_table(
    accepted: pa.Table, verdicts: Mapping[str, bool], *, train_set_id: str, reviewers: Sequence[str]
) -> pa.Table:
    """Rows of ``audits.v2``: one per class, and one for all together.

    Args:
        accepted: all accepted rows of the round: the frame that was drawn from.
        verdicts: of the rows that were looked at.
    """
    frame = Counter(accepted["name"].to_pylist())
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
            "name": name,
            "n_frame": accepted.num_rows if name is None else frame[name],
            "n": judged,
            "n_errors": judged - right,
            "lower_bound": audit_bound(judged, judged - right) if judged else 0.0,
        }
        for name, (right, judged) in found.items()
    ]
    return table_of(AUDITS, rows)
