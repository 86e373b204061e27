"""Three bands: what is ignored gives a gradient of exactly zero, what weighs less counts less, ones change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from modelkit import TargetError, create_model
from modelkit.detection import ProposalSampler, TwoStageDetector
from modelkit.detection.roi_heads import MaskHead
from modelkit.detection.targets import in_ignored_region
from tests.modelkit.builders import as_tensor, picture, rectangles, small_mask_rcnn

OBJECT, UNSURE = [4.0, 4.0, 28.0, 28.0], [36.0, 36.0, 60.0, 60.0]


def detector() -> TwoStageDetector:
    torch.manual_seed(0)
    # every anchor and proposal is drawn, so that nothing is zero by chance
    config = small_mask_rcnn(sampler={"per_image": 4096})
    config["rpn"] = {**config["rpn"], "samples_per_image": 100_000}
    model = create_model("mask_rcnn", **config)
    assert isinstance(model, TwoStageDetector)
    return model.train()


def gradients(model: TwoStageDetector, target: dict[str, Any], *losses: str) -> tuple[dict[str, Tensor], Any]:
    """Gradients of some losses with respect to the proposal maps, and the geometry."""
    batch, geometries = model.transform.batch([as_tensor(picture(64, 64))])
    raw = {name: value.detach().requires_grad_() for name, value in model.dense(batch).items()}
    named = model.loss(raw, geometries, [model.transform.target(target, geometries[0])])
    sum(named[name] for name in losses).backward()
    empty = {name: torch.zeros_like(value) for name, value in raw.items()}
    return {name: empty[name] if value.grad is None else value.grad for name, value in raw.items()}, geometries


def anchors_in(model: TwoStageDetector, raw: dict[str, Tensor], geometries: Any, boxes: Tensor) -> Tensor:
    """(all anchors,) bool: those in the ignored region, in the order of the flattened maps."""
    _, _, anchors, _ = model.rpn._flatten(raw, geometries)
    return in_ignored_region(anchors[0], {"ignore_boxes": boxes}, model.rpn.background_iou)


def flat_objectness(model: TwoStageDetector, maps: dict[str, Tensor]) -> Tensor:
    pieces = [maps[f"objectness.{level}"].permute(0, 2, 3, 1).reshape(-1) for level in model.rpn.levels]
    return torch.cat(pieces)


def test_an_unsure_object_gives_no_gradient_where_background_would() -> None:
    model = detector()
    known = rectangles(64, 64, [OBJECT], [1])
    ignored = torch.tensor([UNSURE])
    as_background, geometries = gradients(model, known, "loss_objectness")
    as_ignored, _ = gradients(model, {**known, "ignore_boxes": ignored}, "loss_objectness")
    inside = anchors_in(model, as_ignored, geometries, ignored)
    assert inside.sum() > 20
    assert (flat_objectness(model, as_background)[inside] != 0).all(), "without the band they are negatives"
    assert (flat_objectness(model, as_ignored)[inside] == 0).all()
    assert (flat_objectness(model, as_ignored)[~inside] != 0).any()


def test_an_object_that_is_believed_still_counts_inside_an_ignored_region() -> None:
    model = detector()
    target = {**rectangles(64, 64, [OBJECT], [1]), "ignore_boxes": torch.tensor([[-500.0, -500.0, 564.0, 564.0]])}
    maps, _ = gradients(model, target, "loss_objectness", "loss_rpn_box_reg")
    objectness = flat_objectness(model, maps)
    assert (objectness <= 0).all() and (objectness < 0).any(), "only positives pull, and they pull up"


def test_regions_in_the_band_are_never_drawn_as_background() -> None:
    sampler = ProposalSampler(0.5, 512, 0.25)
    proposals = torch.tensor([UNSURE, [40.0, 40, 48, 48], [30, 30, 64, 64], [0, 40, 20, 60], OBJECT])
    target = {**rectangles(64, 64, [OBJECT], [2]), "ignore_boxes": torch.tensor([UNSURE])}
    samples = sampler([proposals], [target])
    drawn = samples.boxes[0].tolist()
    assert [0.0, 40.0, 20.0, 60.0] in drawn, "plain background"
    for inside in proposals[:2].tolist():
        assert inside not in drawn
    assert [30.0, 30.0, 64.0, 64.0] in drawn, "less than half of it lies inside, and so does their IoU"
    assert sorted(samples.labels[0].tolist()) == [0, 0, 2, 2]


def test_what_is_in_the_band() -> None:
    boxes = torch.tensor([UNSURE, [36.0, 36, 40, 40], [24, 36, 48, 60], [0, 0, 64, 64], [0, 0, 8, 8]])
    target = {"ignore_boxes": torch.tensor([UNSURE])}
    expected = [True, True, True, False, False]  # itself, a part, half inside, far larger, elsewhere
    assert in_ignored_region(boxes, target, 0.5).tolist() == expected
    assert not in_ignored_region(boxes, {}, 0.5).any()
    assert not in_ignored_region(boxes, {"ignore_boxes": torch.zeros((0, 4))}, 0.5).any()


def test_the_mask_head_looks_at_no_region_that_teaches_no_mask_and_its_loss_is_the_same() -> None:
    model = detector()
    target = {**rectangles(64, 64, [OBJECT, UNSURE], [1, 2]), "mask_weights": torch.tensor([0.0, 0.5])}
    head = model.roi_heads["mask"]
    assert isinstance(head, MaskHead)
    batch, geometries = model.transform.batch([as_tensor(picture(64, 64))])
    raw = model.dense(batch)
    samples = model.sample(model.rpn.decode(raw, geometries), [target])
    positive, wanted = samples.positive(), head.wanted(samples)
    assert set(positive.labels[0].tolist()) == {1, 2}
    assert set(wanted.labels[0].tolist()) == {2}
    losses = [head.loss(head(raw, chosen.boxes), chosen)["loss_mask"].item() for chosen in (positive, wanted)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("key", "losses", "parts"),
    [
        ("class_weights", ("loss_classifier",), "roi_heads.box.predictor.cls_score"),
        ("box_weights", ("loss_box_reg",), "roi_heads.box.predictor.bbox_pred"),
        ("mask_weights", ("loss_mask",), "roi_heads.mask"),
    ],
)
def test_each_weight_rules_its_own_loss(key: str, losses: tuple[str, ...], parts: str) -> None:
    model = detector()
    plain = rectangles(64, 64, [OBJECT], [1])

    def run(weight: float | None) -> tuple[dict[str, float], float]:
        torch.manual_seed(3)
        model.zero_grad()
        target = plain if weight is None else {**plain, key: torch.tensor([weight])}
        named = model([as_tensor(picture(64, 64))], [target])
        sum(named[name] for name in losses).backward()
        norm = sum(float(p.grad.abs().sum()) for n, p in model.named_parameters() if n.startswith(parts))
        return {name: float(value) for name, value in named.items()}, norm

    without, norm = run(None)
    ones, _ = run(1.0)
    half, _ = run(0.5)
    none, still = run(0.0)
    assert norm > 0
    assert ones == without
    for name, value in half.items():
        weighted = name in losses or (key, name) in {
            ("class_weights", "loss_objectness"),
            ("box_weights", "loss_rpn_box_reg"),
        }
        assert (value < without[name]) if weighted else (value == without[name]), name
    if key != "class_weights":  # background still trains the classifier
        assert none[losses[0]] == 0
        assert still == 0, "an object of weight 0 gives a gradient of exactly 0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ignore_boxes": torch.zeros(4)}, "ignore_boxes must be"),
        ({"class_weights": torch.tensor([1.0, 1.0])}, r"class_weights must be \(1,\)"),
        ({"box_weights": torch.tensor([-1.0])}, "not negative"),
        ({"mask_weights": torch.tensor([float("nan")])}, "finite"),
    ],
)
def test_malformed_bands_are_refused_by_name(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        detector()([as_tensor(picture(64, 64))], [{**rectangles(64, 64, [OBJECT], [1]), **change}])


def test_bands_follow_the_resized_image() -> None:
    model = detector()
    _, geometries = model.transform.batch([as_tensor(picture(32, 32))])
    assert geometries[0].resized_hw == (64, 64)
    target = {"ignore_boxes": torch.tensor([[1.0, 2.0, 3.0, 4.0]]), "semantic_weights": torch.eye(32)}
    resized = model.transform.target(target, geometries[0])
    assert resized["ignore_boxes"].tolist() == [[2.0, 4.0, 6.0, 8.0]]
    assert resized["semantic_weights"].shape == (64, 64)
    assert set(resized["semantic_weights"].unique().tolist()) == {0.0, 1.0}
