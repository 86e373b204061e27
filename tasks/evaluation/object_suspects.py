"""Labelled objects that are probably wrong: of another class, badly placed, made up; and objects that lack a label.

Four questions are asked of labels and of what a model claims, each with its own calibration
(:mod:`tasks.evaluation.suspects`):

    not labelled   is a claim about a labelled object? The model is as sure as the claim's score.
    made up        is any claim about a labelled object? How sure a model is of nothing, nobody can say; large objects
                   are overlooked least, so the area stands for it.
    badly placed   do the two overlap as such pairs do?
    wrong class    are the two of one class?
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.evaluation.claims import NEAR, SAME, Claim, Labelled, ObjectEvidence, compare
from tasks.evaluation.evaluate import Row
from tasks.evaluation.suspects import doubts, folds_of
from tasks.product import Suspect, Suspects

_USUAL, _LIMITS = 4.0, (0.2, 0.85)
"""An IoU four times as far from 1 as usual is bad, if that is between these; half of it is worse."""
_GRADES = (1.0, 0.5)
_RIVALS = (1.0, 0.3, 0.1)  # of a claim's score, what the labelled class has at the same place
_BY_CHANCE = 0.9  # share of places without an object at which no more is found than of an object that is made up
MADE_UP, PLACED, WRONG_CLASS, TWICE = "made up", "badly placed", "wrong class", "labelled twice"
NOT_LABELLED = "not labelled"


def object_suspects(evidence: ObjectEvidence) -> Suspects:
    """The labels that a model of objects disagrees with; crowds, and what lies on them or on void, are left out.

    Raises:
        DatasetError: a single labelled image.
    """
    folds = folds_of(evidence.labels)
    labelled, claims, with_masks = compare(evidence)
    telling = _Telling(evidence.labels.table.to_pylist(), evidence)
    chance = _support_by_chance(labelled, claims, telling.rows)
    verdicts = _verdicts(labelled, folds[[each.image for each in labelled]], chance)
    asked = [each for each in claims if not each.excused and (each.is_about or each.overlap < SAME)]
    about = np.array([each.is_about for each in asked], np.float64)
    scores = np.array([each.score for each in asked])
    lacking = doubts(scores, about, (1.0,), folds[[each.image for each in asked]])
    notes = ("some objects have no mask, so that boxes are compared",)
    return Suspects(
        _ranked(
            telling.labelled(each, *verdict) for each, verdict in zip(labelled, verdicts, strict=True) if verdict[1]
        ),
        _ranked(telling.missing(each, value) for each, value in zip(asked, lacking.tolist(), strict=True) if value),
        notes if evidence.with_masks and not with_masks else (),
    )


def _ranked(found: Iterable[Suspect]) -> tuple[Suspect, ...]:
    """The most probable first; of equals, what the model is surer of."""
    return tuple(
        sorted(found, key=lambda each: (-each.probability, -each.facts["score"], each.image_id, each.object or 0))
    )


def _verdicts(labelled: Sequence[Labelled], folds: np.ndarray, chance: float) -> list[tuple[str, float]]:
    """What seems wrong with each object, and how probable that is; 0 where nothing is."""
    scores = np.array([each.claim.score if each.claim else 0.0 for each in labelled])
    ious = np.array([each.iou for each in labelled])
    claimed = np.array([each.claim is not None for each in labelled], bool)
    areas = np.array([each.area for each in labelled], np.float64)
    sure = claimed & (scores >= SAME)
    usual = float(np.median(ious[sure])) if sure.any() else 1.0
    limit = float(np.clip(1.0 - _USUAL * (1.0 - usual), *_LIMITS))
    rival = np.array([1.0 if each.claim and each.claim.label == each.label else each.own / max(score, 1e-9)
                      for each, score in zip(labelled, scores.tolist(), strict=True)])  # fmt: skip
    found = {MADE_UP: doubts(areas, scores, (np.nextafter(chance, 1.0),), folds)}
    for wrong, asked, agreement, levels in (
        (PLACED, claimed, ious, [limit * grade for grade in _GRADES]),
        (WRONG_CLASS, claimed & (ious >= SAME), rival, _RIVALS),
    ):
        found[wrong] = np.zeros(len(labelled))
        found[wrong][asked] = doubts(scores[asked], agreement[asked], levels, folds[asked])
    worst = np.array(list(found.values())).argmax(0).tolist()
    names = list(found)
    return [(names[k], float(found[names[k]][at])) for at, k in enumerate(worst)]


def _support_by_chance(labelled: Sequence[Labelled], claims: Sequence[Claim], rows: Sequence[Row]) -> float:
    """The score that claims have at most about a thing that is not there, in nine of ten places.

    Each labelled box is held against the next image, where only claims count that no labelled object explains.
    """
    free: dict[int, list[Claim]] = {}
    for claim in claims:
        if not claim.is_about:
            free.setdefault(claim.image, []).append(claim)
    support = []
    for each in labelled:
        other = (each.image + 1) % len(rows)
        x, y = (rows[other][side] / rows[each.image][side] for side in ("width", "height"))
        x0, y0, x1, y1 = each.box_xyxy
        mine = free.get(other, [])
        ious = _box_ious((x0 * x, y0 * y, x1 * x, y1 * y), np.array([claim.box_xyxy for claim in mine]).reshape(-1, 4))
        support.append(
            max((c.score for c, iou in zip(mine, ious.tolist(), strict=True) if iou >= 2 * NEAR), default=0.0)
        )
    return float(np.quantile(support, _BY_CHANCE)) if support else 0.0


def _box_ious(box: tuple[float, float, float, float], others: np.ndarray) -> np.ndarray:
    """(n,) IoU of a box with (n, 4) others."""
    common = np.clip(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0.0, None).prod(1)
    union = (box[2] - box[0]) * (box[3] - box[1]) + (others[:, 2:] - others[:, :2]).prod(1) - common
    ious: np.ndarray = np.divide(common, union, out=np.zeros(len(others)), where=union > 0)
    return ious


@dataclass(frozen=True, slots=True)
class _Telling:
    """Suspects in words."""

    rows: Sequence[Row]
    evidence: ObjectEvidence

    def labelled(self, each: Labelled, wrong: str, probability: float) -> Suspect:
        """An object that was labelled."""
        claim, facts = each.claim, dict[str, Any](score=0.0)
        if claim is not None:
            facts = {
                "model_says": self.evidence.names[claim.label],
                "score": round(claim.score, 4),
                "iou": round(each.iou, 4),
                "model_box_xyxy": [round(value, 2) for value in claim.box_xyxy],
            }
        words = "the model sees nothing there"
        if wrong == MADE_UP and each.twin is not None:
            wrong, words, facts["twin"] = (
                TWICE,
                f"the model sees one thing there, which is object {each.twin}",
                each.twin,
            )
        elif wrong == MADE_UP and claim is not None:
            words = f"the model hardly sees anything there (score {claim.score:.2f})"
        elif wrong == PLACED and claim is not None:
            words = (
                f"IoU {each.iou:.2f} with what the model sees there ({facts['model_says']}, score {claim.score:.2f})"
            )
        elif claim is not None:
            words = f"the model says {facts['model_says']} (score {claim.score:.2f})"
        return self._suspect(each.image, each.object, wrong, words, probability, each.box_xyxy, facts)

    def missing(self, claim: Claim, probability: float) -> Suspect:
        """An object that nobody labelled."""
        facts = {"model_says": self.evidence.names[claim.label], "score": round(claim.score, 4)}
        words = f"the model sees it (score {claim.score:.2f})"
        return self._suspect(claim.image, None, NOT_LABELLED, words, probability, claim.box_xyxy, facts)

    def _suspect(self, image: int, place: int | None, wrong: str, words: str, probability: float,
                 box_xyxy: tuple[float, float, float, float], facts: dict[str, Any]) -> Suspect:  # fmt: skip
        row = self.rows[image]
        return Suspect(
            image_id=row["image_id"], uri=row["uri"], frame=row["frame"] if row["media"] == "video" else None,
            object=place, origin_id="" if place is None else row["origin_ids"][place],
            name=facts["model_says"] if place is None else row["names"][place],
            wrong=wrong, words=words, probability=round(probability, 4), box_xyxy=box_xyxy, facts=facts,
        )  # fmt: skip
