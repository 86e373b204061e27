"""Measured qualities of masks, and what other views do to a teacher's answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import modelkit
from infra.errors import UsageError
from modelkit import Instances, Predictor, rle
from modelkit.detection.two_stage import Detections
from modelkit.digitscape import Digitscape
from tasks.products.segments.confidence import ConfidencePredictor
from tasks.products.segments.quality import QualityPredictor, agreement, stability
from tests.flows.test_retrain import STYLE

SIZE_HW = (32, 48)
UNET = {"num_classes": 3, "backbone": {"widths": [4, 6]}, "transform": {"min_size": 32, "max_size": 64}}


@pytest.fixture(scope="module")
def shipped() -> Predictor:
    return modelkit.load("digitscape_mask_rcnn")


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return Digitscape("test", (128, 128), seed=4, style=STYLE, dense=False).scene(0).image_rgb


def instances(*objects: tuple[int, int, int, int, int]) -> Instances:
    """Filled rectangles: label, x0, y0, x1, y1."""
    masks = []
    for _, x0, y0, x1, y1 in objects:
        canvas = np.zeros(SIZE_HW, bool)
        canvas[y0:y1, x0:x1] = True
        masks.append(rle.encode(canvas))
    return Instances(
        size_hw=SIZE_HW,
        boxes_xyxy=np.array([each[1:] for each in objects], np.float32).reshape(-1, 4),
        scores=np.full(len(objects), 0.9, np.float32),
        labels=np.array([each[0] for each in objects], np.int32),
        rles=masks,
        is_thing=np.ones(len(objects), bool),
    )


def test_stability_is_the_iou_of_the_masks_at_logit_one_and_minus_one() -> None:
    ramp = torch.linspace(-4, 4, 28).sigmoid().expand(28, 28)
    sharp = torch.where(torch.arange(28) < 14, 0.01, 0.99).expand(28, 28)
    nothing = torch.full((28, 28), 0.1)
    boxes = torch.tensor([[4.0, 2.0, 32.0, 30.0]]).repeat(3, 1)
    found = Detections(
        SIZE_HW, boxes, torch.ones(3), torch.ones(3, dtype=torch.long), torch.stack([ramp, sharp, nothing])
    )
    blurred, clear, empty = stability(found).tolist()
    assert blurred == pytest.approx(3 / 5, abs=0.05), (
        "of the ramp from -4 to 4, what lies beyond 1 in what lies beyond -1"
    )
    assert clear > 0.9
    assert empty == 0
    both = [found.finish(threshold=1 / (1 + math.exp(-logit))).rles or [] for logit in (1, -1)]
    assert blurred == pytest.approx(rle.iou(both[0][0], both[1][0], SIZE_HW))


def test_agreement_is_the_mean_over_views_of_the_best_iou_with_the_same_class() -> None:
    found = instances((1, 0, 0, 10, 10), (2, 20, 0, 30, 10), (3, 0, 20, 8, 28))
    same = instances((1, 0, 0, 10, 10), (1, 0, 0, 10, 5), (2, 20, 0, 30, 5))
    other = instances((2, 0, 0, 10, 10))
    assert agreement(found, [same]).tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert agreement(found, [same, other]).tolist() == pytest.approx([0.5, 0.25, 0.0])
    assert agreement(found, [instances()]).tolist() == [0.0, 0.0, 0.0], (
        "a view in which nothing is found agrees with none"
    )
    assert len(agreement(instances(), [same])) == 0


def test_candidates_and_scores_stay_those_of_the_plain_view(shipped: Predictor, scene: np.ndarray) -> None:
    [plain], [measured] = shipped([scene]), QualityPredictor(shipped, ["0.75x", "1.25x"])([scene])
    assert measured.rles == plain.rles and (measured.scores == plain.scores).all()
    qualities = measured.qualities or {}
    assert set(qualities) == {"q_stability", "q_tta"}
    sure = measured.scores > 0.9
    assert sure.sum() >= 5
    for values in qualities.values():
        assert ((values >= 0) & (values <= 1)).all() and values[sure].mean() > values[~sure].mean()
    assert qualities["q_tta"][sure].mean() > 0.7
    [unviewed] = QualityPredictor(shipped)([scene])
    assert set(unviewed.qualities or {}) == {"q_stability"}, "what was not measured is not there"


def test_what_is_found_in_a_mirror_is_compared_where_it_is(shipped: Predictor, scene: np.ndarray) -> None:
    [measured] = QualityPredictor(shipped, ["hflip"])([scene])
    [seen] = shipped([np.ascontiguousarray(scene[:, ::-1])])
    turned = [rle.encode(np.ascontiguousarray(rle.decode(mask, (128, 128))[:, ::-1])) for mask in seen.rles or []]
    by_hand = Instances((128, 128), seen.boxes_xyxy, seen.scores, seen.labels, turned, seen.is_thing)
    expected = agreement(measured, [by_hand])
    assert expected.max() > 0.7, "some digits are the same in a mirror"
    found = (measured.qualities or {})["q_tta"]
    assert np.abs(found - expected).mean() < 0.02, (
        "apart from pixels at the edges of boxes, which are cut from the left"
    )


def test_less_sure_objects_are_left_out_with_their_qualities(shipped: Predictor, scene: np.ndarray) -> None:
    predictor = QualityPredictor(shipped)
    [whole] = predictor([scene])
    predictor.min_score = 0.5
    [part] = predictor([scene])
    kept = np.flatnonzero(whole.scores >= 0.5)
    assert 0 < len(part) < len(whole)
    assert ((part.qualities or {})["q_stability"] == (whole.qualities or {})["q_stability"][kept]).all()


def test_models_whose_masks_have_no_probabilities_are_refused() -> None:
    with pytest.raises(UsageError, match="no probabilities of masks"):
        QualityPredictor(modelkit.load("unet", weights="random:3", config=UNET))


def test_the_mean_with_a_mirror_sees_an_image_and_its_mirror_alike() -> None:
    """A model with averaged probabilities is blind to left and right, one without is not."""
    plain = modelkit.load("unet", weights="random:3", config=UNET)
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)

    def maps(predictor: ConfidencePredictor) -> tuple[np.ndarray, np.ndarray]:
        seen = [predictor.infer([predictor.prepare(np.ascontiguousarray(each))])[0] for each in (image, image[:, ::-1])]
        return tuple(each.confidence.numpy() for each in seen)  # type: ignore[attr-defined, return-value]

    one, other = maps(ConfidencePredictor(plain, ["hflip"]))
    assert np.allclose(one, other[:, ::-1], atol=1e-5)
    one, other = maps(ConfidencePredictor(plain))
    assert not np.allclose(one, other[:, ::-1], atol=1e-3)


def test_probabilities_of_scaled_views_are_averaged_on_the_plain_grid() -> None:
    plain = modelkit.load("unet", weights="random:3", config=UNET)
    image = np.random.default_rng(1).integers(0, 256, (40, 56, 3), np.uint8)
    predictor = ConfidencePredictor(plain, ["0.75x", "1.25x"])
    prepared = predictor.prepare(image)
    maps = [predictor.look([each])[0].probabilities for each in (prepared, *prepared.others)]  # type: ignore[attr-defined]
    size = maps[0].shape[-2:]
    stretched = [
        torch.nn.functional.interpolate(each[None], size=size, mode="bilinear", align_corners=False)[0] for each in maps
    ]
    expected = torch.stack(stretched).mean(0)
    [found] = predictor.infer([prepared])
    assert torch.allclose(found.confidence, expected.max(0).values, atol=1e-6)  # type: ignore[attr-defined]
    [segments] = predictor([image])
    assert segments.qualities is None
    masks = np.stack([rle.decode(mask, (40, 56)) for mask in segments.rles or []])
    assert (masks.sum(0) == 1).all(), "every pixel is a candidate once, as without views"
