"""The demo recipe: it learns, resumes exactly with the real model, and says what it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou, roi_align

from modelkit import create_model
from modelkit.carriers import Instances
from modelkit.digitscape import Digitscape, Scene, SceneStyle
from modelkit.rle.boxes import encode_box_masks
from modelkit.training.checkpoint import load_checkpoint
from modelkit.training.data import SceneBatches, collate
from modelkit.training.demo_model import DemoTraining
from modelkit.training.loop import LoopConfig, Trainer
from modelkit.training.processes import Rank
from modelkit.training.recipes import DemoRecipe, digitscape_mask_rcnn
from modelkit.training.shipping import model_predict
from modelkit.training.train_demo_model import build, train


@pytest.fixture
def tiny() -> DemoRecipe:
    """The real recipe with a narrow backbone, small scenes and few steps.

    Widths are multiples of 16: with 8 and 12 channels, channels-last, torch 2.14.1 corrupts the heap on AVX-512 CPUs.
    """
    recipe = digitscape_mask_rcnn(1)
    model = {
        **recipe.model,
        "backbone": {"name": "slim_resnet", "widths": [16, 16, 32, 32], "depths": [1, 1, 1, 1]},
        "neck": {"name": "fpn", "channels": 16, "extra": None},
    }
    return dataclasses.replace(
        recipe,
        model=model,
        size_hw=(96, 96),
        batch_size=2,
        dense_steps=2,
        loop=LoopConfig(steps=5, warmup_steps=1, checkpoint_every=3),
        evaluate_every=1000,
    )


def test_fingerprint_names_everything_that_changes_weights() -> None:
    recipe = digitscape_mask_rcnn()
    assert recipe.fingerprint == digitscape_mask_rcnn().fingerprint
    for change in (
        {"batch_size": 9},
        {"dense_steps": 1},
        {"style": SceneStyle()},
        {"loop": dataclasses.replace(recipe.loop, learning_rate=1.0)},
        {"model": {**recipe.model, "num_classes": 12}},
    ):
        assert dataclasses.replace(recipe, **change).fingerprint != recipe.fingerprint


def test_training_scenes_are_train_scenes_and_never_repeat_between_processes() -> None:
    batches = SceneBatches(Digitscape("train", (64, 64), dense=False), batch_size=2, num_ranks=2)
    pictures = [
        image.numpy().tobytes() for step in range(2) for rank in range(2) for image in batches.batch(step, rank).images
    ]
    assert len(set(pictures)) == len(pictures)
    again = batches.batch(1, 1)
    assert torch.equal(again.images, batches.batch(1, 1).images)


def test_collate_gives_what_the_detector_wants() -> None:
    scenes = [Digitscape("train", (96, 96), seed=1, dense=False).scene(k) for k in range(4)]
    batch = collate(scenes)
    assert batch.images.shape == (4, 3, 96, 96)
    assert 0 <= float(batch.images.min()) <= float(batch.images.max()) <= 1
    for scene, target, semantic in zip(scenes, batch.targets, batch.semantic, strict=True):
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"]) <= len(scene)
        assert torch.equal(semantic > 0, torch.from_numpy(scene.instance_map > 0))
        for mask, label in zip(target["masks"].bool(), target["labels"], strict=True):
            assert set(semantic[mask].tolist()) == {int(label)}


def test_resume_is_exact_with_the_real_model(tiny: DemoRecipe, tmp_path: Path) -> None:
    train(tiny, tmp_path / "whole", Rank())
    first = dataclasses.replace(tiny)
    model = build(first)
    batches = SceneBatches(Digitscape("train", tiny.size_hw, 1, tiny.style, dense=False), tiny.batch_size)
    trainer = Trainer(
        model,
        lambda step: model.losses(batches.batch(step), step),
        tiny.loop,
        folder=tmp_path / "parts",
        fingerprint=tiny.fingerprint,
    )
    trainer.run(until=3)
    train(tiny, tmp_path / "parts", Rank())
    whole, parts = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "parts")
    assert whole is not None
    assert parts is not None
    assert whole.numbers["step"] == parts.numbers["step"] == 5
    assert whole.tensors.keys() == parts.tensors.keys()
    assert [n for n, t in whole.tensors.items() if not torch.equal(t, parts.tensors[n])] == []


def test_dense_phase_trains_backbone_and_neck_only(tiny: DemoRecipe) -> None:
    model = build(tiny)
    batch = collate([Digitscape("train", (96, 96), dense=False).scene(k) for k in range(2)])
    losses = model.losses(batch, step=0)
    assert list(losses) == ["semantic"]
    losses["semantic"].backward()
    touched = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None}
    assert {"backbone", "neck"} <= touched
    assert not touched & {"rpn", "roi_heads"}
    assert set(model.losses(batch, step=2)) == {
        "loss_objectness",
        "loss_rpn_box_reg",
        "loss_classifier",
        "loss_box_reg",
        "loss_mask",
        "semantic",
    }


def test_overfits_one_scene() -> None:
    """A fresh detector learns one scene by heart: right labels, masks as good as their 28 x 28 cells allow."""
    scene = _two_digits()
    recipe = _overfit_recipe()
    model = build(recipe)
    batch = collate([scene] * 2)
    Trainer(model, lambda step: model.losses(batch, step), recipe.loop).run()
    found = model_predict(model.detector.eval())([scene.image_rgb])[0]
    _assert_found(scene, found)


def test_faster_rcnn_overfits_one_scene() -> None:
    """The same detector without masks: right labels, boxes that fit."""
    scene, recipe = _two_digits(), _overfit_recipe()
    torch.manual_seed(0)
    heads = {"box": recipe.model["heads"]["box"]}
    model = create_model(**{**recipe.model, "name": "faster_rcnn", "heads": heads}).train()
    batch = collate([scene] * 2)
    Trainer(model, lambda step: model(list(batch.images), batch.targets), recipe.loop).run()
    found = model_predict(model.eval())([scene.image_rgb])[0]
    sure = np.flatnonzero(found.scores > 0.5)
    assert sorted(found.labels[sure].tolist()) == sorted(scene.labels.tolist())
    order, truth = sure[np.argsort(found.labels[sure])], np.argsort(scene.labels)
    boxes = [torch.as_tensor(each).float() for each in (found.boxes_xyxy[order], scene.boxes_xyxy[truth])]
    assert box_iou(*boxes).diag().min() > 0.7


def _two_digits() -> Scene:
    style = SceneStyle(
        digits=(2, 2),
        empty_share=0.0,
        size_px=(48, 60),
        overlap=0.0,
        noise_std=0.0,
        blur_share=0.0,
        threshold=(0.15, 0.2),
    )
    source = Digitscape("train", (96, 96), style=style, dense=False)
    return next(s for s in map(source.scene, range(50)) if len(s) == 2)


def _overfit_recipe() -> DemoRecipe:
    recipe = digitscape_mask_rcnn(1)
    loop = LoopConfig(steps=220, learning_rate=2e-3, warmup_steps=10, weight_decay=0.0, decay_from=120, seed=1)
    model = {
        **recipe.model,
        "backbone": {"name": "slim_resnet", "widths": [16, 32, 48, 64], "depths": [1, 1, 1, 1]},
        "transform": {"min_size": 96, "max_size": 96},
    }
    return dataclasses.replace(recipe, model=model, dense_steps=20, loop=loop)


def _assert_found(scene: Scene, found: Instances) -> None:
    from pycocotools import mask as coco_mask

    sure = np.flatnonzero(found.scores > 0.5)
    assert sorted(found.labels[sure].tolist()) == sorted(scene.labels.tolist())
    assert found.rles is not None
    masks = [coco_mask.decode({"size": list(scene.size_hw), "counts": found.rles[k]}).astype(bool) for k in sure]
    for truth, box in zip(scene.masks, scene.boxes_xyxy, strict=True):
        assert max(_iou(truth, mask) for mask in masks) > 0.9 * _limit_of_the_grid(truth, box)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def _limit_of_the_grid(truth: np.ndarray, box_xyxy: np.ndarray) -> float:
    """IoU of a mask with itself after a stay in 28 x 28 cells of its box: 0.85 to 0.89 for strokes of six pixels."""
    from pycocotools import mask as coco_mask

    box = torch.from_numpy(box_xyxy).float()[None]
    cells = roi_align(torch.from_numpy(truth)[None, None].float(), [box], (28, 28))
    rle = encode_box_masks(cells[:, 0], box, truth.shape)[0]
    return _iou(truth, coco_mask.decode({"size": list(truth.shape), "counts": rle}).astype(bool))


def test_demo_training_refuses_a_model_of_another_kind() -> None:
    recipe = dataclasses.replace(digitscape_mask_rcnn(), model={"name": "lraspp_mobilenet_v3_large"})
    with pytest.raises(ValueError, match="two-stage"):
        DemoTraining(recipe)
