"""Objects cut out of images, to networks that look at one object at a time, and the way back to source pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import roi_align

from modelkit.carriers import SizeHW
from modelkit.carriers.landmarks import Landmarks
from modelkit.pictures import as_pixels
from modelkit.predictor import Predictor, Prepared
from modelkit.transform import Geometry

XYXY = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class CropGeometry(Geometry):
    """How one object of an image went into the network.

    Args:
        window_xyxy: of the source image, what the network sees of it; may reach beyond the image.
        box_xyxy: of the object, source pixels.
        score: in [0, 1], of who found the object.
        label: of who found the object, from 1.
    """

    window_xyxy: XYXY
    box_xyxy: XYXY
    score: float
    label: int

    def boxes_to_source(self, boxes_xyxy: Tensor) -> Tensor:
        """Boxes (n, 4) in pixels of the network to source pixels."""
        return self.points_to_source(boxes_xyxy.unflatten(-1, (2, 2))).flatten(-2)

    def points_to_source(self, points_xy: Tensor) -> Tensor:
        """Points (..., 2) in pixels of the network to source pixels; may lie outside of the image."""
        window = points_xy.new_tensor(self.window_xyxy)
        return window[:2] + points_xy * (window[2:] - window[:2]) / points_xy.new_tensor(self.padded_hw[::-1])


def crop_windows(boxes_xyxy: Tensor, network_hw: SizeHW, margin: float) -> Tensor:
    """What is cut out for boxes (n, 4): the same middle, ``margin`` times as large, and the network's aspect ratio.

    The shorter side grows until the aspect ratio fits, so that nothing is squeezed and nothing of the box is lost.
    """
    frame = boxes_xyxy.new_tensor(network_hw[::-1])
    middle, sides = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2, boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    half = (margin * sides / frame).amax(1, keepdim=True) * frame / 2
    return torch.cat([middle - half, middle + half], 1)


def cut(image: Tensor, windows_xyxy: Tensor, network_hw: SizeHW) -> Tensor:
    """Windows (n, 4) of an image (C, H, W) float at the network's size: (n, C, *network_hw).

    Enlarged by straight lines between the centres of pixels, reduced by the mean of the pixels that each new one
    covers; 0 beyond the image, which is the mean colour where the image is normalised.
    """
    rois = torch.cat([windows_xyxy.new_zeros((len(windows_xyxy), 1)), windows_xyxy], 1).to(image)
    return roi_align(image[None], rois, network_hw, 1.0, sampling_ratio=-1, aligned=True)


def to_windows(points_xy: Tensor, windows_xyxy: Tensor, network_hw: SizeHW) -> Tensor:
    """Points (n, K, 2) of the image in the pixels of each one's window (n, 4), as the network sees it."""
    start, end = windows_xyxy[:, None, :2], windows_xyxy[:, None, 2:]
    return (points_xy - start) / (end - start) * points_xy.new_tensor(network_hw[::-1])


def prepare_objects(
    predictor: Predictor,
    image: np.ndarray,
    boxes_xyxy: np.ndarray,
    scores: np.ndarray | None = None,
    labels: np.ndarray | None = None,
) -> list[Prepared]:
    """The objects of one image on their way into a batch, one each; objects of many images may share it.

    ``predictor.infer`` and ``predictor.finish`` take them as they take whole images; ``gathered`` joins what comes of
    one image.

    Args:
        predictor: of a top-down model.
        image: as ``Predictor.prepare`` takes it.
        boxes_xyxy: (n, 4) source pixels, with an area; n may be 0.
        scores: (n,) of who found them; default: 1.
        labels: (n,) of who found them; default: 1.
    """
    model: Any = predictor.model  # a TopDownModel, whose module needs this one
    pixels, network_hw = as_pixels(image), model.network_hw
    boxes = torch.as_tensor(np.asarray(boxes_xyxy, np.float32)).reshape(-1, 4)
    windows = model.windows(boxes)
    planes = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1).float()
    crops = model.cut(planes, windows)
    source_hw = (pixels.shape[0], pixels.shape[1])
    ones = np.ones(len(boxes))
    found = zip(ones if scores is None else scores, ones if labels is None else labels, strict=True)
    return [
        Prepared(
            crop.permute(1, 2, 0).contiguous().numpy(),
            CropGeometry(source_hw, network_hw, network_hw, tuple(window), tuple(box), float(score), int(label)),
        )
        for crop, window, box, (score, label) in zip(crops, windows.tolist(), boxes.tolist(), found, strict=True)
    ]


def gathered(found: Sequence[Landmarks], size_hw: SizeHW, points: int) -> Landmarks:
    """The objects of one image as one carrier, in their order; of ``points`` points each."""
    parts = [Landmarks.empty(size_hw, points), *found]
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("boxes_xyxy", "scores", "labels", "keypoints_xy", "keypoint_scores", "visibility")
    }
    return Landmarks(size_hw, **arrays)
