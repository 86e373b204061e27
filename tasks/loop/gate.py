"""The gate: a candidate replaces the champion only if every criterion holds; each is stored with value and limit.

| criterion | holds when |
|---|---|
| better | paired bootstrap on the gate set: P(difference > 0) >= 1 - .05 / R_max, and the difference matters |
| classes | no class with enough truth falls significantly (Holm) by more than max(2 AP, 2 standard errors) |
| sizes | AP of small, medium and large objects fall by no more than 1 AP |
| calibration | D-ECE <= .10, and at most .02 worse than the champion's |
| audit | 103 or more accepted labels looked at; lower bound of their precision >= promise - .05 |
| leakage, lineage | nothing of calibration, gate or test is unlabelled; every label leads to its teacher |
| heartbeats | accepted rate, peak mass, loss ratio, entropy, class histogram: all within their limits |
| baseline | better than the supervised model with the same budget, which trained on every label the loop used |
| looks | the gate set was not looked at more often than the level was divided for |

What could not be measured does not hold: no class with enough truth to be watched, or fewer groups in the gate set than
could show a gain at that level even if every one of them gains.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import math
import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from scipy.stats import norm

from tasks.evaluation.bootstrap import PairedDifference
from tasks.loop.certified import lower_bound
from tasks.loop.schemas import VERDICTS
from tasks.output.layout import canonical_json
from tasks.output.tables import table_of

RELATIONS = (">", ">=", "<=", "==")
LOOKED_AT = "audit: labels looked at"


@dataclass(frozen=True, slots=True)
class GateLimits:
    """What is demanded; AP and shares in [0, 1].

    Args:
        max_rounds: looks at the gate set that the level is divided for (R_max).
        level: chance of a false promotion over all looks.
        min_gain: difference that matters: .003 at scale, .01 on small gate sets.
        class_fall, class_errors: a class may fall by the larger of both (the second in standard errors).
        size_fall: AP by size may fall by this much.
        d_ece, d_ece_worse: calibration error, and how much worse than the champion's.
        audit_labels, audit_slack: labels looked at; how far below the promise their lower bound may lie.
    """

    max_rounds: int = 3
    level: float = 0.05
    min_gain: float = 0.003
    class_fall: float = 0.02
    class_errors: float = 2.0
    size_fall: float = 0.01
    d_ece: float = 0.10
    d_ece_worse: float = 0.02
    audit_labels: int = 103
    audit_slack: float = 0.05

    @property
    def level_per_look(self) -> float:
        """The level that one look may spend."""
        return self.level / self.max_rounds

    @property
    def fewest_groups(self) -> int:
        """Fewer groups may all gain by chance more often than that level: each of them does so half of the time."""
        return math.ceil(-math.log2(self.level_per_look))


@dataclass(frozen=True, slots=True)
class Criterion:
    """One thing that was asked. ``value`` is None when it could not be measured; then it does not hold."""

    name: str
    value: float | None
    relation: str
    limit: float
    reason: str = ""

    def __post_init__(self) -> None:
        if self.relation not in RELATIONS:
            raise ValueError(f"relation must be one of {RELATIONS}, got {self.relation!r}")

    @property
    def passed(self) -> bool:
        """Whether it holds."""
        if self.value is None or math.isnan(self.value):
            return False
        compare = {">": operator.gt, ">=": operator.ge, "<=": operator.le, "==": operator.eq}[self.relation]
        return bool(compare(self.value, self.limit))


@dataclass(frozen=True, slots=True)
class Audit:
    """Verdicts on a random sample of accepted labels, stratified by class."""

    n: int
    errors: int
    promised: float  # the precision that the thresholds promise, of the classes together


@dataclass(frozen=True, slots=True)
class GateInputs:
    """What was measured on the gate set, and the state of the round.

    Args:
        against_champion, against_baseline: paired differences; None where that model does not exist. Without a champion
            (round 0) only the other criteria are asked; without a baseline the gate does not open.
        groups: that the gate set consists of; resamples draw whole ones.
        watched: names of the classes with enough truth in the gate set (``LoopMethods.watched``).
        least_truth: how much that is, in words.
        d_ece, champion_d_ece: calibrated, on the gate set.
        audit: None if nobody looked.
        leaks: items that touch calibration, gate or test and got pseudo-labels all the same.
        labels_without_lineage: accepted rows that do not lead to their teacher.
        heartbeats: name, value, relation and limit of each.
        looks_used: looks at the gate set, this one included.
    """

    against_champion: PairedDifference | None
    against_baseline: PairedDifference | None
    groups: int
    watched: Collection[str]
    least_truth: str
    d_ece: float
    champion_d_ece: float | None
    audit: Audit | None
    leaks: int
    labels_without_lineage: int
    heartbeats: Sequence[Criterion]
    looks_used: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate said, and why."""

    run_id: str
    round: int
    champion_id: str | None
    candidate_id: str
    criteria: tuple[Criterion, ...]
    decided_at: dt.datetime
    level_spent: float = field(default=0.0)

    @property
    def promoted(self) -> bool:
        """Whether all criteria hold."""
        return all(each.passed for each in self.criteria)

    @property
    def reasons(self) -> tuple[str, ...]:
        """The criteria that do not hold, in words."""
        return tuple(_words(each) for each in self.criteria if not each.passed)

    @property
    def verdict_id(self) -> str:
        """Digest of everything but the time, hex."""
        criteria = [[each.name, each.value, each.relation, each.limit] for each in self.criteria]
        content = [self.run_id, self.round, self.champion_id, self.candidate_id, _finite(criteria)]
        return hashlib.sha256(canonical_json(content)).hexdigest()[:32]

    def to_table(self) -> pa.Table:
        """Rows of ``verdicts.v1``, one per criterion."""
        shared = {
            "verdict_id": self.verdict_id,
            "run_id": self.run_id,
            "round": self.round,
            "champion_id": self.champion_id,
            "candidate_id": self.candidate_id,
            "promoted": self.promoted,
            "decided_at": self.decided_at,
        }
        rows = [
            {**shared, "criterion": each.name, "passed": each.passed, "value": _number(each.value),
             "demanded": each.limit, "relation": each.relation, "reason": each.reason or _words(each)}
            for each in self.criteria
        ]  # fmt: skip
        return table_of(VERDICTS, rows)


def _words(each: Criterion) -> str:
    value = "not measured" if _number(each.value) is None else f"{each.value:.4g}"
    text = f"{each.name}: {value}, must be {each.relation} {each.limit:.4g}"
    return f"{text} ({each.reason})" if each.reason else text


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _finite(value: object) -> object:
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def judge(
    inputs: GateInputs,
    limits: GateLimits,
    *,
    run_id: str,
    round_number: int,
    champion_id: str | None,
    candidate_id: str,
    decided_at: dt.datetime,
) -> Verdict:
    """Ask every criterion; also those after a failure, so that the record is whole."""
    criteria = [
        *_better(inputs, limits, champion_id),
        *_classes(inputs, limits),
        *_sizes(inputs.against_champion, limits),
        *_calibration(inputs, limits),
        *_audit(inputs.audit, limits),
        Criterion("leakage: unlabelled items of other splits", float(inputs.leaks), "==", 0.0),
        Criterion("lineage: labels without a teacher", float(inputs.labels_without_lineage), "==", 0.0),
        *inputs.heartbeats,
        _baseline(inputs.against_baseline),
        Criterion("looks at the gate set", float(inputs.looks_used), "<=", float(limits.max_rounds)),
    ]
    spent = limits.level_per_look * inputs.looks_used
    return Verdict(run_id, round_number, champion_id, candidate_id, tuple(criteria), decided_at, spent)


def _better(inputs: GateInputs, limits: GateLimits, champion_id: str | None) -> list[Criterion]:
    if champion_id is None:
        return []
    found, sure = inputs.against_champion, 1.0 - limits.level_per_look
    probability, difference = (None, None) if found is None else (found.probability, found.difference)
    words = "paired bootstrap on the gate set"
    if inputs.groups < limits.fewest_groups:
        probability = None
        words = f"{inputs.groups} groups cannot show it, however large the gain: {limits.fewest_groups} could"
    return [
        Criterion("better: probability of a gain", probability, ">=", sure, words),
        Criterion("better: gain over the champion", difference, ">=", limits.min_gain),
    ]


def _classes(inputs: GateInputs, limits: GateLimits) -> list[Criterion]:
    """The worst class that falls significantly: by how much more than it may."""
    found = inputs.against_champion
    if found is None:
        return []
    title = "classes: fall beyond what is allowed"
    names = [name for name in found.class_names if name in inputs.watched]
    place = [found.class_names.index(name) for name in names]
    difference, error = found.class_difference[place], found.class_error[place]
    there = ~np.isnan(difference)
    falls = significant_falls(difference[there], error[there], limits.level)
    allowed = np.maximum(limits.class_fall, limits.class_errors * error[there])
    excess = np.where(falls, -difference[there] - allowed, -np.inf)
    if not len(excess):
        return [Criterion(title, None, "<=", 0.0, f"no class has {inputs.least_truth} in the gate set")]
    if not np.isfinite(excess).any():
        words = f"none of {len(excess)} classes with {inputs.least_truth} falls significantly"
        return [Criterion(title, 0.0, "<=", 0.0, words)]
    worst = int(excess.argmax())
    name = [name for name, yes in zip(names, there, strict=True) if yes][worst]
    words = f"class {name} changes by {difference[there][worst]:+.4f}, allowed is -{allowed[worst]:.4f}"
    return [Criterion(title, max(float(excess[worst]), 0.0), "<=", 0.0, words)]


def significant_falls(difference: np.ndarray, error: np.ndarray, level: float) -> np.ndarray:
    """(n,) bool: which classes fall, by Holm's step-down test of one-sided normal p-values at a family-wise level."""
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(error > 0, norm.cdf(difference / error), np.where(difference < 0, 0.0, 1.0))
    order = np.argsort(p, kind="stable")
    steps = p[order] <= level / np.arange(len(p), 0, -1)
    rejected = np.cumprod(steps).astype(bool)
    found = np.zeros(len(p), bool)
    found[order] = rejected
    return found


def _sizes(found: PairedDifference | None, limits: GateLimits) -> list[Criterion]:
    if found is None:
        return []
    return [
        Criterion(f"sizes: change of AP {name}", float(value), ">=", -limits.size_fall)
        for name, value in zip(found.size_names, found.size_difference, strict=True)
        if not np.isnan(value)  # the gate set has no objects of that size
    ]


def _calibration(inputs: GateInputs, limits: GateLimits) -> list[Criterion]:
    why = "one group cannot calibrate and judge" if math.isnan(inputs.d_ece) else ""
    criteria = [Criterion("calibration: D-ECE", inputs.d_ece, "<=", limits.d_ece, why)]
    if inputs.champion_d_ece is not None:
        worse = inputs.d_ece - inputs.champion_d_ece
        criteria.append(Criterion("calibration: D-ECE worse by", worse, "<=", limits.d_ece_worse, why))
    return criteria


def _audit(audit: Audit | None, limits: GateLimits) -> list[Criterion]:
    if audit is None:
        return [Criterion(LOOKED_AT, None, ">=", float(limits.audit_labels), "nobody looked")]
    bound = float(lower_bound(audit.n - audit.errors, audit.n)) if audit.n else None
    return [
        Criterion(LOOKED_AT, float(audit.n), ">=", float(limits.audit_labels)),
        Criterion("audit: lower bound of precision", bound, ">=", round(audit.promised - limits.audit_slack, 6)),
    ]


def _baseline(found: PairedDifference | None) -> Criterion:
    value = None if found is None else found.difference
    return Criterion("baseline: gain over the supervised model with the same budget", value, ">", 0.0)
