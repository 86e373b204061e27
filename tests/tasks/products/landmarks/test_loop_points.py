"""Points on their way through the loop: which are right, which are taught, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra.errors import DatasetError, UsageError
from modelkit import ClassInfo
from modelkit.carriers.landmarks import KeypointSet
from tasks.labels.label_sets import LabelledItem, LabelledObject, LabelSet, make_label_set
from tasks.labels.points import point_set
from tasks.loop.disagreements import find_disagreements
from tasks.loop.label_studio_tasks import LABEL_STUDIO
from tasks.loop.methods import ObjectSource
from tasks.loop.schemas import CANDIDATES, PSEUDO_LABELS
from tasks.loop.selection import select
from tasks.output.tables import table_of
from tasks.product import find_product
from tasks.products.landmarks.disagreement_files import read_disagreements
from tasks.products.landmarks.loop_candidates import (
    COLUMNS,
    examples_of_points,
    item_of,
    point_candidates,
    point_likeness,
)
from tasks.products.landmarks.loop_points import POINTS as LOOP
from tasks.products.landmarks.matching import match_points
from tasks.training.inspection import inspect_labels
from tasks.training.presets import make_recipe
from tests.modelkit.builders import small_keypoint_rcnn
from tests.tasks.loop.rows import TEACHER, identity, thresholds

POINTS = point_set(["left_tip", "right_tip", "middle"])
CLASSES = [ClassInfo(1, "thing"), ClassInfo(2, "other")]
BOX = (10.0, 10.0, 40.0, 50.0)  # its diagonal is 50, so that points are right within 5 pixels
TRUE = ((12.0, 20.0, 2.0), (38.0, 20.0, 2.0), (25.0, 45.0, 0.0))


def found(
    image: str, number: int, places: Sequence[tuple[float, float]], *, box: Sequence[float] = BOX, **more: Any
) -> list[dict[str, Any]]:
    """The candidates of one object, of which so many points were found."""
    shared = {
        **TEACHER, "run_id": "run-1", "round": 1, "image_id": image, "uri": image, "width": 100, "height": 80,
        "group_id": image, "media": "image", "frame": 0, "split": "unlabelled", "kind": "keypoints", "object": number,
        "object_label": 1, "object_name": "thing", "object_score": 0.9, "box_xyxy": list(box), "q_peak": 0.8,
        "q_views": 0.5, "score": 0.4,
    }  # fmt: skip
    return [
        {**shared, "seq": 3 * number + k, "label": k + 1, "name": POINTS.names[k], "x": x, "y": y, **more}
        for k, (x, y) in enumerate(places)
    ]


def candidates(*objects: list[dict[str, Any]]) -> pa.Table:
    return table_of(CANDIDATES, [row for rows in objects for row in rows], COLUMNS)


def labels(*objects: LabelledObject, points: KeypointSet | None = POINTS) -> LabelSet:
    return make_label_set([LabelledItem("/a.png", (80, 100), objects)], CLASSES, origin_format="test", points=points)


def true_object(**more: Any) -> LabelledObject:
    return LabelledObject(**{"label": 1, "rle": None, "box_xyxy": BOX, "keypoint_xyv": TRUE, **more})


def matched(table: pa.Table, truth: LabelSet, *, tells_classes: bool = False) -> dict[int, bool]:
    """Row -> whether it is right, of those that count."""
    matches = match_points(table, truth, POINTS, tells_classes=tells_classes)
    return dict(zip(matches.row.tolist(), matches.correct.tolist(), strict=True))


def test_a_point_is_right_within_the_limit_of_pck_and_unlabelled_ones_do_not_count() -> None:
    table = candidates(found("/a.png", 0, [(12.0, 24.9), (38.0, 25.1), (0.0, 0.0)]))
    assert matched(table, labels(true_object())) == {0: True, 1: False}
    counts = match_points(table, labels(true_object()), POINTS, tells_classes=False).truth_count
    assert counts == {1: 1, 2: 1, 3: 0}


def test_an_object_is_found_once_and_by_the_surest() -> None:
    places = [TRUE[0][:2], TRUE[1][:2]]
    table = candidates(found("/a.png", 0, places, object_score=0.5), found("/a.png", 1, places, object_score=0.6))
    assert matched(table, labels(true_object())) == {0: False, 1: False, 2: True, 3: True}


def test_objects_elsewhere_are_wrong_and_those_on_crowds_do_not_count() -> None:
    far = candidates(found("/a.png", 0, [(60.0, 60.0)], box=(50, 50, 70, 70)))
    assert matched(far, labels(true_object())) == {0: False}
    crowd = true_object(box_xyxy=(50.0, 50.0, 70.0, 70.0), is_crowd=True)
    assert matched(far, labels(true_object(), crowd)) == {}


def test_classes_of_objects_count_where_models_tell_them_apart() -> None:
    table = candidates(found("/a.png", 0, [TRUE[0][:2]]))
    other = labels(true_object(label=2))
    assert matched(table, other) == {0: True} and matched(table, other, tells_classes=True) == {0: False}


def test_labels_of_other_points_are_told_by_name() -> None:
    turned = point_set(["middle", "right_tip", "left_tip", "more"])
    truth = labels(true_object(keypoint_xyv=(TRUE[2], TRUE[1], TRUE[0], TRUE[0])), points=turned)
    assert matched(candidates(found("/a.png", 0, [TRUE[0][:2], TRUE[1][:2]])), truth) == {0: True, 1: True}
    with pytest.raises(DatasetError, match="have no point 'left_tip'"):
        matched(candidates(found("/a.png", 0, [(0.0, 0.0)])), labels(true_object(), points=point_set(["x", "y", "z"])))
    with pytest.raises(DatasetError, match="no labelled object has points"):
        matched(candidates(found("/a.png", 0, [(0.0, 0.0)])), labels(true_object(keypoint_xyv=None)))


def stored(boxes: Sequence[Sequence[float]], scores: Sequence[float], **more: Any) -> dict[str, Any]:
    """A row of the product with two points for each object, of which the second is absent."""
    n = len(boxes)
    return {
        "labels": [1] * n, "names": ["thing"] * n, "scores": list(scores), "boxes_xyxy": [list(box) for box in boxes],
        "keypoints_xy": [[[1.0, 2.0], None]] * n, "keypoint_scores": [[0.8, 0.0]] * n, "visibility": [[2, 0]] * n,
        "keypoint_set": point_set(["a", "b"]).to_json(), "q_views": None, **more,
    }  # fmt: skip


def test_objects_are_asked_for_the_points_that_they_have_and_duplicates_are_not() -> None:
    boxes = [(0, 0, 10, 10), (0, 0, 10, 9), (50, 0, 60, 10), (70, 0, 80, 10)]
    rows = point_candidates(stored(boxes, [0.6, 0.9, 0.5, 0.04]), 0.05)
    assert [(row["object"], row["label"], row["name"], row["seq"]) for row in rows] == [(1, 1, "a", 2), (2, 1, "a", 4)]
    assert [row["score"] for row in rows] == pytest.approx([0.9 * 0.8, 0.5 * 0.8]) and rows[0]["q_views"] is None
    [seen] = point_candidates(stored(boxes[:1], [0.6], q_views=[[0.5, 0.0]]), 0.05)
    assert seen["score"] == pytest.approx(0.6 * 0.8 * 0.5) and seen["q_views"] == 0.5
    assert point_candidates(stored([], []), 0.05) == []


def selected(table: pa.Table, t_hi: dict[int, float | None]) -> pa.Table:
    """``pseudo_labels.v2`` of candidates by thresholds of the points."""
    images = [{"image_id": name, "uri": name, "group_id": name, "status": "ok"}
              for name in sorted(set(table["image_id"].to_pylist()))]  # fmt: skip
    return select(table, images, thresholds=thresholds(t_hi), scores=identity()).labels


def test_accepted_points_are_taught_and_all_others_are_not_given() -> None:
    places = [(12.0, 20.0), (38.0, 20.0), (25.0, 45.0)]
    doubted = found("/a.png", 1, places[:1], box=(60, 10, 90, 50), score=0.2)
    table = candidates(found("/a.png", 0, places), doubted, found("/b.png", 0, places[:1], score=0.1))
    rows = selected(table, {1: 0.3, 2: None, 3: 0.3})
    assert rows.schema.names[: len(PSEUDO_LABELS.schema)] == PSEUDO_LABELS.schema.names
    reasons = dict(zip(zip(rows["image_id"].to_pylist(), rows["seq"].to_pylist(), strict=True),
                       rows["reason"].to_pylist(), strict=True))  # fmt: skip
    assert reasons == {
        ("/a.png", 0): "certified", ("/a.png", 1): "abstain", ("/a.png", 2): "certified",
        ("/a.png", 3): "below_t_hi", ("/b.png", 0): "below_t_hi",
    }  # fmt: skip
    [example] = examples_of_points(rows, 3, own_label=7)
    [taught] = example.objects
    assert taught.keypoint_xyv == ((12.0, 20.0, 2.0), (0.0, 0.0, 0.0), (25.0, 45.0, 2.0))
    assert (taught.label, taught.box_xyxy, taught.mask_weight) == (7, BOX, 0.0)
    assert taught.box_weight == taught.class_weight == pytest.approx(1.0), "both points are equally sure"
    assert example.ignore_boxes == ((60.0, 10.0, 90.0, 50.0),) and example.origin == "pseudo"
    assert examples_of_points(rows, 3, own_label=None)[0].objects[0].label == 1


def test_points_are_alike_as_far_as_they_are_near_and_the_same() -> None:
    mine, others = found("a", 0, [(10, 10), (20, 20)]), found("a", 0, [(12.5, 10), (20, 20)])
    alike = point_likeness(mine, others)
    assert alike == pytest.approx(np.array([[np.exp(-0.5), 0.0], [0.0, 1.0]]))
    assert point_likeness(mine, []).shape == (2, 0)


def test_what_two_models_see_differently_can_be_drawn_from_the_file_for_people() -> None:
    more = {"score_calibrated": 0.75}
    sides = []
    for model, place in (("champion", (12.0, 20.0)), ("candidate", (30.0, 40.0))):
        rows = found("/a.png", 4, [place, (38.0, 20.0)], **more)
        rows = [{**row, "label_id": f"{model}-{k}"} for k, row in enumerate(rows)]
        sides.append(pa.Table.from_pylist(rows))
    [item] = find_disagreements(*sides, at_most=5)
    assert item.differences == ("only_candidate", "only_champion"), "the right tip is where both have it"
    files = LOOP.disagreements([item])
    [task] = json.loads(files[LABEL_STUDIO])
    kinds = [region["type"] for region in task["predictions"][0]["result"]]
    assert kinds == ["rectanglelabels", "keypointlabels"]
    [again] = read_disagreements(files.get)
    [row] = again.side("candidate")
    assert (row["x"], row["y"], row["name"]) == pytest.approx((30.0, 40.0, "left_tip"), abs=1e-6)
    assert row["box_xyxy"] == pytest.approx(BOX) and row["score_calibrated"] == 0.75
    overlay = find_product("landmarks").overlay
    assert overlay is not None
    picture = np.full((80, 100, 3), 90, np.uint8)
    drawn = overlay(picture, item_of([{**row, "label": 1}]))
    assert drawn.shape[2] == 3 and (drawn != drawn[0, 0]).any()


def several() -> LabelSet:
    one = true_object(box_xyxy=(60.0, 10.0, 90.0, 50.0))
    return labels(true_object(), one)


def methods(architecture: str, *views: str, points: KeypointSet = POINTS, **config: Any) -> Any:
    truth = labels(true_object(keypoint_xyv=TRUE), points=points)
    recipe = make_recipe(architecture, CLASSES, steps=1, seed=0, seen=inspect_labels(truth))
    return LOOP.open(dataclasses.replace(recipe, config={**config, **recipe.config}), views)


def test_without_a_detector_every_picture_must_hold_one_object_about_where_it_usually_is() -> None:
    unfitted = methods("digitscape_heatmap")
    assert unfitted.fitted(labels(true_object()), None).predictor_spec.options["usual"]["box"] == (
        0.1,
        0.125,
        0.4,
        0.625,
    )
    with pytest.raises(UsageError, match="nobody says where those of unlabelled images are") as told:
        unfitted.fitted(several(), None)
    assert "--detector" in (told.value.hint or "")
    source = ObjectSource("digitscape_mask_rcnn", 0.5, ("three",))
    with pytest.raises(UsageError, match="boxes have no class 'three'"):
        unfitted.fitted(several(), source)
    with pytest.raises(UsageError, match="nosuch"):
        unfitted.fitted(several(), ObjectSource("nosuch", 0.5, ()))
    spec = unfitted.fitted(several(), ObjectSource("digitscape_mask_rcnn", 0.5, ("3",))).predictor_spec
    assert spec.places == {"detector_from": "digitscape_mask_rcnn"} and len(spec.options["detector"]) == 64


def test_models_that_find_their_objects_themselves_need_nobody_who_does() -> None:
    finds = methods("keypoint_rcnn", **small_keypoint_rcnn())
    assert finds.fitted(several(), None).predictor_spec is None
    with pytest.raises(UsageError, match="find their objects themselves"):
        finds.fitted(several(), ObjectSource("digitscape_mask_rcnn", 0.5, ()))


def test_a_mirror_is_refused_where_no_points_change_places_in_it() -> None:
    assert methods("digitscape_heatmap", "hflip").tta_spec == '["hflip"]'
    with pytest.raises(UsageError, match="none of these points change places"):
        methods("digitscape_heatmap", "hflip", points=point_set(["nose", "chin", "middle"]))


def test_what_labels_can_prove_is_counted_by_point() -> None:
    opened = methods("digitscape_heatmap")
    truth = several()
    assert [each.name for each in opened.promised(CLASSES)] == list(POINTS.names)
    assert opened.amounts(truth) == {"left_tip": {"points": 2}, "right_tip": {"points": 2}, "middle": {"points": 0}}
    evidence = opened.evidence(truth, lambda name: 0.9)
    assert (evidence["middle"].pieces, evidence["left_tip"].pieces, evidence["left_tip"].together) == (0, 2, 4)
    assert evidence["left_tip"].needed == 14 and evidence["left_tip"].is_too_little
    assert opened.watched(truth) == frozenset()
