"""With equal weights our skeleton is torchvision's detector: same keys, same detections, same losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from modelkit import VisionModel, create_model
from modelkit.detection import Detections
from modelkit.importing import TABLES
from modelkit.weights import load_state
from tests.modelkit.builders import as_tensor, picture, rectangles

NAMES = ["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"]
SIZES = {"min_size": 128, "max_size": 200}
FEW_PROPOSALS = {"pre_nms_test": 150, "post_nms_test": 60, "pre_nms_train": 200, "post_nms_train": 100}
THEIRS: dict[str, Any] = {
    **SIZES,
    "box_score_thresh": 0.0,
    "box_detections_per_img": 20,
    "rpn_pre_nms_top_n_test": 150,
    "rpn_post_nms_top_n_test": 60,
    "rpn_pre_nms_top_n_train": 200,
    "rpn_post_nms_top_n_train": 100,
    "box_batch_size_per_image": 64,
}


def reference(name: str) -> torch.nn.Module:
    torch.manual_seed(7)
    builder = getattr(torchvision.models.detection, name)
    return builder(weights=None, weights_backbone=None, **THEIRS).eval()


def ours_from(name: str, theirs: torch.nn.Module, **config: Any) -> VisionModel:
    options = {"transform": SIZES, "rpn": FEW_PROPOSALS, "sampler": {"per_image": 64}, **config}
    model = create_model(name, heads={"box": {"score_threshold": 0.0, "detections_per_image": 20}}, **options)
    load_state(model, TABLES[name].rename(theirs.state_dict()), name)
    return model.eval()


def images() -> list[Tensor]:
    return [as_tensor(picture(120, 150, 1)), as_tensor(picture(151, 97, 2))]


def worst_difference(theirs: dict[str, Tensor], found: Detections) -> dict[str, float]:
    assert len(theirs["scores"]) == len(found.scores) == 20
    assert torch.equal(theirs["labels"], found.labels)
    differences = {
        "boxes": (theirs["boxes"] - found.boxes_xyxy).abs().max(),
        "scores": (theirs["scores"] - found.scores).abs().max(),
    }
    if found.masks is not None:
        pasted = paste_masks_in_image(found.masks[:, None], found.boxes_xyxy, found.size_hw)
        differences["masks"] = (theirs["masks"] - pasted).abs().max()
    return {name: float(value) for name, value in differences.items()}


@pytest.mark.parametrize("name", NAMES)
def test_same_weights_give_the_same_detections(name: str) -> None:
    theirs = reference(name)
    ours = ours_from(name, theirs)
    with torch.inference_mode():
        expected = theirs([image.clone() for image in images()])
    for wanted, found in zip(expected, ours.predict(images()), strict=True):
        worst = worst_difference(wanted, found)
        assert max(worst.values()) <= 1e-5, worst


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_has_exactly_one_counterpart(name: str) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None).state_dict()
        own = create_model(name).state_dict()
    renamed = TABLES[name].rename(theirs)
    assert len(renamed) == len(theirs)
    assert {key: value.shape for key, value in renamed.items()} == {key: value.shape for key, value in own.items()}


def test_the_names_of_the_published_file_translate_too() -> None:
    """torchvision's COCO files are older than its present names; its own modules know how they were called."""
    with torch.device("meta"):
        theirs = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    old_names = {}
    for key, value in theirs.items():
        key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for k in range(4):
            key = key.replace(f"mask_head.{k}.0.", f"mask_head.mask_fcn{k + 1}.")
            key = key.replace(f"fpn.inner_blocks.{k}.0.", f"fpn.inner_blocks.{k}.")
            key = key.replace(f"fpn.layer_blocks.{k}.0.", f"fpn.layer_blocks.{k}.")
        old_names[key] = value
    assert old_names.keys() != theirs.keys()
    table = TABLES["maskrcnn_resnet50_fpn"]
    assert table.rename(old_names).keys() == table.rename(theirs).keys()


def test_same_seed_gives_the_same_losses() -> None:
    theirs = reference("maskrcnn_resnet50_fpn").train()
    ours = ours_from("maskrcnn_resnet50_fpn", theirs).train()
    # It draws the only size there is, and spends a random number on it.
    theirs.transform.torch_choice = lambda sizes: sizes[0]
    batch = images()[:2]
    targets = [
        rectangles(120, 150, [[10, 10, 60, 70], [50, 40, 140, 110]], [1, 5]),
        rectangles(151, 97, [], []),
    ]
    torch.manual_seed(3)
    expected = theirs([image.clone() for image in batch], [{k: v.clone() for k, v in t.items()} for t in targets])
    torch.manual_seed(3)
    actual = ours(batch, targets)
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        assert actual[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-7), name


def test_frozen_norms_with_zero_eps_compute_as_the_published_model_does() -> None:
    torch.manual_seed(7)
    theirs = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, **THEIRS)
    frozen = torchvision.ops.FrozenBatchNorm2d
    backbone = torchvision.models.resnet50(weights=None, norm_layer=frozen)
    theirs.backbone.body = torchvision.models._utils.IntermediateLayerGetter(
        backbone, {f"layer{k + 1}": str(k) for k in range(4)}
    )
    torchvision.models.detection._utils.overwrite_eps(theirs, 0.0)
    frozen_norms = {"norm": "frozen_batch", "norm_eps": 0.0}
    ours = ours_from("maskrcnn_resnet50_fpn", theirs, backbone=frozen_norms)
    with torch.inference_mode():
        expected = theirs.eval()([images()[0].clone()])
    worst = worst_difference(expected[0], ours.predict(images()[:1])[0])
    assert max(worst.values()) <= 1e-5, worst
