"""Same weights, same picture: our RetinaFace computes what biubug6/Pytorch_Retinaface computes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from modelkit import Predictor
from modelkit.transform import Geometry
from tests.modelkit.builders import picture
from tests.modelkit.reference.checkouts import reference
from tests.modelkit.reference.test_semantic_parity import imported, randomise

pytestmark = pytest.mark.reference
_REPOSITORY, _TOLERANCE = "Pytorch_Retinaface", 1e-5
_HW = (97, 131)
_SCALE = torch.tensor([_HW[1], _HW[0]], dtype=torch.float32)
SIZES = [("retinaface", "cfg_mnet"), ("retinaface_resnet50", "cfg_re50")]


def relative(given: Tensor, expected: Tensor) -> float:
    assert given.shape == expected.shape
    assert float(expected.std()) > 1e-3
    return float((given - expected).abs().max() / expected.abs().max())


def build(config: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any]]:
    """Their network with random weights, in training mode but for its norms, so that it gives logits."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *options: self)
    options = {**getattr(importlib.import_module("data.config"), config), "pretrain": False}
    return randomise(importlib.import_module("models.retinaface").RetinaFace(options, "train"), scale=1.2), options


def their_points(
    functions: Any, deltas: Tensor, points: Tensor, priors: Tensor, variance: Any
) -> tuple[Tensor, Tensor]:
    boxes = functions.decode(deltas, priors, variance) * _SCALE.repeat(2)
    return boxes, functions.decode_landm(points, priors, variance) * _SCALE.repeat(5)


@pytest.mark.parametrize(("name", "config"), SIZES)
def test_maps_losses_boxes_and_points_are_theirs(
    name: str, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    image = picture(*_HW, 4)
    with reference(_REPOSITORY, absent=["cv2"], bare=["data", "layers.functions"]), torch.no_grad():
        network, options = build(config, monkeypatch)
        importlib.import_module("data").cfg_mnet = {**options, "gpu_train": False}
        seen = torch.from_numpy(image[:, :, ::-1].astype(np.float32)) - torch.tensor([104.0, 117, 123])
        theirs = dict(zip(("deltas", "logits", "points"), network(seen.permute(2, 0, 1)[None]), strict=True))
        # as large as trained ones: their ranking of negatives, for one, underflows beyond
        usual = {key: value / value.std() for key, value in theirs.items()}
        priors = importlib.import_module("layers.functions.prior_box").PriorBox(options, _HW).forward()
        functions = importlib.import_module("utils.box_utils")
        criterion = importlib.import_module("layers.modules.multibox_loss").MultiBoxLoss(
            2, 0.35, True, 0, True, 7, 0.35, False
        )
        faces = torch.tensor([[10.0, 12, 40, 50], [60, 20, 120, 90], [90, 5, 108, 30]])
        marks = faces[:, None, :2] + torch.rand(3, 5, 2) * (faces[:, None, 2:] - faces[:, None, :2])
        unit = torch.cat([faces / _SCALE.repeat(2), (marks / _SCALE).flatten(1), torch.tensor([[1.0], [-1], [1]])], 1)
        losses = criterion(tuple(usual.values()), priors, [unit])
        ours = imported(name, network.state_dict(), tmp_path)
    raw = raw_of(ours, image)
    worst = {
        **{key: relative(raw[key], value) for key, value in theirs.items()},
        "priors": relative(ours.model.head.priors(_HW, torch.device("cpu")), priors * _SCALE.repeat(2)),
    }
    geometry = Geometry(_HW, _HW, _HW)
    found = ours.model.decode(usual, [geometry])[0]
    boxes, places = their_points(functions, usual["deltas"][0], usual["points"][0], priors, options["variance"])
    scores = usual["logits"][0].softmax(1)[:, 1]
    rows = (scores[None] - found.scores[:, None]).abs() + (places[:, 0] - found.keypoints_xy[:, :1, 0]).abs()
    same = rows.argmin(1)
    worst["scores"] = float((scores[same] - found.scores).abs().max())
    worst["places"] = relative(found.keypoints_xy, places[same].view(-1, 5, 2))
    limits = torch.tensor([_HW[1], _HW[0]] * 2)
    worst["boxes"] = relative(found.boxes_xyxy, torch.minimum(boxes[same].clamp(min=0), limits))
    keypoints = torch.cat([marks, torch.tensor([2.0, 0, 2])[:, None, None].expand(3, 5, 1)], -1)
    target = {"boxes": faces, "labels": torch.ones(3, dtype=torch.int64), "keypoints": keypoints}
    own = ours.model.head.loss(usual, [geometry], [target])
    for key, loss in zip(("loss_box_reg", "loss_classifier", "loss_keypoint"), losses, strict=True):
        worst[key] = abs(float(own[key] / loss) - 1)
    record_property("relative_differences", {key: f"{value:.1e}" for key, value in worst.items()})
    print(worst)
    assert max(worst.values()) <= _TOLERANCE


def raw_of(predictor: Predictor, image: np.ndarray) -> dict[str, Tensor]:
    prepared = predictor.prepare(image)
    assert prepared.geometry.padded_hw == image.shape[:2], "as it is"
    with torch.inference_mode():
        return {key: value.float() for key, value in predictor.forward_fn(predictor.batch([prepared])).items()}
