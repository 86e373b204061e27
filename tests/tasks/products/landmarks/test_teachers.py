"""Teachers of points look at several views: what they differ by is measured, and their mean is the point."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from modelkit import ClassInfo, Predictor
from modelkit.carriers.landmarks import ABSENT, VISIBLE, Landmarks
from modelkit.landmarks import HeatmapLandmarker
from modelkit.weights import random_weights
from tasks.labels.label_sets import LabelledItem, LabelledObject, LabelSet, make_label_set
from tasks.labels.points import point_set
from tasks.products.landmarks.overlaps import likeness
from tasks.products.landmarks.places import UsualPlace, usual_place
from tasks.products.landmarks.quality import TopDownTeacher, ViewsOfObjects, brought_together
from tests.modelkit.builders import small_keypoint_rcnn, small_landmarker

VIEWS = ("hflip", "0.75x", "1.25x")
LEFT_XY, RIGHT_XY = (40.0, 50.0), (60.0, 50.0)
BOX = (30.0, 30.0, 70.0, 70.0)
PAIRS = [[0, 1]]

coordinates = st.floats(0, 100, allow_nan=False, width=32)


class LeftAndRight(nn.Module):
    """Maps of a point that is bright and to the left, and of one that is bright and to the right: in a mirror the same
    two points, exchanged."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        bright = images.mean(1).clamp(min=0)
        ramp = torch.linspace(0, 1, images.shape[-1])
        maps = torch.stack([bright * (1.5 - ramp), bright * (0.5 + ramp)], 1)
        return {"heatmaps": maps / maps.amax((-2, -1), keepdim=True).clamp(min=1e-6)}


def sees_two_dots(flip_pairs: Sequence[Sequence[int]] = PAIRS) -> Predictor:
    """A landmarker that needs no training: the left one of two bright dots is point 0, the right one point 1."""
    _, record = random_weights("heatmap_landmarker", 0, small_landmarker(num_keypoints=2, flip_pairs=PAIRS))
    model = HeatmapLandmarker(
        LeftAndRight(), codec={"decoder": "centre_of_mass", "radius": 4}, num_keypoints=2, margin=1.25,
        transform={"padding": "letterbox", "fixed_hw": [64, 64]}, flip_pairs=flip_pairs, flip_test=False,
    )  # fmt: skip
    return Predictor(model, record)


def two_dots(shift: int = 0) -> np.ndarray:
    """(100, 120, 3): grey, with white dots of 4 x 4 pixels about the two places."""
    picture = np.full((100, 120, 3), 116, np.uint8)
    for x, y in (LEFT_XY, RIGHT_XY):
        picture[int(y) - 2 : int(y) + 2, int(x) - 2 + shift : int(x) + 2 + shift] = 255
    return picture


class Boxes:
    """Stands in for a detector that finds one object, or none, in every image."""

    is_video, weights = False, dataclasses.replace(random_weights("heatmap_landmarker", 0, small_landmarker())[1])

    def __init__(self, *boxes: tuple[float, ...]) -> None:
        self._boxes = boxes

    def prepare(self, image: np.ndarray) -> Any:
        return sees_two_dots().prepare(image)

    def infer(self, prepared: Sequence[Any]) -> list[Any]:
        return [self._found(each.geometry.source_hw) for each in prepared]

    def _found(self, size_hw: tuple[int, int]) -> Landmarks:
        n = len(self._boxes)
        empty = Landmarks.empty(size_hw, 0)
        return dataclasses.replace(
            empty, boxes_xyxy=np.array(self._boxes, np.float32).reshape(-1, 4), scores=np.full(n, 0.9, np.float32),
            labels=np.ones(n, np.int32), keypoints_xy=np.zeros((n, 0, 2), np.float32),
            keypoint_scores=np.zeros((n, 0), np.float32), visibility=np.zeros((n, 0), np.uint8),
        )  # fmt: skip

    def finish(self, raw: Landmarks) -> Landmarks:
        return raw


def test_views_of_an_object_are_put_right_and_agree_where_the_model_is_steady() -> None:
    teacher = TopDownTeacher(sees_two_dots(), Boxes(BOX), VIEWS)  # type: ignore[arg-type]
    [found] = teacher([two_dots()])
    assert np.allclose(found.keypoints_xy[0], [LEFT_XY, RIGHT_XY], atol=1.0)
    assert found.agreement is not None and found.agreement.min() > 0.8
    assert np.allclose(found.boxes_xyxy, [BOX])


def test_a_mirror_that_does_not_exchange_points_is_seen_to_disagree() -> None:
    exchanged, kept = (
        TopDownTeacher(sees_two_dots(pairs), Boxes(BOX), ["hflip"])([two_dots()])[0]  # type: ignore[arg-type]
        for pairs in (PAIRS, [])
    )
    assert exchanged.agreement is not None and kept.agreement is not None
    assert exchanged.agreement.min() > 0.9
    assert kept.agreement.max() < 0.81, "the mirror, one of five other views, has the points elsewhere"


def test_images_without_objects_have_none_and_do_not_disturb_their_neighbours() -> None:
    nothing = TopDownTeacher(sees_two_dots(), Boxes(), VIEWS)  # type: ignore[arg-type]
    assert [len(each) for each in nothing([two_dots(), two_dots(3)])] == [0, 0]
    one, other = TopDownTeacher(sees_two_dots(), Boxes(BOX), VIEWS)([two_dots(), two_dots(3)])  # type: ignore[arg-type]
    assert np.allclose(other.keypoints_xy - one.keypoints_xy, [3, 0], atol=0.5)


def test_what_is_found_in_the_usual_place_says_where_the_object_is() -> None:
    usual = UsualPlace((0.2, 0.3, 0.8, 0.8), (-0.5, -1.0, 0.5, 1.0))
    [found] = TopDownTeacher(sees_two_dots(), usual, ["0.75x"])([two_dots(shift=10)])
    assert np.allclose(found.keypoints_xy[0], np.add([LEFT_XY, RIGHT_XY], [10, 0]), atol=1.0)
    x0, _, x1, _ = found.boxes_xyxy[0]
    assert (x0, x1) == pytest.approx((40, 80), abs=2.0), "half their distance beyond the points on either side"


def test_a_model_that_finds_objects_itself_is_asked_for_the_same_ones_in_every_view() -> None:
    model, record = random_weights("keypoint_rcnn", 0, small_keypoint_rcnn())
    points = point_set(["left", "right", "middle"])
    plain = Predictor(model, dataclasses.replace(record, keypoints=points))
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    [alone], [viewed] = plain([image]), ViewsOfObjects(plain, VIEWS, points)([image])
    assert len(alone) == len(viewed) > 0 and np.allclose(alone.boxes_xyxy, viewed.boxes_xyxy)
    assert np.allclose(alone.scores, viewed.scores) and alone.agreement is None
    assert viewed.agreement is not None and viewed.agreement.shape == viewed.keypoint_scores.shape
    assert (viewed.agreement >= 0).all() and (viewed.agreement <= 1).all()


def objects(points_xy: np.ndarray) -> Landmarks:
    """Objects of (n, K, 2) points, NaN where absent, in boxes of 30 x 40."""
    n = len(points_xy)
    present = np.isfinite(points_xy).all(-1)
    return Landmarks(
        (100, 100), np.tile(np.float32([0, 0, 30, 40]), (n, 1)), np.full(n, 0.5, np.float32), np.ones(n, np.int32),
        points_xy.astype(np.float32), present.astype(np.float32) * np.float32(0.8),
        np.where(present, VISIBLE, ABSENT).astype(np.uint8),
    )  # fmt: skip


def test_points_are_where_views_have_them_on_average_and_absent_ones_stay_absent() -> None:
    plain = objects(np.array([[[10.0, 10.0], [np.nan, np.nan], [20.0, 20.0]]]))
    views = np.array([[[[12.0, 10.0], [5.0, 5.0], [np.nan, np.nan]]], [[[14.0, 10.0], [5.0, 5.0], [20.0, 20.0]]]])
    found = brought_together(plain, views, np.full((2, 1, 3), 0.5))
    assert np.allclose(found.keypoints_xy[0, [0, 2]], [[12, 10], [20, 20]])
    assert np.isnan(found.keypoints_xy[0, 1]).all() and found.visibility[0].tolist() == [VISIBLE, ABSENT, VISIBLE]
    first, absent, missed = found.agreement[0].tolist()  # type: ignore[index]
    assert first == pytest.approx((np.exp(-0.5 * (2 / 2.5) ** 2) + np.exp(-0.5 * (4 / 2.5) ** 2)) / 2)
    assert (absent, missed) == (0.0, 0.5), "a view that lacks a point does not agree about it"
    assert found.keypoint_scores[0] == pytest.approx([0.6, 0.0, (0.8 + 0.5) / 3])


@given(st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=4), st.randoms())
def test_the_order_of_views_does_not_matter_and_equal_ones_agree(places: list[tuple[float, float]], rng: Any) -> None:
    plain = objects(np.array([[places[0]]]))
    views = np.array(places).reshape(-1, 1, 1, 2)
    shuffled = views[rng.sample(range(len(views)), len(views))]
    scores = np.ones((len(views), 1, 1))
    one, other = (brought_together(plain, each, scores) for each in (views, shuffled))
    assert np.allclose(one.keypoints_xy, other.keypoints_xy, atol=1e-3)
    assert np.allclose(one.agreement, other.agreement) and 0 <= one.agreement.min()  # type: ignore[arg-type, union-attr]
    same = brought_together(plain, np.repeat(plain.keypoints_xy[None], 3, 0), np.ones((3, 1, 1)))
    assert np.allclose(same.agreement, 1) and np.allclose(same.keypoints_xy, plain.keypoints_xy)  # type: ignore[arg-type]


@given(st.floats(0, 50), st.floats(0.001, 50), st.floats(1, 20))
def test_likeness_falls_with_the_distance_and_knows_no_scale(near: float, more: float, scale: float) -> None:
    box = np.array([[0.0, 0.0, 30.0, 40.0]])
    one, other = likeness(np.array([[near, near + more]]), box)[0]
    assert 0 <= other <= one <= 1
    assert likeness(np.array([[scale * near]]), scale * box)[0, 0] == pytest.approx(one)
    assert likeness(np.array([[0.0, np.nan, np.inf]]), box)[0].tolist() == [1.0, 0.0, 0.0]


def labels_of(*boxes_of: Sequence[tuple[float, float, float, float]]) -> LabelSet:
    """Pictures of 100 x 200 with objects whose points are 10 % inside of their boxes."""
    items = []
    for k, boxes in enumerate(boxes_of):
        things = []
        for x0, y0, x1, y1 in boxes:
            inside = 0.1 * np.array([x1 - x0, y1 - y0])
            points = ((x0 + inside[0], y0 + inside[1], 2.0), (x1 - inside[0], y1 - inside[1], 2.0))
            things.append(LabelledObject(1, None, (x0, y0, x1, y1), keypoint_xyv=points))
        items.append(LabelledItem(f"/p/{k}.png", (100, 200), tuple(things)))
    return make_label_set(items, [ClassInfo(1, "thing")], origin_format="test", points=point_set(["a", "b"]))


def test_the_usual_place_is_that_of_labels_with_one_object_in_each_picture() -> None:
    near = [[(20.0, 10.0, 100.0, 90.0)], [(22.0, 12.0, 102.0, 92.0)], [(60.0, 10.0, 140.0, 90.0)], []]
    usual = usual_place(labels_of(*near))
    assert usual is not None and usual.box == pytest.approx((0.11, 0.1, 0.51, 0.9))
    assert usual.edges == pytest.approx((-0.125, -0.125, 0.125, 0.125))
    points = np.array([[28.0, 18.0], [92.0, 82.0], [np.nan, np.nan]])
    assert usual.around(points, (100, 200)) == pytest.approx([20, 10, 100, 90])
    assert usual.around(np.full((2, 2), np.nan), (100, 200)) == pytest.approx(usual.in_picture((100, 200)))
    assert UsualPlace(**usual.to_json()) == usual


def test_there_is_no_usual_place_of_several_objects_or_of_some_that_are_anywhere() -> None:
    assert usual_place(labels_of([(0, 0, 50, 50), (100, 0, 150, 50)], [(0, 0, 50, 50)])) is None
    assert usual_place(labels_of([(0, 0, 40, 40)], [(160, 60, 200, 100)], [(80, 30, 120, 70)])) is None
