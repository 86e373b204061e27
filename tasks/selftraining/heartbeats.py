"""Signs of a loop that goes wrong, each a criterion of the gate: too many objects, another class mix, lost labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from tasks.selftraining.gate import Criterion
from tasks.selftraining.thresholds import Rate

MAX_RATE = 2.0
MAX_DIVERGENCE = 0.1


def rate_heartbeats(rates: Sequence[Rate]) -> list[Criterion]:
    """The largest accepted rate: more than twice the objects that the labels make expect is refused."""
    if not rates:
        return [Criterion("heartbeat: accepted rate", None, "<=", MAX_RATE, "no class has a threshold")]
    worst = max(rates, key=lambda rate: rate.ratio)
    return [Criterion("heartbeat: accepted rate", worst.ratio, "<=", MAX_RATE, f"class {worst.class_name}")]


def class_mix_heartbeat(before: Mapping[str, int], after: Mapping[str, int]) -> Criterion:
    """Jensen-Shannon divergence (base 2, in [0, 1]) of the accepted class histograms of two rounds."""
    value = js_divergence(before, after) if sum(before.values()) and sum(after.values()) else None
    return Criterion("heartbeat: change of the class mix", value, "<=", MAX_DIVERGENCE, "Jensen-Shannon, base 2")


def js_divergence(before: Mapping[str, int], after: Mapping[str, int]) -> float:
    """0 for equal histograms, 1 for disjoint ones."""
    names = sorted(before.keys() | after.keys())
    p, q = (np.array([counts.get(name, 0) for name in names], np.float64) for counts in (before, after))
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2

    def against_middle(part: np.ndarray) -> float:
        there = part > 0
        return float((part[there] * np.log2(part[there] / middle[there])).sum())

    return 0.5 * against_middle(p) + 0.5 * against_middle(q)


def labels_without_lineage(accepted: pa.Table, models: pa.Table, threshold_sets: pa.Table) -> int:
    """Accepted rows whose teacher (by id and digest) or threshold set is not recorded."""
    known = set(zip(models["model_id"].to_pylist(), models["weights_sha256"].to_pylist(), strict=True))
    sets = set(threshold_sets["threshold_set_id"].to_pylist())
    columns = (
        accepted[name].to_pylist() for name in ("teacher_model_id", "teacher_weights_sha256", "threshold_set_id")
    )
    return sum((model, digest) not in known or named not in sets for model, digest, named in zip(*columns, strict=True))
