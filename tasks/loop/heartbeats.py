"""Signs of a loop that goes wrong, each a criterion of the gate: too many objects, another class mix, lost labels.

And a student that learns from machines more than from people, or a teacher whose doubts are not what they were on
held-out labels or a round ago: nobody has to look at the gate set to see these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from scipy.special import entr

from tasks.loop.gate import Criterion
from tasks.loop.kinds import loop_kind
from tasks.loop.selection import floats
from tasks.loop.thresholds import Rate

MAX_RATE = 2.0
MAX_DIVERGENCE = 0.1
MAX_LOSS_RATIO = 1.5
"""The cap holds the unlabelled loss of a step at twice the supervised one: near it pseudo-labels lead all the time."""
MAX_ENTROPY_FACTOR = 1.5

SUPERVISED, PSEUDO = "labelled", "unlabelled"
_PSEUDO_PREFIX = "unlabelled_"  # modelkit.training.student.UNLABELLED, whose module brings torch
_NO_LOSS = frozenset({"step", "norm", "rate"})


def rate_heartbeats(rates: Sequence[Rate]) -> list[Criterion]:
    """The largest accepted rate: more than twice the objects that the labels make expect is refused."""
    if not rates:
        return [Criterion("heartbeat: accepted rate", None, "<=", MAX_RATE, "no class has a threshold")]
    worst = max(rates, key=lambda rate: rate.ratio)
    return [Criterion("heartbeat: accepted rate", worst.ratio, "<=", MAX_RATE, f"class {worst.name}")]


def class_mix_heartbeat(before: Mapping[str, int], after: Mapping[str, int]) -> Criterion:
    """Jensen-Shannon divergence (base 2, in [0, 1]) of the accepted class histograms of two rounds."""
    value = js_divergence(before, after) if sum(before.values()) and sum(after.values()) else None
    return Criterion("heartbeat: change of the class mix", value, "<=", MAX_DIVERGENCE, "Jensen-Shannon, base 2")


def losses_by_kind(history: Sequence[Mapping[str, float]]) -> dict[str, list[tuple[float, float]]]:
    """The curve in a model's lineage as (step, sum of losses) by kind of labels; of pseudo-labels what counted."""
    losses: dict[str, list[tuple[float, float]]] = {}
    for point in history:
        sums: dict[str, float] = {}
        for name, value in point.items():
            if name not in _NO_LOSS:
                kind = PSEUDO if name.startswith(_PSEUDO_PREFIX) else SUPERVISED
                sums[kind] = sums.get(kind, 0.0) + value
        for kind, value in sums.items():
            losses.setdefault(kind, []).append((point["step"], value))
    return losses


def loss_heartbeat(history: Sequence[Mapping[str, float]]) -> Criterion:
    """Unlabelled over supervised loss of the student, as they counted: means over the later half of the recorded steps
    in which pseudo-labels did count."""
    losses = losses_by_kind(history)
    pseudo = dict(losses.get(PSEUDO, []))
    steps = sorted(step for step, value in pseudo.items() if value > 0)
    later = steps[len(steps) // 2 :]
    supervised = dict(losses.get(SUPERVISED, []))
    below = sum(supervised.get(step, 0.0) for step in later)
    value = sum(pseudo[step] for step in later) / below if below > 0 else None
    reason = f"over {len(later)} recorded steps" if later else "no recorded step had a loss of pseudo-labels"
    return Criterion("heartbeat: unlabelled over supervised loss", value, "<=", MAX_LOSS_RATIO, reason)


def prediction_entropy(candidates: pa.Table) -> float | None:
    """Mean entropy in bits of "this prediction is right or wrong", at the confidence that the teacher states.

    Args:
        candidates: ``candidates.v2``, or any table with its columns, of one kind.

    Returns:
        In [0, 1]; None without candidates.
    """
    if candidates.num_rows == 0:
        return None
    kind = loop_kind(candidates["kind"][0].as_py())
    p, weights = kind.confidence(candidates["score"].to_numpy()), np.ones(candidates.num_rows)
    if kind.amount is not None:
        weights = floats(candidates[kind.amount])
    return float(np.average(entr(p) + entr(1 - p), weights=weights) / np.log(2))


def entropy_heartbeat(against: str, here: float | None, there: float | None) -> Criterion:
    """How many times more, or less, doubt the teacher has on unlabelled items than it had elsewhere.

    More is what another domain looks like, less a model that only agrees with itself.

    Args:
        against: the other place, in words.
        here, there: :func:`prediction_entropy` here and there; None or 0 can't be compared.
    """
    name = f"heartbeat: entropy of predictions on unlabelled items against {against}"
    if not here or not there:
        return Criterion(name, None, "<=", MAX_ENTROPY_FACTOR, "no predictions, or none with any doubt")
    factor = max(here / there, there / here)
    return Criterion(name, factor, "<=", MAX_ENTROPY_FACTOR, f"{here:.3f} bits, there {there:.3f}; either way")


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
