"""Test-time augmentation: views go in by a geometry of their own, and mirrors are put right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from modelkit import ConfigError, Predictor, load
from modelkit.base import Prediction, SoftMasks
from modelkit.detection.two_stage import Detections
from modelkit.onestage.detector import GridDetections
from modelkit.rle import decode
from modelkit.transform import ImageTransform
from modelkit.tta import VIEWS, PreparedViews, ViewsPredictor
from modelkit.weights import random_weights
from tests.modelkit.builders import picture, small_mask_rcnn

SIZE_HW = (40, 56)


class AllViews(ViewsPredictor):
    """Keeps what was seen in each view."""

    def merge(self, plain: Prediction, others: Sequence[Prediction]) -> Prediction:
        self.seen = [plain, *others]
        return plain


@pytest.fixture(scope="module")
def detector() -> Predictor:
    return Predictor(*random_weights("mask_rcnn", 0, small_mask_rcnn()))


def soft_masks(kind: str) -> SoftMasks:
    """A bump and a slope: smooth, and other than their mirror images."""
    boxes = torch.tensor([[3.0, 2.0, 20.5, 30.25], [17.0, 8.0, 56.0, 39.0]])
    shape = (2, 14, 14) if kind == "boxes" else (2, 20, 28)
    y, x = (torch.linspace(-1, 1, side) for side in shape[1:])
    masks = torch.stack([torch.exp(-2 * (y[:, None] ** 2 + (x - 0.3) ** 2)), (3 * (x + y[:, None])).sigmoid()])
    scores, labels = torch.tensor([0.9, 0.5]), torch.tensor([1, 2])
    return (Detections if kind == "boxes" else GridDetections)(SIZE_HW, boxes, scores, labels, masks)


@pytest.mark.parametrize("kind", ["boxes", "grid"])
def test_masks_that_were_seen_in_a_mirror_are_put_right(kind: str) -> None:
    plain = soft_masks(kind)
    there, back = plain.mirrored(), plain.mirrored().mirrored()
    for mask, turned in zip(plain.finish().rles or [], there.finish().rles or [], strict=True):
        one, other = decode(mask, SIZE_HW)[:, ::-1].astype(bool), decode(turned, SIZE_HW).astype(bool)
        overlap = (one & other).sum() / (one | other).sum()
        assert overlap > 0.85, "boxes are cut to whole pixels from the left, as torchvision does: a pixel may be off"
    assert np.allclose(back.finish().boxes_xyxy, plain.finish().boxes_xyxy)
    assert there.finish().boxes_xyxy[0].tolist() == [56 - 20.5, 2.0, 56 - 3.0, 30.25]


def test_a_view_is_what_its_name_says(detector: Predictor) -> None:
    image = picture(64, 80)
    prepared = AllViews(detector, VIEWS).prepare(image)
    assert isinstance(prepared, PreparedViews)
    mirrored, smaller, larger = prepared.others
    assert (mirrored.pixels == prepared.pixels[:, ::-1]).all()
    assert mirrored.geometry == prepared.geometry
    assert (smaller.geometry.resized_hw, larger.geometry.resized_hw) == ((48, 60), (80, 100))
    assert prepared.nbytes == sum(each.nbytes for each in (mirrored, smaller, larger)) + prepared.pixels.nbytes
    assert AllViews(detector).prepare(image).nbytes == detector.prepare(image).nbytes, "no view costs nothing"


@pytest.mark.parametrize("padding", ["stretch", "square"])
def test_scaled_views_of_models_that_padding_disturbs_have_none(padding: str) -> None:
    transform = ImageTransform(min_size=96, max_size=192, padding=padding, size_divisible=32)  # type: ignore[arg-type]
    for name in ("0.75x", "1.25x"):
        geometry = VIEWS[name].geometry(transform, (100, 140))
        assert geometry.resized_hw == geometry.padded_hw and geometry.padded_hw[0] % 32 == 0


def test_neighbours_in_a_batch_never_change_what_is_seen_in_a_view(detector: Predictor) -> None:
    predictor = AllViews(detector, ["0.75x", "hflip"])
    images = [picture(64, 80, seed) for seed in (1, 2)]
    both = [predictor.prepare(image) for image in images]
    predictor.infer(both)
    beside = [each.finish() for each in predictor.seen]
    predictor.infer(both[1:])
    alone = [each.finish() for each in predictor.seen]
    assert len(alone) == 3
    for a, b in zip(beside, alone, strict=True):
        assert a.size_hw == (64, 80) and a.rles == b.rles and np.allclose(a.scores, b.scores, atol=1e-6)


def test_views_that_cannot_be_are_refused(detector: Predictor) -> None:
    with pytest.raises(ConfigError, match=r"no view vflip; there are hflip, 0\.75x, 1\.25x"):
        AllViews(detector, ["vflip"])
    clips = load("yolact_edge", weights="random:0", config={"num_classes": 3, "transform": {"min_size": 64}})
    with pytest.raises(ConfigError, match="memory"):
        AllViews(clips, ["hflip"])
    assert not AllViews(clips).views, "without views it may look at single images"
