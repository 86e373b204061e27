"""Same weights, same picture: our CenterNet computes what xingyizhou/CenterNet computes.

Their compiled deformable convolution is replaced by torchvision's.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from modelkit.points.center_targets import center_targets
from modelkit.points.gaussians import focal_loss
from modelkit.transform import Geometry
from tests.modelkit.builders import picture
from tests.modelkit.reference.checkouts import reference
from tests.modelkit.reference.test_retinaface_parity import raw_of, relative
from tests.modelkit.reference.test_semantic_parity import imported, randomise

pytestmark = pytest.mark.reference
_TOLERANCE = 1e-5
_HW = (96, 128)
_GRID = (24, 32)
_HEADS = {"hm": 1, "wh": 2, "hps": 34, "reg": 2, "hm_hp": 17, "hp_offset": 2}
_NAMES = {
    "hm": "centers",
    "wh": "sizes",
    "reg": "offsets",
    "hps": "points",
    "hm_hp": "point_maps",
    "hp_offset": "point_offsets",
}
_PACKAGES = ["src", "src.lib", "src.lib.models", "src.lib.models.networks", "src.lib.models.networks.DCNv2"]
_COMPILED = "src.lib.models.networks.DCNv2.dcn_v2"


class DCN(nn.Module):
    """What the compiled module computes, with its names."""

    def __init__(self, channels: int, width: int, kernel_size: tuple[int, int], **options: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, channels, *kernel_size) / (3 * channels**0.5))
        self.bias = nn.Parameter(torch.randn(width) * 0.1)
        self.conv_offset_mask = nn.Conv2d(channels, 27, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b, mask = self.conv_offset_mask(x).chunk(3, 1)
        return deform_conv2d(x, torch.cat([a, b], 1), self.weight, self.bias, padding=1, mask=mask.sigmoid())


def reg_arguments(spots: Any, most: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Mask, place and numbers of one image, as their losses take them."""
    mask, place = torch.zeros(1, most), torch.zeros(1, most, dtype=torch.int64)
    values = torch.zeros(1, most, len(spots.values[0]))
    for k, ((_, row, column), numbers) in enumerate(zip(spots.places, spots.values, strict=True)):
        mask[0, k], place[0, k], values[0, k] = 1, row * _GRID[1] + column, torch.tensor(numbers)
    return mask, place, values


@pytest.mark.parametrize(("name", "module"), [("centernet_resnet18", "msra_resnet"), ("centernet", "resnet_dcn")])
def test_maps_targets_losses_and_poses_are_theirs(name: str, module: str, tmp_path: Path, record_property: Any) -> None:
    image = picture(*_HW, 4)
    with reference("CenterNet", absent=["cv2", _COMPILED], bare=_PACKAGES), torch.no_grad():
        sys.modules[_COMPILED].DCN = DCN  # type: ignore[attr-defined]
        networks = importlib.import_module(f"src.lib.models.networks.{module}")
        decoding = importlib.import_module("src.lib.models.decode")
        their_losses = importlib.import_module("src.lib.models.losses")
        drawing = importlib.import_module("src.lib.utils.image")
        torch.manual_seed(3)
        network = randomise(networks.PoseResNet(networks.BasicBlock, [2, 2, 2, 2], _HEADS, 64))
        mean, std = np.array([0.408, 0.447, 0.470], np.float32), np.array([0.289, 0.274, 0.278], np.float32)
        seen = (image[:, :, ::-1].astype(np.float32) / 255 - mean) / std
        theirs = network(torch.from_numpy(seen.transpose(2, 0, 1).copy())[None])[0]
        ours = imported(name, network.state_dict(), tmp_path)
        usual = {key: (value - value.mean()) / value.std() for key, value in theirs.items()}  # as trained ones are
        copy = {key: value.clone() for key, value in usual.items()}
        found = decoding.multi_pose_decode(
            copy["hm"].sigmoid(),
            copy["wh"].abs() * 3,
            copy["hps"],
            copy["reg"],
            copy["hm_hp"].sigmoid(),
            copy["hp_offset"],
        )[0]
        raw = raw_of(ours, image)
        worst = {key: relative(raw[_NAMES[key]], value) for key, value in theirs.items()}
        given = {_NAMES[key]: value for key, value in usual.items()}
        given["sizes"] = given["sizes"].abs() * 3
        own = ours.model.decode(given, [Geometry(_HW, _HW, _HW)])[0]
        limits = torch.tensor([_HW[1], _HW[0]] * 2)
        worst["boxes"] = relative(own.boxes_xyxy, torch.minimum((found[:, :4] * 4).clamp(min=0), limits))
        worst["scores"] = relative(own.scores, found[:, 4])
        worst["poses"] = relative(own.keypoints_xy.flatten(1), found[:, 5:39] * 4)
        worst |= losses_and_targets(usual, their_losses, drawing)
    record_property("relative_differences", {key: f"{value:.1e}" for key, value in worst.items()})
    print(worst)
    assert max(worst.values()) <= _TOLERANCE


def losses_and_targets(raw: dict[str, Tensor], their_losses: Any, drawing: Any) -> dict[str, float]:
    """How far our heatmaps and losses are from theirs on the same maps."""
    boxes = torch.tensor([[10.0, 12, 61, 70], [60, 20, 120, 90]])
    torch.manual_seed(5)
    places = boxes[:, None, :2] + torch.rand(2, 17, 2) * (boxes[:, None, 2:] - boxes[:, None, :2])
    target = {
        "boxes": boxes,
        "labels": torch.ones(2, dtype=torch.int64),
        "keypoints": torch.cat([places, torch.full((2, 17, 1), 2.0)], -1),
    }
    drawn = center_targets([target], 2, 17, _GRID, 4, torch.device("cpu"))
    heat = np.zeros(_GRID, np.float32)
    for x1, y1, x2, y2 in (boxes / 4).tolist():
        radius = max(0, int(drawing.gaussian_radius((np.ceil(y2 - y1), np.ceil(x2 - x1)))))
        drawing.draw_umich_gaussian(heat, [int((x1 + x2) / 2), int((y1 + y2) / 2)], radius)
    worst = {"heatmap": relative(drawn.centers[0, 0], torch.from_numpy(heat))}
    clamp = (1e-4, 1 - 1e-4)
    for key, wanted in (("hm", drawn.centers), ("hm_hp", drawn.point_maps)):
        expected = their_losses.FocalLoss()(raw[key].sigmoid().clamp(*clamp), wanted)
        worst[f"focal {key}"] = abs(float(focal_loss(raw[key], wanted) / expected) - 1)
    for key, spots in (("wh", drawn.sizes), ("reg", drawn.offsets), ("hp_offset", drawn.point_offsets)):
        mask, place, values = reg_arguments(spots)
        expected = their_losses.RegL1Loss()(raw[key], mask, place, values)
        worst[f"L1 {key}"] = abs(float(spots.loss(raw[key]) / expected) - 1)
    mask, place, values = reg_arguments(drawn.points)
    expected = their_losses.RegWeightedL1Loss()(raw["hps"], mask[..., None].expand_as(values), place, values)
    worst["L1 hps"] = abs(float(drawn.points.loss(raw["hps"], drawn.labelled) / expected) - 1)
    return worst
