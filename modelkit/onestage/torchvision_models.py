"""torchvision's one-stage detectors by their own names: RetinaNet, FCOS and SSD, boxes only.

Their networks, matching and decoding are torchvision's; here they are cut into ``dense`` and ``decode``, images go
through our transform, and the losses know ignored regions and weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import FrozenBatchNorm2d

from modelkit.base import VisionModel
from modelkit.carriers import SizeHW
from modelkit.detection.targets import check_targets
from modelkit.detection.two_stage import Detections
from modelkit.errors import ConfigError, TargetError
from modelkit.exporting.canvas import Canvas
from modelkit.onestage.torchvision_losses import assign, losses_of
from modelkit.onestage.torchvision_tracing import traced_classes, traced_levels
from modelkit.registry import Config, register_model
from modelkit.transform import Geometry, ImageTransform

_LOSS_NAMES = {"classification": "classifier", "bbox_regression": "box_reg", "bbox_ctrness": "centerness"}
_COCO = ("COCO_V1",)


def _square(side: int, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    return ImageTransform(side, side, mean, std, size_divisible=1, padding="square").to_config()


_SHORT_800 = ImageTransform().to_config()
_SQUARE_300 = _square(300, (0.48235, 0.45882, 0.40784), (1 / 255,) * 3)
_SQUARE_320 = _square(320, (0.5,) * 3, (0.5,) * 3)


class TorchvisionDetector(VisionModel):
    """A one-stage detector of torchvision under the contract of ``VisionModel``.

    Args:
        network: with ``backbone``, ``head``, ``anchor_generator``, ``compute_loss`` and ``postprocess_detections``.
        num_classes: background included; labels run from 1.
        transform: options of ``ImageTransform``, in place of the network's own.
    """

    def __init__(self, network: Any, *, num_classes: int, transform: Config) -> None:
        super().__init__()
        self.transform = ImageTransform.from_config(transform)
        network.transform = nn.Identity()
        self.network, self.num_classes = network, num_classes
        names = [name for name in _LOSS_NAMES if name != "bbox_ctrness" or hasattr(network, "center_sampling_radius")]
        self.loss_weights = {f"loss_{_LOSS_NAMES[name]}": 1.0 for name in names}

    @property
    def most_detections(self) -> int:
        """See ``VisionModel``."""
        return int(self.network.detections_per_img)

    def limit_detections(self, most: int) -> None:
        """See ``VisionModel``."""
        self.network.detections_per_img = most
        self.network.topk_candidates = max(self.network.topk_candidates, 2 * most)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        """torchvision's losses, unweighted: ``loss_classifier``, ``loss_box_reg``, for FCOS ``loss_centerness``.

        Args:
            images: each (3, H, W) float in [0, 1].
            targets: one dict per image: ``boxes`` (n, 4) float xyxy in pixels of the image, ``labels`` (n,) long from
                1. n may be 0. Optional: ``ignore_boxes`` and weights by object, see ``modelkit.detection.targets``.

        Raises:
            TargetError: when targets are missing or malformed.
        """
        if targets is None:
            raise TargetError("forward gives training losses and needs targets; use predict(images) for detections")
        check_targets(targets, len(images), self.num_classes)
        batch, geometries = self.transform.batch(images, training=self.training)
        resized = [self.transform.target(t, g) for t, g in zip(targets, geometries, strict=True)]
        raw = self.dense(batch)
        outputs, anchors, per_level = self._outputs(raw, geometries[0].padded_hw, [g.resized_hw for g in geometries])
        assigned = assign(self.network, outputs, anchors, per_level, resized)
        losses = losses_of(self.network, outputs, assigned)
        return {f"loss_{_LOSS_NAMES[name]}": value for name, value in losses.items()}

    def dense(self, batch: Tensor) -> dict[str, Tensor]:
        """The head's outputs (N, anchors, ...) by torchvision's names, and one channel of every map, ``map.<k>``
        (N, 1, h, w), of which only the shape is looked at.
        """
        features = list(self.network.backbone(batch).values())
        return {**self.network.head(features), **{f"map.{k}": each[:, :1] for k, each in enumerate(features)}}

    def _outputs(
        self, raw: Mapping[str, Tensor], padded_hw: SizeHW, sizes_hw: Sequence[SizeHW]
    ) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
        """The head's outputs in float32, the anchors of every image, and how many there are on each map.

        Args:
            raw: of ``dense``.
            padded_hw: of the batch.
            sizes_hw: of the content of every image.
        """
        maps = [value for name, value in raw.items() if name.startswith("map.")]
        outputs = {name: value.float() for name, value in raw.items() if not name.startswith("map.")}
        # Anchors depend on the batch's shape alone, so no pixels are carried.
        images = ImageList(torch.empty((len(sizes_hw), 3, *padded_hw), device="meta"), list(sizes_hw))
        anchors = self.network.anchor_generator(images, [each.float() for each in maps])
        per_cell = self.network.anchor_generator.num_anchors_per_location()
        per_level = [each.shape[2] * each.shape[3] * n for each, n in zip(maps, per_cell, strict=True)]
        return outputs, anchors, per_level

    @torch.inference_mode()
    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[Detections]:
        """torchvision's thresholds and suppression; boxes come back in source pixels."""
        sizes = [geometry.resized_hw for geometry in geometries]
        outputs, anchors, per_level = self._outputs(raw, geometries[0].padded_hw, sizes)
        if isinstance(self.network, SSD):
            found = self.network.postprocess_detections(outputs, anchors, sizes)
        else:
            split = {name: list(value.split(per_level, dim=1)) for name, value in outputs.items()}
            by_level = [list(each.split(per_level)) for each in anchors]
            found = self.network.postprocess_detections(split, by_level, sizes)
        return [
            Detections(
                geometry.source_hw, geometry.boxes_to_source(each["boxes"]), each["scores"], each["labels"], None
            )
            for geometry, each in zip(geometries, found, strict=True)
        ]

    def traced(self, raw: Mapping[str, Tensor], canvas: Canvas) -> dict[str, Tensor]:
        """``boxes_xyxy`` (n, 4) in source pixels, ``scores`` (n,), ``labels`` (n,), best first."""
        outputs, anchors, per_level = self._outputs(raw, canvas.padded_hw, [canvas.padded_hw])
        if isinstance(self.network, SSD):
            return traced_classes(self.network, outputs, anchors[0], canvas)
        return traced_levels(self.network, outputs, anchors[0], per_level, canvas)


def _resnet(name: str, score_threshold: float, nms_iou: float, detections: int) -> Callable[..., TorchvisionDetector]:
    def build(
        *,
        num_classes: int = 91,
        norm: str = "batch",
        norm_eps: float = 1e-5,
        transform: Config = _SHORT_800,
        score_threshold: float = score_threshold,
        nms_iou: float = nms_iou,
        detections_per_image: int = detections,
    ) -> TorchvisionDetector:
        network = _build(name, num_classes, score_threshold, nms_iou, detections_per_image)
        if norm == "frozen_batch":
            _freeze_norms(network.backbone, norm_eps)
        elif norm != "batch":
            raise ConfigError(f"{name} norm must be 'batch' or 'frozen_batch', got {norm!r}")
        return TorchvisionDetector(network, num_classes=num_classes, transform=transform)

    return register_model(name, architecture="TorchvisionDetector", kind="detection", weights=_COCO)(build)


def _build(name: str, num_classes: int, score_threshold: float, nms_iou: float, detections: int) -> Any:
    return getattr(torchvision.models.detection, name)(
        weights=None,
        weights_backbone=None,
        num_classes=num_classes,
        score_thresh=score_threshold,
        nms_thresh=nms_iou,
        detections_per_img=detections,
    )


def _freeze_norms(module: nn.Module, eps: float) -> None:
    """Put frozen batch norms in the place of trained ones, below their names."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps))
        else:
            _freeze_norms(child, eps)


retinanet_resnet50_fpn = _resnet("retinanet_resnet50_fpn", 0.05, 0.5, 300)
retinanet_resnet50_fpn_v2 = _resnet("retinanet_resnet50_fpn_v2", 0.05, 0.5, 300)
fcos_resnet50_fpn = _resnet("fcos_resnet50_fpn", 0.2, 0.6, 100)


@register_model("ssd300_vgg16", architecture="TorchvisionDetector", kind="detection", weights=_COCO)
def ssd300_vgg16(
    *,
    num_classes: int = 91,
    num_maps: int = 6,
    transform: Config = _SQUARE_300,
    score_threshold: float = 0.01,
    nms_iou: float = 0.45,
    detections_per_image: int = 200,
) -> TorchvisionDetector:
    """SSD on VGG-16 (Liu et al. 2016); ``num_maps``: finest maps in use, for the coarsest need images of 300 pixels."""
    if not 2 <= num_maps <= 6:
        raise ConfigError(f"ssd300_vgg16 has up to 6 maps and needs 2, got num_maps {num_maps}")
    network = _build("ssd300_vgg16", num_classes, score_threshold, nms_iou, detections_per_image)
    network.backbone.extra = network.backbone.extra[: num_maps - 1]
    for head in (network.head.classification_head, network.head.regression_head):
        head.module_list = head.module_list[:num_maps]
    generator = network.anchor_generator
    for name in ("aspect_ratios", "steps", "_wh_pairs"):
        setattr(generator, name, getattr(generator, name)[:num_maps])
    return TorchvisionDetector(network, num_classes=num_classes, transform=transform)


@register_model("ssdlite320_mobilenet_v3_large", architecture="TorchvisionDetector", kind="detection", weights=_COCO)
def ssdlite320_mobilenet_v3_large(
    *,
    num_classes: int = 91,
    transform: Config = _SQUARE_320,
    score_threshold: float = 0.001,
    nms_iou: float = 0.55,
    detections_per_image: int = 300,
) -> TorchvisionDetector:
    """SSDlite on MobileNetV3 (Howard et al. 2019)."""
    network = _build("ssdlite320_mobilenet_v3_large", num_classes, score_threshold, nms_iou, detections_per_image)
    return TorchvisionDetector(network, num_classes=num_classes, transform=transform)
