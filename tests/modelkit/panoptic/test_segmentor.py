"""The panoptic meta-architecture: targets, losses, and weights of a detector that fit in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from modelkit import TargetError, create_model
from modelkit.panoptic import PanopticSegmentor, complete_target
from modelkit.rle import decode
from modelkit.weights import random_weights
from tests.modelkit.builders import as_tensor, picture, rectangles, small_mask_rcnn, small_panoptic


def segmentor(**changes: Any) -> PanopticSegmentor:
    torch.manual_seed(0)
    model = create_model("panoptic_fpn", **small_panoptic(semantic={"channels": 16}, **changes))
    assert isinstance(model, PanopticSegmentor)
    return model


def segment_target() -> dict[str, Any]:
    """Two things, a crowd, stuff and an unlabelled corner."""
    panoptic = torch.full((64, 80), 7)
    panoptic[10:30, 20:50], panoptic[30:60, 5:15], panoptic[0:5, 0:5], panoptic[60:, 70:] = 1, 2, 3, 9
    segments = [
        {"id": 1, "label": 2, "isthing": True},
        {"id": 2, "label": 3, "isthing": True, "iscrowd": False},
        {"id": 3, "label": 1, "isthing": True, "iscrowd": True},
        {"id": 7, "label": 4, "isthing": False},
    ]
    return {"panoptic": panoptic, "segments": segments}


def test_everything_follows_from_a_map_of_segments() -> None:
    target = complete_target(segment_target())
    assert target["boxes"].tolist() == [[20, 10, 50, 30], [5, 30, 15, 60]]
    assert target["labels"].tolist() == [2, 3]
    assert target["masks"].sum((1, 2)).tolist() == [600, 300]
    assert target["semantic"][0, 0] == 255  # a crowd
    assert target["semantic"][63, 79] == 255  # no segment
    assert target["semantic"][0, 79] == 4
    assert all(value.isfinite() for value in segmentor()([as_tensor(picture(64, 80))], [segment_target()]).values())


def test_a_map_without_things_is_a_target() -> None:
    target = complete_target({"panoptic": torch.full((8, 8), 1), "segments": [{"id": 1, "label": 4, "isthing": False}]})
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 8, 8)


def with_semantic(semantic: Tensor) -> dict[str, Tensor]:
    return {**rectangles(64, 80, [[8, 8, 30, 40]], [1]), "semantic": semantic}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (with_semantic(torch.zeros(64, 81, dtype=torch.int64)), r"\(64, 80\)"),
        (with_semantic(torch.zeros(64, 80)), "long"),
        (with_semantic(torch.full((64, 80), 6)), r"0 \.\. 5"),
        ({"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}, "'panoptic' with 'segments'"),
    ],
)
def test_malformed_targets_are_refused(target: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        segmentor()([as_tensor(picture(64, 80))], [target])


def test_losses_are_the_detectors_and_the_semantic_one() -> None:
    model = segmentor()
    losses = model([as_tensor(picture(64, 80))], [segment_target()])
    assert set(losses) == {*model.detector.loss_weights, "loss_semantic"}
    assert model.loss_weights["loss_semantic"] == 0.5


def test_weights_of_a_mask_rcnn_fit_into_the_detector_and_detect_the_same() -> None:
    torch.manual_seed(3)
    config = small_mask_rcnn()
    alone = create_model("mask_rcnn", **config).eval()
    model = segmentor().eval()
    model.detector.load_state_dict(alone.state_dict())
    images = [as_tensor(picture(64, 80))]
    expected = alone.predict(images)[0]
    batch, geometries = model.transform.batch(images)
    with torch.inference_mode():
        actual = model.detector.decode(model.dense(batch), geometries)[0]
    assert torch.equal(expected.boxes_xyxy, actual.boxes_xyxy)


def test_predicted_segments_are_disjoint() -> None:
    model = segmentor(fusion={"score_threshold": 0.0, "stuff_area": 4}).eval()
    instances = model.predict([as_tensor(picture(64, 80))])[0].finish()
    assert len(instances) > 1
    assert instances.rles is not None
    assert sum(decode(rle, (64, 80)).astype(int) for rle in instances.rles).max() == 1


def test_untrained_weights_name_things_and_stuff() -> None:
    classes = random_weights("upsnet", 0, small_panoptic())[1].classes
    assert [(each.id, each.is_thing) for each in classes] == [(1, True), (2, True), (3, True), (4, False), (5, False)]
