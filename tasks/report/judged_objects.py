"""What the page about a judged model shows of objects: what became of each, by class, and the images with most errors.

Finds count from the score on that pictures, reports and exports show, and are right where they overlap with a labelled
object of their class by half or more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from markupsafe import Markup

from modelkit import Instances
from modelkit.metrics.counting import SCORE
from tasks.evaluation.claims import SAME, Claim, Labelled, ObjectEvidence, compare
from tasks.product import Judgement
from tasks.report import charts
from tasks.report.drawing import DrawnObject, draw_objects
from tasks.report.judged_panels import JudgedGallery, JudgedPanels, JudgedPicture
from tasks.report.labelled_samples import side_by_side
from tasks.report.page import page_template
from tasks.report.panels import Section

_MOST_CLASSES = 80
RIGHT, OTHER_CLASS, BADLY_PLACED, MISSED = "right", "other class", "badly placed", "missed"
_COLOURS = {RIGHT: "ok", OTHER_CLASS: "quarantined", BADLY_PLACED: "bar", MISSED: "failed"}  # CSS classes of the page


@dataclass(frozen=True, slots=True)
class ClassOutcomes:
    """What became of the labelled objects of a class, and how many finds of it are of no such object."""

    name: str
    outcomes: Mapping[str, int]
    made_up: int

    @property
    def labelled(self) -> int:
        """Objects."""
        return sum(self.outcomes.values())


def object_panels(judgement: Judgement, at_most: int) -> JudgedPanels:
    """What became of labelled objects by class, and the images in which most is wrong."""
    evidence: ObjectEvidence = judgement.evidence
    shown = replace(evidence, found=[each.at_least(SCORE) for each in evidence.found])
    labelled, claims, with_masks = compare(shown)
    classes = _outcomes(labelled, claims, evidence.names)
    body = page_template("tasks.report", "judged_objects.html.j2").render(
        score=SCORE, iou=SAME, colours=_COLOURS, total=len(classes),
        classes=[(each, _bar(each)) for each in classes[:_MOST_CLASSES]],
    )  # fmt: skip
    section = Section("outcomes", "What became of labelled objects", Markup(body))  # the template escapes
    gallery = _worst_objects(shown, labelled, claims, with_masks, at_most)
    return JudgedPanels(sections=(section,), galleries=(gallery,))


def outcome_of(each: Labelled) -> str:
    """What became of an object; whatever is found at its place is held against it, of whichever class."""
    if each.claim is None:
        return MISSED
    if each.iou < SAME:
        return BADLY_PLACED
    return RIGHT if each.claim.label == each.label else OTHER_CLASS


def _made_up(claims: Sequence[Claim]) -> Iterator[Claim]:
    return (each for each in claims if not each.is_about and not each.excused)


def _outcomes(labelled: Sequence[Labelled], claims: Sequence[Claim], names: Mapping[int, str]) -> list[ClassOutcomes]:
    """The classes of which least is right first."""
    counted = Counter((each.label, outcome_of(each)) for each in labelled)
    made_up = Counter(each.label for each in _made_up(claims))
    found = [
        ClassOutcomes(
            names.get(label, f"class {label}"),
            {outcome: counted[label, outcome] for outcome in _COLOURS},
            made_up[label],
        )
        for label in sorted({label for label, _ in counted} | set(made_up))
    ]
    return sorted(found, key=lambda each: each.outcomes[RIGHT] / max(each.labelled + each.made_up, 1))


def _bar(each: ClassOutcomes) -> Markup:
    return charts.stacked_bar(each.name, [(name, count, _COLOURS[name]) for name, count in each.outcomes.items()])


def _worst_objects(
    evidence: ObjectEvidence, labelled: Sequence[Labelled], claims: Sequence[Claim], with_masks: bool, at_most: int
) -> JudgedGallery:
    rows = evidence.labels.table.to_pylist()
    right, wrong, made_up = np.zeros((3, len(rows)), np.int64)
    for each in labelled:
        (right if outcome_of(each) == RIGHT else wrong)[each.image] += 1
    for claim in _made_up(claims):
        made_up[claim.image] += 1
    errors = wrong + made_up
    order = np.lexsort((-errors, right / np.maximum(right + errors, 1)))
    pictures = []
    for k in [k for k in order.tolist() if errors[k]][:at_most]:
        truth = rows[k] if with_masks else {**rows[k], "rles": [None] * len(rows[k]["labels"])}
        words = f"{right[k]} right, {wrong[k]} missed, misplaced or of another class, {made_up[k]} made up"
        pictures.append(objects_picture(truth, evidence.found[k], evidence.names, words))
    said = (
        f"labels to the left, finds that score {SCORE:g} or more to the right; the smallest share of right ones first"
    )
    return JudgedGallery("Most wrong", said, pictures, are_pairs=True)


def objects_picture(row: Mapping[str, Any], found: Instances, names: Mapping[int, str], words: str) -> JudgedPicture:
    """An item with its labels to the left and finds to the right, in the colours of their classes on both sides.

    Args:
        row: of the label set, as it is to be drawn.
        names: of the classes of finds.
    """
    truth = [
        DrawnObject(name, label, None, tuple(box), rle, is_thing=is_thing)
        for name, label, box, rle, is_thing in zip(
            *(row[each] for each in ("names", "labels", "boxes_xyxy", "rles", "is_thing")), strict=True
        )
    ]
    seen = [
        DrawnObject(
            names.get(label, f"class {label}"), label, float(found.scores[k]), tuple(found.boxes_xyxy[k].tolist()),
            None if found.rles is None else found.rles[k], is_thing=bool(found.is_thing[k]),
        )
        for k, label in enumerate(found.labels.tolist())
    ]  # fmt: skip
    return JudgedPicture(row, words, lambda image: side_by_side(draw_objects(image, truth), draw_objects(image, seen)))
