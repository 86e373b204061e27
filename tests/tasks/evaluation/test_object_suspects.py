"""Labelled objects that a model doubts: each sort of error is told as what it is, and planted ones come first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.label_errors_data import OBJECT_ERRORS, plant
from modelkit import ClassInfo, Instances, rle
from modelkit.digitscape import Digitscape, write_dataset
from tasks.evaluation.claims import ObjectEvidence
from tasks.evaluation.evaluate import evaluate_model
from tasks.evaluation.object_suspects import object_suspects
from tasks.evaluation.suspects import suspects_of
from tasks.labels.label_sets import LabelledItem, LabelledObject, make_label_set
from tasks.labels.reading import read_label_set
from tasks.product import Suspect, Suspects

SIDE, IMAGES, SCENES, SHARE = 60, 40, 160, 0.05
NAMES = {1: "cup", 2: "pot", 3: "jug"}
Box = tuple[int, int, int, int]
RIGHT: tuple[tuple[int, Box], ...] = ((1, (2, 2, 22, 22)), (2, (34, 30, 58, 58)))


def mask(box: Box) -> bytes:
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 1
    return rle.encode(pixels)


def labelled(objects: Sequence[tuple[int, Box]], crowd: Box | None = None) -> tuple[LabelledObject, ...]:
    crowds = [] if crowd is None else [LabelledObject(1, mask(crowd), is_crowd=True)]
    return (*(LabelledObject(label, mask(box), origin_id=f"o{k}") for k, (label, box) in enumerate(objects)), *crowds)


def seen(objects: Sequence[tuple[int, Box]], scores: Sequence[float]) -> Instances:
    boxes, classes = [box for _, box in objects], [label for label, _ in objects]
    return Instances(
        (SIDE, SIDE), np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32),
        np.array(classes, np.int32), [mask(box) for box in boxes], np.ones(len(boxes), bool),
    )  # fmt: skip


def doubted(
    objects: Sequence[tuple[int, Box]], *, also: Sequence[tuple[int, Box]] = (), crowd: Box | None = None,
    with_masks: bool = True,
) -> Suspects:  # fmt: skip
    """Suspects where all images but the last are labelled as ``RIGHT``, and the model sees ``RIGHT`` (and more)."""
    items = [LabelledItem(f"{k:03d}", (SIDE, SIDE), labelled(RIGHT)) for k in range(IMAGES - 1)]
    items.append(LabelledItem("999", (SIDE, SIDE), labelled(objects, crowd)))
    labels = make_label_set(items, [ClassInfo(k, name) for k, name in NAMES.items()], origin_format="test")
    found = [seen(RIGHT, (0.9 + 0.002 * k, 0.8)) for k in range(IMAGES - 1)]
    found.append(seen([*RIGHT, *also], (0.99, 0.98, *[0.97] * len(also))))
    return object_suspects(ObjectEvidence(labels, found, NAMES, with_masks))


def only(found: Sequence[Suspect]) -> Suspect:
    (one,) = found
    assert one.image_id == "999" and one.frame is None and one.probability > 0.2
    return one


def test_labels_that_the_model_shares_are_no_suspects() -> None:
    found = doubted(RIGHT)
    assert found.labelled == found.missing == ()


def test_another_class_is_told_with_what_the_model_says() -> None:
    found = doubted([(3, RIGHT[0][1]), RIGHT[1]])
    one = only(found.labelled)
    assert (one.wrong, one.name, one.object, one.origin_id) == ("wrong class", "jug", 0, "o0")
    assert one.facts["model_says"] == "cup" and "the model says cup (score 0.99)" in one.words and not found.missing


def test_a_mask_in_the_wrong_place_is_told_with_its_iou() -> None:
    found = doubted([RIGHT[0], (2, (34, 46, 58, 60))])
    one = only(found.labelled)
    assert (one.wrong, one.object) == ("badly placed", 1) and one.facts["model_box_xyxy"] == [34, 30, 58, 58]
    assert one.facts["iou"] == pytest.approx(12 / 30, abs=1e-3) and not found.missing


def test_an_object_that_is_not_there_is_made_up_and_one_without_a_label_is_missing() -> None:
    assert only(doubted([*RIGHT, (1, (2, 40, 20, 58))]).labelled).wrong == "made up"
    found = doubted(RIGHT[:1])
    missing = only(found.missing)
    assert not found.labelled and (missing.object, missing.name, missing.wrong) == (None, "pot", "not labelled")
    assert missing.box_xyxy == (34, 30, 58, 58)


def test_one_thing_that_is_labelled_twice_is_told_by_the_label_that_the_model_does_not_share() -> None:
    one = only(doubted([(3, RIGHT[0][1]), *RIGHT]).labelled)
    assert (one.wrong, one.name, one.facts["twin"]) == ("labelled twice", "jug", 1)


def test_crowds_are_no_suspects_and_what_lies_on_them_is_not_missing() -> None:
    assert only(doubted(RIGHT, also=[(3, (2, 40, 20, 58))]).missing).name == "jug"
    found = doubted(RIGHT, also=[(3, (2, 40, 20, 58))], crowd=(0, 36, 30, 60))
    assert found.labelled == found.missing == ()


def test_boxes_are_compared_where_no_masks_are() -> None:
    found = doubted([RIGHT[0], (2, (34, 46, 58, 60))], with_masks=False)
    assert only(found.labelled).wrong == "badly placed" and not found.notes


def test_planted_errors_are_found_among_the_first_five_percent(tmp_path: Path) -> None:
    """The promise, with the shipped model on scenes that it never saw; python -m benchmarks.label_errors has more."""
    source = Digitscape("test", (160, 160), seed=0, dense=False)
    path = write_dataset(tmp_path, source, SCENES, image_format="png")
    planted = plant(json.loads(path.read_text()), OBJECT_ERRORS, SHARE, seed=0)
    path.write_text(json.dumps(planted.content))
    found = suspects_of(evaluate_model("digitscape_mask_rcnn", read_label_set(str(path))))
    first = found.labelled[: round(SHARE * len(planted.content["annotations"]))]
    assert len(first) == len(planted.errors) > 25
    assert np.mean([int(each.origin_id) in planted.errors for each in first]) >= 0.8
