"""YOLACT on video: most frames borrow the deep features of a key frame (Liu et al. 2020, YolactEdge).

A key frame runs the whole backbone; what it leaves are the two coarser sums of the pyramid's top-down path and its
finest lateral. Every other frame runs the backbone up to c3, finds out how things have moved, and warps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modelkit.base import Prediction
from modelkit.errors import ConfigError, TargetError
from modelkit.onestage.detector import AnchorDetector
from modelkit.onestage.flow import Motion, PartialFeatureTransform, flow_from_pixels
from modelkit.onestage.pyramid import YolactFPN
from modelkit.registry import Config, build
from modelkit.transform import Geometry
from modelkit.video import VideoModel, VideoState

_WARPED = "warped_"


class VideoAnchorDetector(AnchorDetector, VideoModel):
    """An ``AnchorDetector`` that computes its coarse features on key frames only.

    The state holds, of the last key frame: the pyramid's sums ``p4`` and ``p5`` and the reduced lateral ``context``;
    the counter ``key_index`` says which frame that was.

    Args:
        num_classes, backbone, neck, head, transform, loss_weights: as for ``AnchorDetector``.
        feature_transform: part config, see ``PartialFeatureTransform``.
        key_every: every so many frames is a key frame, beginning with the first.
        freeze_backbone: train what follows the pyramid's sums only, with the norms of the backbone at rest, as its
            authors do on top of a trained YOLACT.
    """

    neck: YolactFPN
    reference_fields = ()  # the picture alone: a key frame

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: Config,
        neck: Config,
        head: Config,
        feature_transform: Config,
        transform: Config,
        loss_weights: Mapping[str, float],
        key_every: int,
        freeze_backbone: bool,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            backbone=backbone,
            neck=neck,
            head=head,
            transform=transform,
            loss_weights={},
        )
        if key_every < 1:
            raise ConfigError(f"key_every must be at least 1, got {key_every}")
        if self.transform.train_min_sizes:
            raise ConfigError("yolact_edge trains on pairs of frames of one size; train_min_sizes must be empty")
        if not isinstance(self.neck, YolactFPN) or len(self.neck.laterals) != 3:
            raise ConfigError("yolact_edge needs the neck 'yolact_fpn' on three maps of the backbone")
        self.backbone.steps()  # refuses one that cannot be stopped half way
        self.feature_transform: PartialFeatureTransform = build("neck", feature_transform, self.neck)
        self.key_every, self.freeze_backbone = key_every, freeze_backbone
        of_warped = {_WARPED + name: weight for name, weight in self.loss_weights.items()}
        self.loss_weights.update({**of_warped, "loss_feature_matching": 1.0, "loss_flow": 1.0, **loss_weights})
        if freeze_backbone:
            self.backbone.requires_grad_(False)
            self.neck.laterals.requires_grad_(False)

    def train(self, mode: bool = True) -> VideoAnchorDetector:
        """Training mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        return self

    @property
    def first_map(self) -> str:
        """The backbone's finest map in use: non-key frames stop there."""
        return next(iter(self.backbone.out_channels))

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        """Unweighted, named losses of frames, each with a key frame: YOLACT's on the frame's own features, the same
        (``warped_...``) on features warped from its key frame, and how far the two kinds of features are apart.

        Args:
            images: each (3, H, W) float in [0, 1].
            targets: as for ``AnchorDetector``; additionally, each optional:
                ``reference_image`` (3, H, W) float in [0, 1]: the clip's key frame; default: the frame itself.
                ``flow`` (2, H, W) float: displacement (dx, dy) in pixels of each pixel to its place in the key frame;
                NaN where unknown. Gives ``loss_flow``.

        Raises:
            TargetError: when targets are missing or malformed.
        """
        batch, geometries, resized = self.prepare_training(images, targets)
        references = [target.get("reference_image", image) for image, target in zip(images, targets or (), strict=True)]
        _check_references(images, references)
        keys, _ = self.transform.batch(references, padded_hw=geometries[0].padded_hw)
        sums, _ = self.neck.merge(self.backbone(batch))
        losses = self._losses_on(sums, geometries, resized)
        key_sums, key_lateral = self.neck.merge(self.backbone(keys))
        reduced = self.feature_transform.reduce(key_lateral)
        warped, motions = self.feature_transform(self.partial_lateral(batch), key_sums, reduced, finest=True)
        of_warped = self._losses_on(warped, geometries, resized)
        losses.update({_WARPED + name: value for name, value in of_warped.items()})
        losses["loss_feature_matching"] = self.feature_matching(warped, sums)
        losses["loss_flow"] = flow_loss(motions, [target.get("flow") for target in targets or ()])
        return losses

    def _losses_on(
        self, sums: Mapping[str, Tensor], geometries: Sequence[Geometry], targets: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        features = self.neck.finish(sums)
        return self.head.loss(self.head(features), features, geometries, targets)

    def feature_matching(self, warped: Mapping[str, Tensor], true: Mapping[str, Tensor]) -> Tensor:
        """One minus the cosine between warped and true features of every cell, before and after the pyramid's output
        convolution (whose weights get no gradient from this); mean over the transformed maps.
        """
        terms = []
        for level in self.feature_transform.levels[1:]:
            frozen = {name: value.detach() for name, value in self.neck.outputs[level].named_parameters()}
            pair = warped[level], true[level].detach()
            after = (F.relu(F.conv2d(each, frozen["weight"], frozen["bias"], padding=1)) for each in pair)
            for a, b in (pair, tuple(after)):
                terms.append((1 - F.cosine_similarity(a, b)).mean())
        return torch.stack(terms).mean()

    def partial_lateral(self, batch: Tensor) -> Tensor:
        """(N, channels, h, w): the pyramid's finest lateral, from a backbone that stops there."""
        name = self.first_map
        return self.neck.lateral(self.backbone.until(batch, name), f"p{name[1:]}")

    @torch.inference_mode()
    def step(self, batch: Tensor, geometry: Geometry, state: VideoState) -> tuple[Prediction, VideoState]:
        """One frame further; see ``VideoModel.step``."""
        if state.frame % self.key_every == 0:
            sums, tensors = self._key_frame(batch)
            key_index = state.frame
        else:
            tensors, key_index = dict(state.tensors), state.counters["key_index"]
            sums, _ = self.feature_transform(self.partial_lateral(batch), tensors, tensors["context"])
        prediction = self.decode(self.head(self.neck.finish(sums)), [geometry])[0]
        return prediction, VideoState(state.frame + 1, tensors, {"key_index": key_index})

    def _key_frame(self, batch: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        sums, lateral = self.neck.merge(self.backbone(batch))
        kept = {level: sums[level] for level in self.feature_transform.levels[1:]}
        return sums, {**kept, "context": self.feature_transform.reduce(lateral)}


def flow_loss(motions: Sequence[Motion], flows: Sequence[Tensor | None]) -> Tensor:
    """Mean distance between predicted and true flow, summed over resolutions; zero where no flow is known.

    Args:
        motions: of ``FlowNetMini``, at any resolutions.
        flows: per image (2, H, W) displacement in pixels, NaN where unknown, or None.
    """
    total = sum((part.sum() * 0 for motion in motions for part in motion), motions[0].flow.new_zeros(()))
    known = [(k, flow) for k, flow in enumerate(flows) if flow is not None]
    for motion in motions:
        for k, flow in known:
            cells_hw = (motion.flow.shape[-2], motion.flow.shape[-1])
            wanted = flow_from_pixels(flow[None].to(motion.flow), cells_hw)
            wanted = F.interpolate(wanted, size=cells_hw, mode="bilinear", align_corners=False)[0]
            distance = torch.linalg.vector_norm(motion.flow[k] - wanted.nan_to_num(), dim=0)
            seen = torch.isfinite(wanted).all(0)
            total = total + (distance * seen).sum() / (seen.sum().clamp(min=1) * len(known))
    return total


def _check_references(images: Sequence[Tensor], references: Sequence[Tensor]) -> None:
    for index, (image, reference) in enumerate(zip(images, references, strict=True)):
        if reference.shape != image.shape or not reference.is_floating_point():
            raise TargetError(
                f"target {index}: reference_image must be {tuple(image.shape)} float as the frame, got "
                f"{tuple(reference.shape)} {reference.dtype}"
            )
