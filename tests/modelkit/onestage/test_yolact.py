"""YOLACT as a whole: shapes of its published size, geometry, a scene learnt by heart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modelkit import create_model, rle
from modelkit.digitscape import Digitscape, SceneStyle
from modelkit.weights import random_weights
from tests.modelkit.builders import as_tensor, picture, small_yolact
from tests.modelkit.scenes import image_of, objects_of


def test_prototypes_are_138_by_138_by_32_and_there_is_a_row_for_every_prior() -> None:
    with torch.device("meta"):
        model = create_model("yolact_resnet50").eval()
        raw = model.dense(torch.empty(1, 3, 550, 550))
    shapes = {name: tuple(value.shape) for name, value in raw.items()}
    assert shapes == {
        "deltas": (1, 19_248, 4),
        "logits": (1, 19_248, 81),
        "coefficients": (1, 19_248, 32),
        "prototypes": (1, 32, 138, 138),
    }
    assert "semantic" not in "".join(raw)  # that branch is for training only


def test_every_image_is_squashed_to_one_square() -> None:
    transform = create_model("yolact", **small_yolact()).transform
    assert transform.buckets() == [(64, 64)]
    batch, geometries = transform.batch([as_tensor(picture(30, 100)), as_tensor(picture(90, 50))])
    assert batch.shape == (2, 3, 64, 64)
    assert [each.resized_hw for each in geometries] == [(64, 64)] * 2
    boxes = geometries[0].boxes_to_source(torch.tensor([[0.0, 0, 64, 64]]))
    assert boxes.tolist() == [[0, 0, 100, 30]]


def test_coefficients_have_both_signs_and_prototypes_only_one() -> None:
    model = random_weights("yolact", 0, small_yolact())[0]
    with torch.inference_mode():
        raw = model.dense(model.transform.batch([as_tensor(picture(64, 64))])[0])
    assert (raw["coefficients"].min() < 0) & (raw["coefficients"].max() > 0)
    assert raw["coefficients"].abs().max() <= 1
    assert raw["prototypes"].min() >= 0


def test_a_padded_batch_gives_the_masks_of_its_content() -> None:
    """The transform may also pad: then the grid of masks covers the padding, which must not reach the source."""
    transform = {"min_size": 32, "max_size": 64, "padding": "pad", "size_divisible": 64}
    model = random_weights("yolact", 0, small_yolact(transform=transform))[0]
    found = model.predict([as_tensor(picture(32, 64))])[0]
    assert found.masks.shape[1:] == (8, 16)  # of 16 x 16 cells over 64 x 64
    assert found.finish().size_hw == (32, 64)


def test_a_scene_is_learnt_by_heart() -> None:
    style = SceneStyle(digits=(2, 2), empty_share=0.0, size_px=(60.0, 80.0), noise_std=0.0, overlap=0.0)
    scene = Digitscape("train", (96, 96), 3, style, dense=False).scene(0)
    image, target = image_of(scene), objects_of(scene)
    torch.manual_seed(0)
    model = create_model(
        "yolact",
        num_classes=11,
        backbone={
            "name": "slim_resnet",
            "widths": [16, 24, 32, 48],
            "depths": [1, 1, 1, 1],
            "norm": "group",
            "out": ["c2", "c3", "c4"],
        },
        neck={"channels": 32, "num_downsample": 1},
        head={"anchor_scales": [[24], [40], [60], [84]], "num_prototypes": 8},
        transform={"min_size": 96, "max_size": 96},
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 160)
    for _ in range(160):
        losses = model([image], [target])
        total = torch.stack([model.loss_weights[name] * value for name, value in losses.items()]).sum()
        optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        scheduler.step()
    found = model.eval().predict([image])[0].finish()
    for label, truth in zip(scene.labels.tolist(), scene.masks, strict=True):
        candidates = [k for k in range(len(found)) if found.labels[k] == label and found.scores[k] > 0.9]
        ious = [rle.iou(found.rles[k], rle.encode(truth), scene.size_hw) for k in candidates]
        assert max(ious, default=0) > 0.9, f"digit {label - 1}: {ious}"


@pytest.mark.parametrize("name", ["yolact", "yolact_edge"])
def test_results_are_sorted_and_labels_start_at_one(name: str) -> None:
    model = random_weights(name, 0, small_yolact())[0]
    found = model.predict([as_tensor(picture(50, 80))])[0].finish()
    assert len(found) > 0
    assert (np.diff(found.scores) <= 0).all()
    assert found.labels.min() >= 1
    assert found.labels.max() <= 3
