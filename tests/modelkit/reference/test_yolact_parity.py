"""Same weights, same pictures: YOLACT and YolactEdge compute what their authors' code computes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modelkit import VisionModel, import_weights, load, load_weights, rle
from modelkit.onestage.edge import VideoAnchorDetector
from modelkit.onestage.head import YolactHead
from modelkit.transform import Geometry
from tests.modelkit.builders import picture
from tests.modelkit.reference import run_yolact
from tests.modelkit.reference.checkouts import VARIABLE
from tests.modelkit.reference.run_yolact import SOURCE_HW

pytestmark = pytest.mark.reference
_ROOT = Path(__file__).parents[3]
_TOLERANCE = 1e-5  # of the largest value of a map
_RAW = {"loc": "deltas", "conf": "logits", "mask": "coefficients", "proto": "prototypes"}


def reference_results(repository: str, config: str, folder: Path, *options: str) -> dict[str, Tensor]:
    """What the reference computes; its state dict lies in ``folder/theirs.pth``. Skips where it is absent."""
    root = os.environ.get(VARIABLE)
    if not root or not (Path(root) / repository).is_dir():
        pytest.skip(f"needs {VARIABLE} with a checkout of {repository} in it")
    command = [sys.executable, "-m", run_yolact.__name__, str(Path(root) / repository), config, str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=_ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "results.safetensors")


def imported(name: str, folder: Path) -> VisionModel:
    """Through the importer, as a user would do it."""
    import_weights(name, folder / "theirs.pth", folder / "ours")
    return load_weights(folder / "ours")[0].eval()


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest value."""
    assert ours.shape == theirs.shape
    assert float(theirs.float().std()) > 1e-4
    return float((ours - theirs).abs().max() / theirs.abs().max())


def as_ours(name: str, value: Tensor) -> Tensor:
    return value.permute(0, 3, 1, 2) if name == "proto" else value


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("yolact", "yolact_base_config"),
        ("yolact_resnet50", "yolact_resnet50_config"),
        ("yolact_darknet53", "yolact_darknet53_config"),
        ("yolact_resnet50_pascal", "yolact_resnet50_pascal_config"),
    ],
)
def test_yolact_equals_the_reference(name: str, config: str, tmp_path: Path, record_property: Any) -> None:
    expected = reference_results("yolact", config, tmp_path)
    model = imported(name, tmp_path)
    batch = expected["batch"]
    side = batch.shape[-1]
    with torch.inference_mode():
        raw = model.dense(batch)
    differences = {name: difference(raw[ours], as_ours(name, expected[name])) for name, ours in _RAW.items()}
    head: Any = model.head
    assert isinstance(head, YolactHead)
    priors = head.priors((side, side), batch.device) / side
    differences["priors"] = difference(priors, expected["priors"])
    assert len(priors) == 19_248

    found = model.decode(
        {key: value[:1] for key, value in raw.items()}, [Geometry(SOURCE_HW, (side, side), (side, side))]
    )[0]
    height, width = SOURCE_HW
    boxes = expected["found.box"] * torch.tensor([width, height, width, height])
    boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height]))
    assert torch.equal(found.labels - 1, expected["found.class"])
    differences["scores"] = difference(found.scores, expected["found.score"])
    differences["boxes"] = difference(found.boxes_xyxy, boxes)
    masks = np.stack([rle.decode(each, SOURCE_HW) for each in found.finish().rles or []])
    wrong = float((masks != expected["found.masks"].numpy()).mean())

    differences |= through_the_predictor(tmp_path, expected)

    targets = [
        {"boxes": b, "masks": m, "labels": label, "iscrowd": torch.tensor([False, False, k == 0])}
        for k, (b, m, label) in enumerate(zip(expected["boxes"], expected["masks"], expected["labels"], strict=True))
    ]
    with torch.inference_mode():
        features = model.neck(model.backbone(batch))
        losses = head.loss(raw, features, [Geometry((side, side), (side, side), (side, side))] * 2, targets)
    for theirs, ours in (("C", "classifier"), ("B", "box_reg"), ("M", "mask"), ("S", "semantic")):
        value = float(losses[f"loss_{ours}"]) * model.loss_weights[f"loss_{ours}"]
        differences[f"loss {theirs}"] = abs(value / float(expected[f"loss.{theirs}"]) - 1)
    print({key: f"{value:.1e}" for key, value in differences.items()}, f"mask pixels that differ: {wrong:.1e}")
    record_property("differences", {key: f"{value:.1e}" for key, value in differences.items()})
    assert max(differences.values()) <= _TOLERANCE
    assert wrong < 1e-4


def through_the_predictor(folder: Path, expected: dict[str, Tensor]) -> dict[str, float]:
    """What a user gets for a picture, beside what the reference gives; the masks' pixels are checked here."""
    predictor = load(folder / "ours")
    image = picture(*SOURCE_HW, 4)
    batch = predictor.batch([predictor.prepare(image)])
    found = predictor([image])[0]
    assert found.labels.tolist() == (expected["user.class"] + 1).tolist()
    masks = np.stack([rle.decode(each, found.size_hw) for each in found.rles or []])
    wrong = float((masks != expected["user.masks"].numpy()).mean())
    print(f"mask pixels that differ through the predictor: {wrong:.1e}")
    assert wrong < 1e-3, "the last digits of the normalised picture differ"
    height, width = SOURCE_HW
    corners = torch.tensor([width, height, width, height])
    boxes = torch.minimum((expected["user.box"] * corners).clamp(min=0), corners)
    return {
        "user batch": difference(batch, expected["user.batch"]),
        "user scores": difference(torch.from_numpy(found.scores), expected["user.score"]),
        "user boxes": difference(torch.from_numpy(found.boxes_xyxy), boxes),
    }


def test_yolact_edge_equals_the_reference_on_key_frames_and_others(tmp_path: Path, record_property: Any) -> None:
    expected = reference_results("yolact_edge", "yolact_edge_vid_resnet50_config", tmp_path, "--edge")
    model = imported("yolact_edge_resnet50", tmp_path)
    assert isinstance(model, VideoAnchorDetector)
    batch = expected["batch"]
    with torch.inference_mode():
        sums, lateral = model.neck.merge(model.backbone(batch[:1]))
        key = model.head(model.neck.finish(sums))
        reduced = model.feature_transform.reduce(lateral)
        warped, _ = model.feature_transform(model.partial_lateral(batch[1:]), sums, reduced)
        other = model.head(model.neck.finish(warped))
        true, _ = model.neck.merge(model.backbone(batch[1:]))
        # its loss after the output convolution takes p3's for p5, so only the part before it can be compared
        before = [(1 - torch.cosine_similarity(warped[level], true[level])).mean() for level in ("p4", "p5")]
    differences = {
        f"{frame} {name}": difference(raw[ours], as_ours(name, expected[f"{frame}.{name}"]))
        for frame, raw in (("key", key), ("other", other))
        for name, ours in _RAW.items()
    }
    differences["feature matching"] = abs(float(torch.stack(before).mean()) / float(expected["loss.W"]) - 1)
    print({key: f"{value:.1e}" for key, value in differences.items()})
    record_property("differences", {key: f"{value:.1e}" for key, value in differences.items()})
    assert max(differences.values()) <= _TOLERANCE
