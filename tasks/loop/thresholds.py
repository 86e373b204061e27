"""Thresholds per class, certified on labels that the model never saw, and the three bands they make.

| evidence | basis | promise |
|---|---|---|
| 400 candidates or more | class | precision .90 |
| 150 to 400 | class | precision .80 |
| fewer, but 14 true objects and candidates | pooled with the small classes of its super-class | .80 of the pool |
| fewer still, or nothing could be certified | abstain: all candidates go to the ignore band | none |

Bands: [t_hi, 1] accept, [t_lo, t_hi) ignore (no gradient), below t_lo background. t_lo follows the number of objects
that the labels make expect: the score at rank (unlabelled images) x (objects of the class per labelled image); at
least .05.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tasks.loop.certified import (
    FIRST_COUNT,
    FIRST_SHARE,
    Certificate,
    certify,
    design_effect,
    fewest,
    lower_bound,
    upper_bound,
)
from tasks.loop.matching import Matches
from tasks.loop.promises import GEOMETRY_PRECISION
from tasks.loop.schemas import THRESHOLD_SETS
from tasks.loop.shortfall import candidates_needed, in_words
from tasks.output.layout import canonical_json
from tasks.output.tables import table_of

if TYPE_CHECKING:  # its module brings torch
    from modelkit import ClassInfo

SCORE_FLOOR = 0.05
LOWER_BY = 0.10  # what is promised less where labels are few


@dataclass(frozen=True, slots=True)
class Promise:
    """What precision is promised at how much evidence.

    Args:
        high, low: precision of class thresholds.
        high_from, low_from: candidates on the labels that calibrate from which each is promised.
        pool_from: true objects and candidates that a class needs to be pooled: fewer could not certify ``low`` even
            without an error (14 at .80).
    """

    high: float = 0.90
    low: float = 0.80
    high_from: int = 400
    low_from: int = 150
    pool_from: int = 14

    @classmethod
    def of(cls, precision: float) -> Promise:
        """So much where there is evidence enough, a tenth less where there is not; see ``LOWER_BY``."""
        low = precision - LOWER_BY
        return cls(precision, low, pool_from=fewest(low))


@dataclass(frozen=True, slots=True)
class ClassThreshold:
    """The bands of one class; the fields are columns of ``threshold_sets.v2``."""

    label: int
    name: str
    basis: str  # class, pooled or abstain
    target_precision: float
    t_hi: float | None
    t_lo: float
    lower_bound: float | None
    n_calibration: int
    n_accepted: int
    n_correct: int
    truth_per_image: float
    coverage: float
    t_quality: float | None
    note: str


@dataclass(frozen=True, slots=True)
class ThresholdSet:
    """The thresholds of all classes for the scores of one model in one round."""

    model_id: str
    round: int
    calibration_split: str
    classes: tuple[ClassThreshold, ...]

    @property
    def threshold_set_id(self) -> str:
        """Digest of every value, hex, by the names that the first sets had: so theirs hold still."""
        named = {"label": "class_id", "name": "class_name", "t_quality": "t_mask"}
        rows = [{named.get(name, name): value for name, value in row.items()} for row in self._rows()]
        return hashlib.sha256(canonical_json(rows)).hexdigest()[:32]

    def of(self, label: int) -> ClassThreshold:
        """The thresholds of a class. Raises KeyError for one that was not calibrated."""
        for each in self.classes:
            if each.label == label:
                return each
        raise KeyError(f"class {label} has no threshold in the set {self.threshold_set_id}")

    def _rows(self) -> list[dict[str, object]]:
        shared = {"model_id": self.model_id, "round": self.round, "calibration_split": self.calibration_split}
        return [{**shared, **{name: getattr(each, name) for name in each.__slots__}} for each in self.classes]

    def to_table(self) -> pa.Table:
        """Rows of ``threshold_sets.v2``."""
        return table_of(THRESHOLD_SETS, [{**row, "threshold_set_id": self.threshold_set_id} for row in self._rows()])

    @classmethod
    def from_table(cls, table: pa.Table) -> ThresholdSet:
        """The inverse of :meth:`to_table`. Raises ValueError for rows of several sets, or changed ones."""
        rows = sorted(table.to_pylist(), key=lambda row: row["label"])
        shared = {(row["threshold_set_id"], row["model_id"], row["round"], row["calibration_split"]) for row in rows}
        if len(shared) != 1:
            raise ValueError(f"these rows are of {len(shared)} threshold sets, not of one")
        ((stated, model_id, round_number, split),) = shared
        classes = tuple(ClassThreshold(**{name: row[name] for name in ClassThreshold.__slots__}) for row in rows)
        found = cls(model_id, round_number, split, classes)
        if found.threshold_set_id != stated:
            raise ValueError(f"the rows state {stated}, their content is {found.threshold_set_id}")
        return found


def certify_thresholds(
    matches: Matches,
    classes: Sequence[ClassInfo],
    *,
    model_id: str,
    round_number: int,
    calibration_split: str,
    truth_per_image: Mapping[int, float],
    expected_score: np.ndarray | None = None,
    quality: np.ndarray | None = None,
    is_good: np.ndarray | None = None,
    super_classes: Mapping[int, str] | None = None,
    promise: Promise | None = None,
    promises: Mapping[int, Promise] | None = None,
    geometry_precision: float = GEOMETRY_PRECISION,
) -> ThresholdSet:
    """Thresholds of all classes; t_lo is the floor until :func:`with_bands` has seen the unlabelled scores.

    Args:
        matches: of the candidates on the labels that calibrate.
        classes: the teacher's class map.
        model_id, round_number, calibration_split: whose scores, and the digest of the manifest of the splits.
        truth_per_image: objects per labelled image by class.
        expected_score: (n,) calibrated scores of the matches; with them, candidates of one image that are right or
            wrong together count for less (design effect).
        quality, is_good: (n,) measured, uncalibrated quality, and whether the geometry is good enough to be taught:
            certify from which quality on it is.
        super_classes: class id -> name of its super-class; one for all unless given.
        promise: see :class:`Promise`.
        promises: class id -> another one; only classes of one promise are pooled.
        geometry_precision: is promised of the geometry.
    """
    usual, others = promise or Promise(), promises or {}
    promised = {each.id: others.get(each.id, usual) for each in classes}
    effect = 1.0
    if expected_score is not None and len(matches):
        effect = design_effect(matches.correct - expected_score, matches.image)
    found = {
        each.id: _own(matches, each, truth_per_image.get(each.id, 0.0), effect, promised[each.id]) for each in classes
    }
    for members in _pools([each for each in found.values() if each.basis == "pooled"], promised, super_classes or {}):
        found.update({each.label: each for each in _pooled(matches, members, effect, promised[members[0].label])})
    if quality is not None and is_good is not None:
        found = _with_quality(matches, quality, is_good, found, effect, geometry_precision)
    ordered = tuple(found[label] for label in sorted(found))
    return ThresholdSet(model_id, round_number, calibration_split, ordered)


def _pools(
    small: Sequence[ClassThreshold], promised: Mapping[int, Promise], parents: Mapping[int, str]
) -> list[list[ClassThreshold]]:
    """Small classes of one super-class and one promise."""
    pools: dict[tuple[str, float], list[ClassThreshold]] = {}
    for each in small:
        pools.setdefault((parents.get(each.label, ""), promised[each.label].low), []).append(each)
    return [pools[key] for key in sorted(pools)]


def _own(matches: Matches, each: ClassInfo, truth_per_image: float, effect: float, promise: Promise) -> ClassThreshold:
    """By its own evidence; basis "pooled" stands for "not enough alone" until the pools are certified."""
    mine = matches.of_class(each.id)
    truth = matches.truth_count.get(each.id, 0)
    empty = ClassThreshold(
        label=each.id,
        name=each.name,
        basis="abstain",
        target_precision=promise.low,
        t_hi=None,
        t_lo=SCORE_FLOOR,
        lower_bound=None,
        n_calibration=len(mine),
        n_accepted=0,
        n_correct=0,
        truth_per_image=truth_per_image,
        coverage=0.0,
        t_quality=None,
        note=f"{truth} true objects and {len(mine)} candidates are too few",
    )
    empty = replace(empty, note=f"{empty.note}; {_shortfall(matches, mine, truth, promise.low, effect)}")
    for target, least in ((promise.high, promise.high_from), (promise.low, promise.low_from)):
        usable = _usable(len(mine), truth, target)
        if usable >= least:
            proof = certify(matches.score[mine], matches.correct[mine], target, design_effect=effect, limit=usable)
            missed = _shortfall(matches, mine, truth, target, effect)
            return _certified(replace(empty, target_precision=target), "class", proof, matches.score[mine], missed)
    if min(truth, len(mine)) >= promise.pool_from:
        return replace(empty, basis="pooled")
    return empty


def _usable(candidates: int, truth: int, target: float) -> int:
    """Candidates worth testing: with more than truth / target accepted, the precision must fall short of the target."""
    return min(candidates, int(truth / target))


def _shortfall(matches: Matches, mine: np.ndarray, truth: int, target: float, effect: float) -> str:
    """How far a class is from a promise, by the first candidates that a certificate would be about."""
    first = int(np.ceil(max(FIRST_COUNT * effect, FIRST_SHARE * len(mine))))
    best = mine[np.argsort(-matches.score[mine], kind="stable")][:first]
    if not len(best):
        return f"nothing was found, {max(fewest(target) - truth, 1)} more true objects are needed at least"
    right = int(matches.correct[best].sum())
    needed = candidates_needed(right / len(best), target)
    if needed is None:
        return in_words(right, len(best), target, None, truth, "")
    wanted = max(needed, FIRST_COUNT) * effect
    more = max(math.ceil(max(truth, 1) * (wanted / len(best) - 1)), fewest(target) - truth, 1)
    return in_words(right, len(best), target, more, truth, "true objects")


def _certified(
    empty: ClassThreshold, basis: str, proof: Certificate, scores: np.ndarray, missed: str
) -> ClassThreshold:
    if proof.threshold is None:
        note = f"no threshold reaches precision {round(empty.target_precision, 3)} for sure; {missed}"
        return replace(empty, basis="abstain", note=note)
    return replace(
        empty,
        basis=basis,
        t_hi=proof.threshold,
        lower_bound=proof.lower_bound,
        n_accepted=proof.n_accepted,
        n_correct=proof.n_correct,
        coverage=float((scores >= proof.threshold).mean()) if len(scores) else 0.0,
        note=f"{proof.n_correct} of {proof.n_accepted} right",
    )


def _pooled(
    matches: Matches, members: Sequence[ClassThreshold], effect: float, promise: Promise
) -> list[ClassThreshold]:
    """One threshold for the small classes of a super-class; a member that plainly breaks the promise abstains."""
    mine = np.flatnonzero(np.isin(matches.label, [each.label for each in members]))
    truth = sum(matches.truth_count.get(each.label, 0) for each in members)
    usable = _usable(len(mine), truth, promise.low)
    proof = certify(matches.score[mine], matches.correct[mine], promise.low, design_effect=effect, limit=usable)
    found = []
    for each in members:
        own = matches.of_class(each.label)
        missed = _shortfall(matches, own, matches.truth_count.get(each.label, 0), promise.low, effect)
        pooled = _certified(each, "pooled", proof, matches.score[own], missed)
        if pooled.t_hi is not None:
            accepted = own[matches.score[own] >= pooled.t_hi]
            right = int(matches.correct[accepted].sum())
            if len(accepted) and upper_bound(right, len(accepted)) < promise.low:
                note = f"only {right} of its {len(accepted)} above the pool's threshold are right; {missed}"
                pooled = replace(each, basis="abstain", note=note)
        found.append(pooled)
    return found


def _with_quality(
    matches: Matches,
    quality: np.ndarray,
    is_good: np.ndarray,
    found: Mapping[int, ClassThreshold],
    effect: float,
    promised: float,
) -> dict[int, ClassThreshold]:
    """Quality from which the geometry of accepted candidates is good with the precision that is promised.

    Where there is none, the notes of the classes that are accepted say how far from it they are.
    """
    t_hi = {label: each.t_hi for label, each in found.items() if each.t_hi is not None}
    pairs = zip(matches.label.tolist(), matches.score.tolist(), strict=True)
    accepted = np.array([label in t_hi and score >= t_hi[label] for label, score in pairs], bool)
    right = (is_good & matches.correct)[accepted]
    threshold = certify(quality[accepted], right, promised, design_effect=effect).threshold
    if threshold is not None or not t_hi:
        return {label: replace(each, t_quality=threshold) for label, each in found.items()}
    missed = f"no geometry is taught: that of {right.sum()} of {len(right)} is good, and {promised:.2f} is promised"
    return {
        label: replace(each, note=f"{each.note}; {missed}") if label in t_hi else each for label, each in found.items()
    }


def scores_by_class(candidates: pa.Table) -> dict[int, np.ndarray]:
    """Class id -> scores of its candidates, for :func:`with_bands`."""
    labels, score = candidates["label"].to_numpy(), candidates["score"].to_numpy()
    return {label: score[labels == label] for label in np.unique(labels).tolist()}


def with_bands(thresholds: ThresholdSet, scores: Mapping[int, np.ndarray], num_images: int) -> ThresholdSet:
    """The set with t_lo at the rank that the labels make expect.

    Args:
        scores: class id -> scores of its candidates on unlabelled items.
        num_images: unlabelled images, also those without candidates.

    Classes that abstain keep the floor: all their candidates are ignored, none is background.
    """
    return replace(
        thresholds,
        classes=tuple(
            each
            if each.t_hi is None
            else replace(each, t_lo=_t_lo(each, scores.get(each.label, np.zeros(0)), num_images))
            for each in thresholds.classes
        ),
    )


def _t_lo(each: ClassThreshold, scores: np.ndarray, num_images: int) -> float:
    rank = round(num_images * each.truth_per_image)
    ordered = np.sort(np.asarray(scores, np.float64))[::-1]
    at_rank = float(ordered[rank - 1]) if 1 <= rank <= len(ordered) else 0.0
    assert each.t_hi is not None
    return min(max(SCORE_FLOOR, at_rank), each.t_hi)


@dataclass(frozen=True, slots=True)
class Rate:
    """Accepted objects per unlabelled image over true objects per labelled image."""

    label: int
    name: str
    ratio: float
    verdict: str  # ok, warn (outside [.2, 1.2]) or refuse (above 2)


def accepted_rates(thresholds: ThresholdSet, accepted: Mapping[int, int], num_images: int) -> tuple[Rate, ...]:
    """Whether as many objects are accepted as the labels make expect; classes that abstain have no rate."""
    rates = []
    for each in thresholds.classes:
        if each.t_hi is None or each.truth_per_image == 0 or num_images == 0:
            continue
        ratio = accepted.get(each.label, 0) / num_images / each.truth_per_image
        verdict = "refuse" if ratio > 2.0 else "ok" if 0.2 <= ratio <= 1.2 else "warn"
        rates.append(Rate(each.label, each.name, ratio, verdict))
    return tuple(rates)


def audit_bound(n: int, errors: int) -> float:
    """95 % lower bound of the precision of accepted labels from a random audit."""
    return float(lower_bound(n - errors, n))
