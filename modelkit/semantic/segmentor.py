"""Semantic segmentation: a class for every pixel (Long et al. 2015), whatever the network.

The network gives logits on a coarse grid. How labels get back to source pixels is a documented choice (``upsample``):

    "network"  logits bilinear to the network's input size, argmax, then nearest neighbour to the source size. Up to the
               argmax this is torchvision's own rule. It runs in the dense part, so a compiler can fuse it.
    "coarse"   argmax on the grid, then nearest neighbour to the source size: cheapest, blocky outlines.
    "source"   logits bilinear to the input size and on to the source size, argmax there: smoothest, dearest.
    "grid"     logits bilinear from the grid to the source size at once, argmax there: the rule of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelkit.base import PairedLogits, VisionModel
from modelkit.carriers import Instances, SizeHW
from modelkit.carriers.classes import ClassInfo
from modelkit.carriers.targets import IGNORE
from modelkit.errors import ConfigError, TargetError
from modelkit.exporting.canvas import Canvas
from modelkit.layers.stretching import stretch
from modelkit.layers.watching import watched
from modelkit.registry import Config
from modelkit.rle import bboxes, encode_label_map
from modelkit.semantic.losses import LossConfig, border_weight_map, dice_loss, pixel_loss, without_abstaining
from modelkit.semantic.lovasz import lovasz_softmax
from modelkit.semantic.targets import check_semantic, padded
from modelkit.semantic.tracing import traced_label_map
from modelkit.transform import Geometry, ImageTransform

Upsample = Literal["network", "coarse", "source", "grid"]
_NETWORK = "network."
_CELL = 4  # pixels; probabilities for scores are kept on no finer grid
_MEAN_CROSS_ENTROPY = LossConfig().to_config()


@dataclass(frozen=True, slots=True)
class SemanticMap:
    """A class for every pixel of one image.

    Args:
        size_hw: of the source image.
        label_map: (h, w) uint8 or int16 class ids, at any resolution; stretched over the source by nearest neighbour.
        probabilities: (C, a, b) float, softmax on the network's grid, or at the centres of cells of 4 pixels where that
            is finer.
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

    def finish(self, min_score: float = 0.0) -> Instances:
        """One entry per class present (``is_thing`` False), by ascending class id; boxes are tight around the pixels.

        The score is the mean probability of the class over its pixels, taken at one pixel per cell of the coarse grid
        (its centre); a class too small to own a centre is averaged over all its pixels.
        """
        ignore = () if self.background is None else (self.background,)
        rles = encode_label_map(self.full_size(), ignore=ignore)
        if not rles:
            return Instances.empty(self.size_hw)
        boxes = bboxes(list(rles.values()), self.size_hw).astype(np.float32)
        found = Instances(
            size_hw=self.size_hw,
            boxes_xyxy=boxes,
            scores=np.array([self._score(label) for label in rles], np.float32),
            labels=np.array(list(rles), np.int32),
            rles=list(rles.values()),
            is_thing=np.zeros(len(rles), bool),
        )
        return found.at_least(min_score)

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
        num_classes: C, background included. 1 = the logit of class 1 against background alone, through a sigmoid.
        transform: options of ``ImageTransform``.
        upsample: see the module.
        background: class that makes no segment; None = every class does.
        losses: options of ``LossConfig``.
        aux_weight: of the loss on ``aux_logits``.
    """

    gives_probabilities = True

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        transform: Config,
        upsample: Upsample = "network",
        background: int | None = 0,
        losses: Config = _MEAN_CROSS_ENTROPY,
        aux_weight: float = 0.5,
    ) -> None:
        super().__init__()
        if upsample not in get_args(Upsample):
            raise ConfigError(f"upsample must be one of {', '.join(get_args(Upsample))}, got {upsample!r}")
        self.network, self.num_classes = network, num_classes
        self.transform = ImageTransform.from_config(transform)
        self.upsample, self.background = upsample, background
        self.losses = LossConfig.from_config(losses)
        self.loss_weights = {"loss_semantic": 1.0, "loss_aux": aux_weight, "loss_dice": self.losses.dice}
        self.loss_weights |= {"loss_lovasz": self.losses.lovasz} if self.losses.lovasz else {}

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        """``loss_semantic``, where asked for ``loss_dice`` and ``loss_lovasz``, and ``loss_aux`` of an auxiliary head.

        Args:
            images: each (3, H, W) float in [0, 1].
            targets: one dict per image with ``semantic`` (H, W) long class ids; 255 is ignored. With border weights
                also ``masks`` (n, H, W). Optional: ``semantic_weights`` (H, W) float: how much a pixel counts in the
                cross-entropy. Pixels of weight 0 give no gradient, of Dice neither, but stay in the number that the
                cross-entropy is divided by, so that a teacher who is sure of little teaches little. ``abstaining``
                (k,) long: classes of which the target says nothing, see ``without_abstaining``.

        Raises:
            TargetError: when targets are missing or malformed.
        """
        if targets is None:
            raise TargetError("forward gives training losses and needs targets; use predict(images) for label maps")
        _check_targets(images, targets, max(2, self.num_classes), bool(self.losses.border))
        batch, geometries = self.transform.batch(images, training=self.training)
        resized = [self.transform.target(target, each) for target, each in zip(targets, geometries, strict=True)]
        wanted = padded([each["semantic"] for each in resized], batch.shape[-2:], IGNORE).to(batch.device)
        weights = self._pixel_weights(resized, batch)
        raw = {name: self._against_background(logits) for name, logits in self.network(batch).items()}
        weights = self._lighter_background(weights, wanted)
        abstaining = [each.get("abstaining", ()) for each in resized]
        raw = {name: without_abstaining(logits, wanted, abstaining, self.background) for name, logits in raw.items()}
        logits = stretch(raw["logits"].float(), wanted.shape[-2:])
        losses = {"loss_semantic": pixel_loss(logits, wanted, weights, self.losses)}
        if self.losses.dice or self.losses.lovasz:
            losses |= self._overlap_losses(logits.softmax(1), wanted, weights)
        if "aux_logits" in raw:
            losses["loss_aux"] = pixel_loss(raw["aux_logits"], wanted, weights, self.losses)
        return losses

    def _overlap_losses(self, probabilities: Tensor, wanted: Tensor, weights: Tensor | None) -> dict[str, Tensor]:
        """``loss_dice`` and ``loss_lovasz``, as far as asked for; pixels of weight 0 are void."""
        foreground_only = int(self.num_classes == 1)
        judged = wanted if weights is None else wanted.masked_fill(weights == 0, IGNORE)
        losses = {}
        if self.losses.dice:
            by_class = self.losses.dice_by_class
            losses["loss_dice"] = dice_loss(probabilities, judged, foreground_only, by_class=by_class)
        if self.losses.lovasz:
            losses["loss_lovasz"] = lovasz_softmax(probabilities, judged, foreground_only)
        return losses

    def anonymous_classes(self) -> tuple[ClassInfo, ...]:
        """Stuff, the background left out."""
        labels = (label for label in range(max(2, self.num_classes)) if label != self.background)
        return tuple(ClassInfo(label, f"class {label}", is_thing=False) for label in labels)

    def can_learn_from(self, teacher: VisionModel) -> bool:
        """From another semantic model."""
        return isinstance(teacher, SemanticSegmentor)

    def paired_logits(
        self, teacher: VisionModel, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]]
    ) -> PairedLogits:
        """Pixel by pixel on this model's grid; both look at the very same pixels."""
        with watched(self.network) as seen:
            losses = self(images, targets)
        (batch,), raw = seen
        with torch.no_grad():
            theirs = cast(SemanticSegmentor, teacher).network(batch)["logits"]
            theirs = F.interpolate(theirs.float(), size=raw["logits"].shape[-2:], mode="bilinear", align_corners=False)
        student, taught = (maps.float().permute(0, 2, 3, 1).flatten(0, 2) for maps in (raw["logits"], theirs))
        return PairedLogits(losses, "loss_semantic", student, taught)

    def _pixel_weights(self, targets: Sequence[Mapping[str, Any]], batch: Tensor) -> Tensor | None:
        border = self.losses.border
        if not border and not any("semantic_weights" in target for target in targets):
            return None
        maps = []
        for target in targets:
            weights = target.get("semantic_weights", torch.ones_like(target["semantic"], dtype=torch.float32))
            maps.append(
                weights * border_weight_map(target["masks"], border, self.losses.border_sigma) if border else weights
            )
        return padded(maps, batch.shape[-2:], 0.0).to(batch.device)

    def _lighter_background(self, weights: Tensor | None, wanted: Tensor) -> Tensor | None:
        if self.background is None or self.losses.background == 1:
            return weights
        share = torch.where(wanted == self.background, self.losses.background, 1.0)
        return share if weights is None else share * weights

    def traced(self, raw: Mapping[str, Tensor], canvas: Canvas) -> dict[str, Tensor]:
        """See ``traced_label_map``."""
        return traced_label_map(self, raw, canvas)

    def _against_background(self, logits: Tensor) -> Tensor:
        """A single logit z as the two classes (0, z), whose softmax is its sigmoid."""
        return torch.cat([torch.zeros_like(logits), logits], 1) if self.num_classes == 1 else logits

    def dense(self, batch: Tensor) -> dict[str, Tensor]:
        """``logits`` (N, C, h, w); with "network" upsampling also ``label_map`` (N, H, W)."""
        logits = self._against_background(self.network(batch)["logits"])
        if self.upsample != "network":
            return {"logits": logits}
        # NHWC and max: on CPUs a third of the time of argmax over planes.
        logits_nhwc = logits.float().contiguous(memory_format=torch.channels_last)
        full = F.interpolate(logits_nhwc, size=batch.shape[-2:], mode="bilinear", align_corners=False)
        return {"logits": logits, "label_map": self.argmax(full)}

    def argmax(self, logits: Tensor) -> Tensor:
        """The likeliest class of logits (..., C, h, w), as (..., h, w)."""
        return logits.max(-3).indices.to(torch.uint8 if self.num_classes <= 256 else torch.int16)

    @torch.inference_mode()
    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[SemanticMap]:
        """One map per image; padding is cut off."""
        logits = raw["logits"].float()
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
                label_map = self.argmax(logits[index, :, :rows, :columns])
            elif self.upsample == "grid":
                label_map = self._stretched(logits[index, None, :, :rows, :columns], geometry.source_hw)
            else:
                label_map = self._at_source(logits[index], geometry)
            grid = _coarse(logits[index, :, :rows, :columns], geometry.resized_hw).softmax(0)
            maps.append(SemanticMap(geometry.source_hw, label_map, grid, self.background))
        return maps

    @torch.inference_mode()
    def probabilities(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[Tensor]:
        """What ``dense`` gave as class probabilities (C, h, w) float32 per image.

        As large as the image was to the network, whatever ``upsample`` says; padding is cut off.
        """
        return [
            self._content(logits, geometry)[0].softmax(0)
            for logits, geometry in zip(raw["logits"].float(), geometries, strict=True)
        ]

    def _content(self, logits: Tensor, geometry: Geometry) -> Tensor:
        """Logits (C, h, w) as (1, C, rows, columns) over the resized image alone."""
        rows, columns = geometry.resized_hw
        padded = F.interpolate(logits[None], size=geometry.padded_hw, mode="bilinear", align_corners=False)
        return padded[:, :, :rows, :columns]

    def _at_source(self, logits: Tensor, geometry: Geometry) -> Tensor:
        return self._stretched(self._content(logits, geometry), geometry.source_hw)

    def _stretched(self, logits: Tensor, size_hw: SizeHW) -> Tensor:
        """Classes (H, W) of logits (1, C, h, w) at another size."""
        return self.argmax(F.interpolate(logits, size=size_hw, mode="bilinear", align_corners=False)[0])


def _coarse(logits: Tensor, image_hw: SizeHW) -> Tensor:
    """Logits (C, h, w), where they are finer than cells of 4 image pixels only those at the cells' centres."""
    for axis, image_side in zip((1, 2), image_hw, strict=True):
        have = logits.shape[axis]
        wanted = min(have, math.ceil(image_side / _CELL))
        if wanted < have:
            centres = (2 * torch.arange(wanted, device=logits.device) + 1) * have // (2 * wanted)
            logits = logits.index_select(axis, centres)
    return logits


def _check_targets(
    images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]], num_classes: int, with_masks: bool
) -> None:
    check_semantic(images, targets, num_classes)
    for index, target in enumerate(targets):
        size_hw, weights = tuple(target["semantic"].shape), target.get("semantic_weights")
        if weights is not None and (weights.shape != size_hw or not bool((weights >= 0).all())):
            raise TargetError(
                f"target {index}: semantic_weights must be {size_hw} and not negative, got {tuple(weights.shape)}"
            )
        if with_masks and "masks" not in target:
            raise TargetError(f"target {index}: border weights need masks (n, {size_hw[0]}, {size_hw[1]})")
