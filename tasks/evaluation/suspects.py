"""Which labels are probably wrong: how a model's disagreement becomes a probability.

A model says of each label how sure it is, without knowing the label, and whether the two agree. How often it agrees
with labels when it is so sure, a(sure), is learnt from the label set itself: isotonic, for each part of the pictures
from the others, so that no label is believed for its own sake. If a share e of the labels is wrong, and a wrong label
is one that the model does not share, then of the 1 - a labels that it does not share the wrong ones are

    e / (1 - a(sure)):

all of them where it agrees with the other 1 - e, few where it is often wrong itself. So errors among the labels do not
spoil the calibration, they are what it is about. What e is, nobody knows without looking. It is taken to be the share
of disagreement where the model is surest, as if it erred nowhere there (the idea of confident learning: Northcutt et
al. 2021). Where it does err there, e and with it the probabilities are too high; the order of the labels hardly
suffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from infra.errors import DatasetError, UsageError
from infra.telling import tell
from tasks.evaluation.calibrators import fit_isotonic
from tasks.labels.folds import fold_groups
from tasks.labels.label_sets import LabelSet, regroup
from tasks.product import Judgement, Suspects, find_kind, kinds

FOLDS = 5
_SUREST, _SUREST_SHARE = 500, 0.1
"""How many labels tell how many are wrong: fewer of the surest are less biased and noisier; at most half of all."""


def check_finds_suspects(kind: str) -> None:
    """Raises UsageError for a kind that cannot say which labels are wrong; it names those that can."""
    if find_kind(kind).suspects is None:
        able = ", ".join(each.name for each in kinds().values() if each.suspects is not None)
        raise UsageError(
            f"which labels are wrong is not found by models of the kind {kind}",
            hint=f"kinds that find it: {able}. Without --suspects the model is judged as always.",
        )


def suspects_of(judgement: Judgement) -> Suspects:
    """The labels that a judged model disagrees with.

    Raises:
        UsageError: the kind finds none.
        DatasetError: a single labelled image.
    """
    check_finds_suspects(judgement.kind)
    find = find_kind(judgement.kind).suspects
    assert find is not None
    tell("looking for wrong labels")
    found: Suspects = find(judgement.evidence)
    return found


def first_suspects(judgement: Judgement, at_most: int) -> dict[str, Any]:
    """The same as it is reported: so many of each list, and how many labels are questioned and expected to be wrong."""
    found = suspects_of(judgement)
    lists = {"labelled": found.labelled, "missing": found.missing}
    return {
        "questioned": len(found.labelled),
        "expected_wrong": round(sum(each.probability for each in found.labelled), 2),
        "expected_missing": round(sum(each.probability for each in found.missing), 2),
        **{name: [asdict(each) for each in some[:at_most]] for name, some in lists.items()},
        "notes": list(found.notes),
    }


def folds_of(labels: LabelSet) -> np.ndarray:
    """(images,) which part of the label set each image is in; groups stay together where there are several.

    Raises:
        DatasetError: a single labelled image.
    """
    ids = labels.table["image_id"].to_pylist()
    if len(ids) < 2:
        raise DatasetError(
            "which labels are wrong cannot be told from one image",
            hint="How sure a model has to be is learnt from other labelled images: give the whole label set.",
        )
    if len(set(labels.table["group_id"].to_pylist())) < 2:
        labels = regroup(labels, {each: each for each in ids})
    count = min(FOLDS, len(set(labels.table["group_id"].to_pylist())))
    part = {each: k for k, ids in enumerate(fold_groups(labels, count, salt="suspects")) for each in ids}
    return np.array([part[each] for each in ids], np.int64)


def doubts(sure: np.ndarray, agreement: np.ndarray, levels: Sequence[float], folds: np.ndarray) -> np.ndarray:
    """(n,) float64 probability that a label is wrong; 0 where the model agrees.

    How far the two are apart counts by levels: the less agreement, the rarer a model is wrong so far when it is so
    sure. The level that says most counts.

    Args:
        sure: (n,) how sure the model is, whatever was labelled; only the order matters.
        agreement: (n,) how much the two agree.
        levels: of agreement; below each of them they disagree so far.
        folds: (n,) which part each label is in, see :func:`folds_of`.
    """
    found = np.zeros(len(sure))
    for level in levels:
        agrees = np.asarray(agreement) >= level
        if not agrees.all():
            found = np.where(agrees, found, np.maximum(found, _wrong_if_doubted(np.asarray(sure), agrees, folds)))
    return found


def _wrong_if_doubted(sure: np.ndarray, agrees: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(n,) the probability of the module's docstring, as if the model disagreed with each."""
    found = np.zeros(len(sure))
    for part in np.unique(folds).tolist():
        mine = folds == part
        others = mine if mine.all() else ~mine
        found[mine] = _by_others(sure[mine], sure[others], agrees[others])
    return found


def _by_others(sure: np.ndarray, other_sure: np.ndarray, agrees: np.ndarray) -> np.ndarray:
    """The same of some labels, by how often the model agrees with others."""
    learnt = fit_isotonic(other_sure, agrees.astype(np.float64), label=None, feature="sure", target="agrees")
    count = min(max(_SUREST, round(_SUREST_SHARE * len(agrees))), max(1, len(agrees) // 2))
    surest = np.argsort(-other_sure, kind="stable")[:count]
    wrong = (float((~agrees[surest]).sum()) + 0.5) / (count + 1)
    # a model that was right n times may be wrong the next time (Laplace)
    shared = np.minimum(learnt(sure), (1.0 - wrong) * (1.0 - 1.0 / (len(agrees) + 2)))
    found: np.ndarray = wrong / (1.0 - shared)
    return found
