"""Backbone, neck and one dense head that finds objects with their points in one pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from modelkit.base import VisionModel
from modelkit.carriers.landmark_detections import LandmarkDetections
from modelkit.detection.targets import check_targets
from modelkit.errors import ConfigError, TargetError
from modelkit.exporting.canvas import Canvas
from modelkit.layers.backbones import Backbone
from modelkit.registry import Config, build
from modelkit.transform import Geometry, ImageTransform


class PointHead(nn.Module, ABC):
    """Contract of a ``dense_head`` here: ``(neck, num_classes, num_keypoints, *, options)`` builds it.

    Attributes:
        loss_weights: by loss name, the authors' own.
    """

    loss_weights: ClassVar[dict[str, float]]

    @abstractmethod
    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Maps of the neck to flat named raw tensors."""

    @abstractmethod
    def loss(
        self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry], targets: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """Unweighted, named losses.

        Args:
            raw: of ``forward``.
            geometries: all of one padded size.
            targets: in resized pixels.
        """

    @abstractmethod
    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[LandmarkDetections]:
        """What is found in every image of a batch of one padded size, in source pixels."""

    def traced(self, raw: Mapping[str, Tensor], canvas: Canvas) -> dict[str, Tensor]:
        """See ``modelkit.base.VisionModel.traced``; heads that can do it say how.

        Returns:
            ``boxes_xyxy`` (n, 4) in source pixels, ``scores`` (n,), ``labels`` (n,), best first, and, where there are
            points, ``keypoints_xy`` (n, K, 2) and ``keypoint_scores`` (n, K).

        Raises:
            ConfigError: there is no such graph.
        """
        raise ConfigError(f"{type(self).__name__} has no form of its decoding that does not branch on what it finds")


class PointDetector(VisionModel):
    """Backbone, neck and a ``PointHead``.

    Args:
        num_classes: background included; labels run from 1.
        num_keypoints: of every object; 0 for boxes alone.
        backbone, neck, head: part configs.
        transform: options of ``ImageTransform``.
        loss_weights: by loss name, over the head's own.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_keypoints: int,
        backbone: Config,
        neck: Config,
        head: Config,
        transform: Config,
        loss_weights: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.num_classes, self.num_keypoints = num_classes, num_keypoints
        self.transform = ImageTransform.from_config(transform)
        self.backbone: Backbone = build("backbone", backbone)
        self.neck: Backbone = build("neck", neck, self.backbone)
        self.head: PointHead = build("dense_head", head, self.neck, num_classes, num_keypoints)
        self.loss_weights = {**self.head.loss_weights, **loss_weights}

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        """Unweighted, named losses of a training batch; ``predict`` is for everything else.

        Args:
            images: each (3, H, W) float in [0, 1].
            targets: one dict per image: ``boxes`` (n, 4) float xyxy in pixels of the image, ``labels`` (n,) long from
                1, optionally ``keypoints`` (n, K, 3) of x, y and v (0: not labelled), ``iscrowd``, ``ignore_boxes``,
                weights by object and what the head reads beside. n may be 0.

        Raises:
            TargetError: when targets are missing or malformed.
        """
        if targets is None:
            raise TargetError("forward gives training losses and needs targets; use predict(images) for detections")
        check_targets(targets, len(images), self.num_classes)
        check_rows(targets, "keypoints", (self.num_keypoints, 3))
        batch, geometries = self.transform.batch(images, training=self.training)
        resized = [self.transform.target(t, g) for t, g in zip(targets, geometries, strict=True)]
        return self.head.loss(self.dense(batch), geometries, resized)

    def dense(self, batch: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) normalised to the head's raw tensors."""
        return self.head(self.neck(self.backbone(batch)))

    @torch.inference_mode()
    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[LandmarkDetections]:
        """See the head's."""
        return self.head.decode(raw, geometries)

    @property
    def has_graph(self) -> bool:
        """See ``VisionModel``; the head decides."""
        return type(self.head).traced is not PointHead.traced

    def traced(self, raw: Mapping[str, Tensor], canvas: Canvas) -> dict[str, Tensor]:
        """See the head's."""
        return self.head.traced(raw, canvas)


def check_rows(targets: Sequence[Mapping[str, Any]], key: str, shape: tuple[int, int]) -> None:
    """Refuse an entry whose rows are not of the model's shape; a model of 0 points or vertices looks at none.

    Raises:
        TargetError: names the target's index, the key and the shapes.
    """
    for index, target in enumerate(targets):
        wanted = (len(target["boxes"]), *shape)
        if shape[0] and key in target and target[key].shape != wanted:
            raise TargetError(f"target {index}: {key} must be {wanted}, got {tuple(target[key].shape)}")
