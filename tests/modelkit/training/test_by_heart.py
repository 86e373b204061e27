"""Every system learns a scene by heart: losses, targets, decoding and training fit together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, roi_align

from modelkit import Instances, VisionModel, create_model, load
from modelkit.digitscape import Digitscape, Scene, SceneStyle
from modelkit.metrics import PanopticQuality, SemanticQuality, count_id_switches, panoptic_array, video_panoptic_quality
from modelkit.metrics.panoptic import DIVISOR
from modelkit.panoptic import VPSNet
from modelkit.rle import decode
from modelkit.rle.boxes import encode_box_masks
from modelkit.training.auxiliary import AuxiliaryConfig, AuxiliaryHead
from modelkit.training.loop import LoopConfig, Trainer
from modelkit.training.student import weighted_losses
from modelkit.training.transfer import adopt
from tasks.products.segments.digitscape import DETECTOR, panoptic_config
from tests.modelkit.scenes import digits_of, image_of, objects_of, panoptic_of, two_digits

THINGS = range(1, 11)
SMALL = {
    **DETECTOR,
    "num_classes": 11,
    "backbone": {"name": "slim_resnet", "widths": [16, 32, 48, 64], "depths": [1, 1, 1, 1]},
    "transform": {"min_size": 96, "max_size": 96},
}


def learnt(model: VisionModel, images: Sequence[Tensor], targets: Sequence[dict[str, Any]], **loop: Any) -> VisionModel:
    """The model after it has seen these images in every step."""
    config = LoopConfig(**{"learning_rate": 2e-3, "warmup_steps": 10, "weight_decay": 0.0, **loop})
    Trainer(model, lambda step: weighted_losses(model, images, targets), config).run()
    return model.eval()


def found_in(model: VisionModel, scene: Scene) -> Instances:
    return model.predict([image_of(scene)])[0].finish()


def test_mask_rcnn_learns_one_scene_with_an_auxiliary_head_that_begins_alone() -> None:
    """Right labels, masks as good as their 28 x 28 cells allow."""
    scene = two_digits((96, 96), (48, 60))
    torch.manual_seed(0)
    model = create_model("mask_rcnn", **SMALL)
    head = AuxiliaryHead(model, AuxiliaryConfig(alone=20, background=0.4))
    module = torch.nn.ModuleDict({"model": model, "head": head})
    images, targets = [image_of(scene)] * 2, [objects_of(scene)] * 2
    loop = LoopConfig(
        steps=220, learning_rate=2e-3, warmup_steps=10, restart_step=20, weight_decay=0.0, decay_from=120, seed=1
    )
    Trainer(module, lambda step: head(model, images, targets), loop).run()
    found = found_in(model.eval(), scene)
    sure = np.flatnonzero(found.scores > 0.5)
    assert sorted(found.labels[sure].tolist()) == sorted(scene.labels.tolist())
    assert found.rles is not None
    masks = [decode(found.rles[k], scene.size_hw).astype(bool) for k in sure]
    for truth, box in zip(scene.masks, scene.boxes_xyxy, strict=True):
        assert max(_iou(truth, mask) for mask in masks) > 0.9 * _limit_of_the_grid(truth, box)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def _limit_of_the_grid(truth: np.ndarray, box_xyxy: np.ndarray) -> float:
    """IoU of a mask with itself after a stay in 28 x 28 cells of its box: 0.85 to 0.89 for strokes of six pixels."""
    box = torch.from_numpy(box_xyxy).float()[None]
    cells = roi_align(torch.from_numpy(truth)[None, None].float(), [box], (28, 28))
    rle = encode_box_masks(cells[:, 0], box, truth.shape)[0]
    return _iou(truth, decode(rle, truth.shape).astype(bool))


def test_faster_rcnn_learns_one_scene() -> None:
    """The same detector without masks: right labels, boxes that fit."""
    scene = two_digits((96, 96), (48, 60))
    torch.manual_seed(0)
    model = create_model("faster_rcnn", **{**SMALL, "heads": {"box": DETECTOR["heads"]["box"]}})
    learnt(model, [image_of(scene)] * 2, [objects_of(scene)] * 2, steps=220, decay_from=120, seed=1)
    found = found_in(model, scene)
    sure = np.flatnonzero(found.scores > 0.5)
    assert sorted(found.labels[sure].tolist()) == sorted(scene.labels.tolist())
    order, truth = sure[np.argsort(found.labels[sure])], np.argsort(scene.labels)
    boxes = [torch.as_tensor(each).float() for each in (found.boxes_xyxy[order], scene.boxes_xyxy[truth])]
    assert box_iou(*boxes).diag().min() > 0.7


SEMANTIC: dict[str, dict[str, Any]] = {
    "deeplabv3plus": {
        "backbone": {"name": "slim_resnet", "widths": [32, 64, 64], "depths": [1, 1, 1]},
        "head": {"channels": 64, "low_channels": 32, "decoder_convs": 2, "separable": True, "dropout": 0.0},
    },
    "fcn": {
        "backbone": {"width": 16, "batch_norm": True, "depth": 11, "out": ["c2", "c3", "c4", "c5"]},
        "head": {"channels": 32, "dropout": 0.0},
    },
    "unet": {"backbone": {"widths": [16, 16, 32]}},
}


@pytest.mark.parametrize(("name", "side", "steps"), [("deeplabv3plus", 224, 120), ("fcn", 128, 100), ("unet", 64, 80)])
def test_every_semantic_system_learns_one_scene(name: str, side: int, steps: int) -> None:
    """Scenes are enlarged where logits lie on a coarse grid."""
    scene = two_digits((64, 96), (52, 60))
    torch.manual_seed(0)
    model = create_model(
        name, num_classes=11, **SEMANTIC[name], losses={"dice": 1.0, "background": 0.4}, upsample="source",
        transform={"min_size": side, "max_size": 2 * side},
    )  # fmt: skip
    target = {"semantic": digits_of(scene)}
    learnt(
        model, [image_of(scene)] * 2, [target] * 2,
        steps=steps, learning_rate=4e-3, warmup_steps=5, decay_from=steps // 2, ema_decay=0.9,
    )  # fmt: skip
    found, labels = found_in(model, scene), np.zeros(scene.size_hw, np.int64)
    for label, mask in zip(found.labels, found.rles or (), strict=True):
        labels[decode(mask, scene.size_hw).astype(bool)] = label
    quality = SemanticQuality(11)
    quality.add(digits_of(scene).numpy(), labels)
    assert quality.scores().miou > 0.95, quality.scores()


# large digits: of a thin one, what two CPUs round differently decides whether it is found
SOURCE = Digitscape(
    "train", (96, 96), seed=5, style=SceneStyle(digits=(2, 3), size_px=(40.0, 60.0), empty_share=0.0), dense=False
)


def panoptic(name: str, image: Tensor, target: dict[str, Any], steps: int) -> VisionModel:
    """Around the shipped detector; fresh parts learn eight times as fast."""
    torch.manual_seed(0)
    config = {**panoptic_config(name), "transform": {"min_size": 96, "max_size": 192}}
    model = create_model(name, num_things=10, num_stuff=5, **config)
    shipped = load("digitscape_mask_rcnn").model.state_dict()
    adopt(model, shipped)
    fresh = {"semantic.": 8.0, "temporal.": 8.0, "detector.roi_heads.track.": 8.0}
    rates = {**fresh, **{f"semantic.subnet.{k}.0.offset.": 0.1 for k in range(2)}}
    loop = LoopConfig(steps=steps, learning_rate=4e-4, warmup_steps=4, ema_decay=0.9)
    Trainer(model, lambda step: weighted_losses(model, [image], [target]), loop, rate_scales=rates).run()
    return model.eval()


@pytest.mark.parametrize("name", ["panoptic_fpn", "upsnet"])
def test_panoptic_systems_learn_one_scene(name: str) -> None:
    scene = SOURCE.scene(0)
    model = panoptic(name, image_of(scene), panoptic_of(scene), 35)
    quality = PanopticQuality(THINGS)
    quality.add(scene.panoptic_array(DIVISOR), panoptic_array(found_in(model, scene)))
    scores = quality.scores()
    assert scores.all.rq == 1, scores
    assert scores.all.pq > 0.8, scores


def test_vpsnet_learns_one_clip_and_keeps_its_identities() -> None:
    before, scene = SOURCE.clip(0, 2)
    reference = {f"reference_{name}": objects_of(before)[name] for name in VPSNet.reference_fields or ()}
    target = {**panoptic_of(scene), "reference_image": image_of(before), **reference}
    model = panoptic("vpsnet", image_of(scene), target, 40)
    assert isinstance(model, VPSNet)
    found = [each.finish() for each in model.predict_video([image_of(before), image_of(scene)])[0]]
    truth = np.stack([each.panoptic_array(DIVISOR) for each in (before, scene)])
    answer = np.stack([panoptic_array(each, tracked=True) for each in found])
    scores = video_panoptic_quality([(truth, answer)], THINGS, (1, 2))
    assert scores[1].all.rq == scores[2].all.rq == 1, scores
    assert scores[2].all.pq > 0.8, scores
    assert count_id_switches(truth, answer, THINGS) == 0
