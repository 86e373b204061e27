"""torchvision's one-stage detectors through our transform and contract give what torchvision gives."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from modelkit import ConfigError, create_model, import_weights, load_weights
from modelkit.importing import TABLES
from tests.modelkit.builders import as_tensor, picture, rectangles

_SMALL = {"min_size": 64, "max_size": 96}
_NAMES = ["retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn", "ssdlite320_mobilenet_v3_large"]


def theirs(name: str) -> Any:
    """torchvision's own, seeded, with scores that differ from box to box."""
    torch.manual_seed(5)
    sizes = {} if name.startswith("ssd") else {"min_size": 64, "max_size": 96}
    builder = getattr(torchvision.models.detection, name)
    model = builder(weights=None, weights_backbone=None, num_classes=5, score_thresh=0.0, **sizes)
    for module in model.head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=1.5 / module.weight[0].numel() ** 0.5)
    return model


def images() -> list[Tensor]:
    return [as_tensor(picture(64, 80, 1)), as_tensor(picture(50, 90, 2))]


@pytest.mark.parametrize("name", _NAMES)
def test_same_weights_same_boxes_and_losses(name: str, tmp_path: Path) -> None:
    reference = theirs(name)
    torch.save(reference.state_dict(), tmp_path / "theirs.pth")
    config = {"score_threshold": 0.0, **({} if name.startswith("ssd") else {"transform": _SMALL})}
    record = import_weights(name, tmp_path / "theirs.pth", tmp_path / "ours", config=config)
    assert record.config["num_classes"] == 5
    model = load_weights(tmp_path / "ours")[0].eval()
    with torch.inference_mode():
        expected = reference.eval()(images())
    for found, wanted in zip(model.predict(images()), expected, strict=True):
        assert len(found.scores) == len(wanted["scores"]) > 0
        assert torch.allclose(found.scores, wanted["scores"], atol=1e-5)
        assert torch.equal(found.labels, wanted["labels"])
        assert torch.allclose(found.boxes_xyxy, wanted["boxes"], atol=1e-3, rtol=1e-5)

    targets = [
        rectangles(64, 80, [[8, 8, 30, 40], [40, 20, 70, 60]], [1, 2]),
        rectangles(50, 90, [[20, 10, 60, 40]], [3]),
    ]
    losses = model.train()(images(), targets)
    reference.train()
    wanted = reference(
        images(), [{key: target[key] for key in ("boxes", "labels")} for target in copy.deepcopy(targets)]
    )
    pairs = {"loss_classifier": "classification", "loss_box_reg": "bbox_regression", "loss_centerness": "bbox_ctrness"}
    assert {pairs[key] for key in losses} == set(wanted)
    for key, value in losses.items():
        assert float(value.detach()) == pytest.approx(float(wanted[pairs[key]].detach()), rel=1e-4), key


def test_ssd300_has_torchvisions_anchors_and_names() -> None:
    with torch.device("meta"):
        reference = torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=5)
    model = create_model("ssd300_vgg16", num_classes=5)
    assert set(model.state_dict()) == {f"network.{name}" for name in reference.state_dict()}
    raw = {f"map.{k}": torch.zeros(1, 1, side, side) for k, side in enumerate((38, 19, 10, 5, 3, 1))}
    _, geometries = model.transform.batch(images()[:1])
    _, anchors, per_level = model._outputs(raw, geometries[0].padded_hw, [geometries[0].resized_hw])
    assert len(anchors[0]) == sum(per_level) == 8732  # Liu et al. 2016


def test_fewer_maps_make_room_for_smaller_images() -> None:
    model = create_model("ssd300_vgg16", num_classes=5, num_maps=3, transform={"min_size": 64, "max_size": 64}).eval()
    batch, _ = model.transform.batch(images())
    with torch.inference_mode():
        raw = model.dense(batch)
    assert [tuple(value.shape[2:]) for name, value in raw.items() if name.startswith("map.")] == [
        (8, 8),
        (4, 4),
        (2, 2),
    ]
    with pytest.raises(ConfigError, match="num_maps"):
        create_model("ssd300_vgg16", num_maps=7)


def test_frozen_norms_count_as_torchvision_publishes_it() -> None:
    with torch.device("meta"):
        frozen = create_model("fcos_resnet50_fpn", norm="frozen_batch")
    assert sum(p.numel() for p in frozen.parameters()) == 32_269_600
    with pytest.raises(ConfigError, match="norm"):
        create_model("fcos_resnet50_fpn", norm="group")


def test_names_from_before_torchvision_0_13_are_taken_too() -> None:
    with torch.device("meta"):
        state = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    old = {}
    for name, value in state.items():
        name = re.sub(r"^(head\.\w+_head\.conv)\.(\d)\.0\.", lambda found: f"{found[1]}.{2 * int(found[2])}.", name)
        name = re.sub(r"^(backbone\.fpn\.\w+_blocks\.\d)\.0\.", r"\1.", name)
        if not name.endswith("num_batches_tracked"):
            old[name] = value
    table = TABLES["retinanet_resnet50_fpn"]
    assert table.infer(old) == {"num_classes": 91, "norm": "frozen_batch"}
    with torch.device("meta"):
        model = create_model("retinanet_resnet50_fpn", **table.infer(old))
    assert table.rename(old).keys() == model.state_dict().keys()
