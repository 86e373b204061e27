"""Semantic segmentation: a class for every pixel (Long et al. 2015), whatever the network.

The network gives logits on a coarse grid. How labels get back to source pixels is a documented choice (``upsample``):

    "network"  logits bilinear to the network's input size, argmax, then nearest neighbour to the source size. Up to the
               argmax this is torchvision's own rule. It runs in the dense part, so a compiler can fuse it.
    "coarse"   argmax on the grid, then nearest neighbour to the source size: cheapest, blocky outlines.
    "source"   logits bilinear to the input size and on to the source size, argmax there: smoothest, dearest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelkit.base import VisionModel
from modelkit.errors import ConfigError, TargetError
from modelkit.registry import Config
from modelkit.rle import bboxes, encode_label_map
from modelkit.transform import Geometry, ImageTransform, SizeHW
from modelkit.types import Instances

IGNORE = 255  # of target maps: pixels that nobody labelled
Upsample = Literal["network", "coarse", "source"]


@dataclass(frozen=True, slots=True)
class SemanticMap:
    """A class for every pixel of one image.

    Args:
        size_hw: of the source image.
        label_map: (h, w) uint8 or int16 class ids, at any resolution; stretched over the source by nearest neighbour.
        probabilities: (C, a, b) float, softmax on the network's coarse grid.
        background: class that makes no segment, or None.
    """

    size_hw: SizeHW
    label_map: Tensor
    probabilities: Tensor
    background: int | None

    def cpu(self) -> SemanticMap:
        """The same on the host."""
        return SemanticMap(self.size_hw, self.label_map.cpu(), self.probabilities.cpu(), self.background)

    def full_size(self) -> np.ndarray:
        """(H, W) class ids on the source canvas: each pixel takes the cell that its centre lies in."""
        return stretch_nearest(self.label_map.numpy(force=True), self.size_hw)

    def to_instances(self) -> Instances:
        """One entry per class present (``is_thing`` False), by ascending class id; boxes are tight around the pixels.

        The score is the mean probability of the class over its pixels, taken at one pixel per cell of the coarse grid
        (its centre); a class too small to own a centre is averaged over all its pixels.
        """
        ignore = () if self.background is None else (self.background,)
        rles = encode_label_map(self.full_size(), ignore=ignore)
        if not rles:
            return Instances.empty(self.size_hw)
        boxes = bboxes(list(rles.values()), self.size_hw).astype(np.float32)
        return Instances(
            size_hw=self.size_hw,
            boxes_xyxy=boxes,
            scores=np.array([self._score(label) for label in rles], np.float32),
            labels=np.array(list(rles), np.int32),
            rles=list(rles.values()),
            is_thing=np.zeros(len(rles), bool),
        )

    def _score(self, label: int) -> float:
        grid = self.probabilities[label].float().numpy(force=True)
        labels = self.label_map.numpy(force=True)
        owned = stretch_nearest(labels, (grid.shape[0], grid.shape[1])) == label
        if not owned.any():
            rows, columns = np.nonzero(labels == label)
            cells = (rows * grid.shape[0] // labels.shape[0], columns * grid.shape[1] // labels.shape[1])
            if not len(rows):  # the source is smaller than the map and its pixels took other cells
                return float(grid.max())
            return float(grid[cells].mean())
        return float(grid[owned].mean())


def stretch_nearest(label_map: np.ndarray, size_hw: SizeHW) -> np.ndarray:
    """(h, w) to (H, W): each pixel takes the value of the cell that its centre lies in."""
    if label_map.shape == size_hw:
        return label_map
    rows, columns = (
        ((2 * np.arange(wanted) + 1) * have // (2 * wanted))
        for wanted, have in zip(size_hw, label_map.shape, strict=True)
    )
    return label_map[rows[:, None], columns]


class SemanticSegmentor(VisionModel):
    """Any network that gives class logits on a grid, with the losses and the decoding of semantic segmentation.

    Args:
        network: (N, 3, H, W) to a dict with ``logits`` (N, C, h, w) and, in training, optionally ``aux_logits``.
        num_classes: C, background included.
        transform: options of ``ImageTransform``.
        upsample: see the module.
        background: class that makes no segment; None = every class does.
        aux_weight: of the loss on ``aux_logits``.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        transform: Config,
        upsample: Upsample = "network",
        background: int | None = 0,
        aux_weight: float = 0.5,
    ) -> None:
        super().__init__()
        if upsample not in ("network", "coarse", "source"):
            raise ConfigError(f"upsample must be 'network', 'coarse' or 'source', got {upsample!r}")
        self.network, self.num_classes = network, num_classes
        self.transform = ImageTransform.from_config(transform)
        self.upsample, self.background = upsample, background
        self.loss_weights = {"loss_semantic": 1.0, "loss_aux": aux_weight}

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        """``loss_semantic`` and, when the network has an auxiliary head, ``loss_aux``: mean cross-entropy over pixels.

        Args:
            images: each (3, H, W) float in [0, 1].
            targets: one dict per image with ``semantic`` (H, W) long class ids; 255 is ignored. Optional:
                ``semantic_weights`` (H, W) float: how much a pixel counts. Pixels of weight 0 give no gradient but stay
                in the number that the sum is divided by, so that a teacher who is sure of little teaches little.

        Raises:
            TargetError: when targets are missing or malformed.
        """
        if targets is None:
            raise TargetError("forward gives training losses and needs targets; use predict(images) for label maps")
        _check_targets(images, targets, self.num_classes)
        batch, geometries = self.transform.batch(images, training=self.training)
        wanted = torch.full((len(batch), *batch.shape[-2:]), IGNORE, dtype=torch.int64, device=batch.device)
        weights = torch.ones(wanted.shape, device=batch.device)
        for slot, weight, target, geometry in zip(wanted, weights, targets, geometries, strict=True):
            rows, columns = geometry.resized_hw
            resized = self.transform.target(target, geometry)
            slot[:rows, :columns] = resized["semantic"]
            weight[:rows, :columns] = resized.get("semantic_weights", 1.0)
        return {
            f"loss_{'aux' if name == 'aux_logits' else 'semantic'}": pixel_loss(logits, wanted, weights)
            for name, logits in self.network(batch).items()
        }

    def dense(self, batch: Tensor) -> dict[str, Tensor]:
        """``logits`` (N, C, h, w); with "network" upsampling also ``label_map`` (N, H, W)."""
        logits = self.network(batch)["logits"]
        if self.upsample != "network":
            return {"logits": logits}
        # NHWC and max: on CPUs a third of the time of argmax over planes.
        logits_nhwc = logits.float().contiguous(memory_format=torch.channels_last)
        full = F.interpolate(logits_nhwc, size=batch.shape[-2:], mode="bilinear", align_corners=False)
        return {"logits": logits, "label_map": self._argmax(full)}

    def _argmax(self, logits: Tensor) -> Tensor:
        return logits.max(-3).indices.to(torch.uint8 if self.num_classes <= 256 else torch.int16)

    @torch.inference_mode()
    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[SemanticMap]:
        """One map per image; padding is cut off."""
        logits = raw["logits"].float()
        probabilities = logits.softmax(1)
        maps = []
        for index, geometry in enumerate(geometries):
            rows, columns = (
                max(1, round(cells * resized / padded))
                for cells, resized, padded in zip(
                    logits.shape[-2:], geometry.resized_hw, geometry.padded_hw, strict=True
                )
            )
            if self.upsample == "network":
                label_map = raw["label_map"][index, : geometry.resized_hw[0], : geometry.resized_hw[1]]
            elif self.upsample == "coarse":
                label_map = self._argmax(logits[index, :, :rows, :columns])
            else:
                label_map = self._at_source(logits[index], geometry)
            grid = probabilities[index, :, :rows, :columns]
            maps.append(SemanticMap(geometry.source_hw, label_map, grid, self.background))
        return maps

    def _at_source(self, logits: Tensor, geometry: Geometry) -> Tensor:
        rows, columns = geometry.resized_hw
        padded = F.interpolate(logits[None], size=geometry.padded_hw, mode="bilinear", align_corners=False)
        content = padded[:, :, :rows, :columns]
        source = F.interpolate(content, size=geometry.source_hw, mode="bilinear", align_corners=False)
        return self._argmax(source[0])


def pixel_loss(logits: Tensor, wanted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of logits (N, C, h, w), stretched to the targets (N, H, W); zero when all is ignored.

    With ``weights`` (N, H, W) the sum is weighted; it is still divided by the number of pixels that are not ignored.
    """
    logits = F.interpolate(logits.float(), size=wanted.shape[-2:], mode="bilinear", align_corners=False)
    per_pixel = F.cross_entropy(logits, wanted, ignore_index=IGNORE, reduction="none")
    total = (per_pixel if weights is None else per_pixel * weights).sum()
    return total / (wanted != IGNORE).sum().clamp(min=1)


def _check_targets(images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]], num_classes: int) -> None:
    if len(targets) != len(images):
        raise TargetError(f"{len(images)} images need as many targets, got {len(targets)}")
    for index, (image, target) in enumerate(zip(images, targets, strict=True)):
        semantic = target["semantic"]
        if semantic.shape != image.shape[-2:] or semantic.dtype != torch.int64:
            raise TargetError(
                f"target {index}: semantic must be {tuple(image.shape[-2:])} long, got {tuple(semantic.shape)} "
                f"{semantic.dtype}"
            )
        weights = target.get("semantic_weights")
        if weights is not None and (weights.shape != semantic.shape or not bool((weights >= 0).all())):
            raise TargetError(
                f"target {index}: semantic_weights must be {tuple(semantic.shape)} and not negative, got "
                f"{tuple(weights.shape)}"
            )
        found = semantic[semantic != IGNORE]
        if len(found) and not 0 <= int(found.min()) <= int(found.max()) < num_classes:
            raise TargetError(f"target {index}: class ids must lie in 0 .. {num_classes - 1} or be {IGNORE}")
