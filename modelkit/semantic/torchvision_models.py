"""torchvision's semantic models by their own names, as networks under ``SemanticSegmentor``."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torchvision
from torch import Tensor, nn

from modelkit.registry import Config, register_model
from modelkit.semantic.segmentor import SemanticSegmentor, Upsample
from modelkit.transform import ImageTransform

# torchvision evaluates at a shorter side of 520 with antialiasing and no limit on the longer one; the limit keeps a
# 20000 x 1 image from becoming ten million pixels long, and few shapes keep batches full and graphs compiled.
_TRANSFORM = ImageTransform(
    min_size=520, max_size=1040, size_divisible=1, padding="stretch", antialias=True
).to_config()
_VOC_LABELS = ("COCO_WITH_VOC_LABELS_V1",)


class TorchvisionNetwork(nn.Module):
    """A torchvision segmentation model, stopped before it stretches its logits to the input size.

    Args:
        model: with ``backbone``, ``classifier`` and perhaps ``aux_classifier``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.classifier = cast(nn.Module, model.backbone), cast(nn.Module, model.classifier)
        self.aux_classifier = getattr(model, "aux_classifier", None)
        # LR-ASPP's classifier takes both of its maps, the others one.
        self._takes_all = isinstance(model, torchvision.models.segmentation.LRASPP)

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """``logits`` on the classifier's grid; in training also ``aux_logits`` where there is such a head."""
        features = self.backbone(batch)
        raw = {"logits": self.classifier(features if self._takes_all else features["out"])}
        if self.training and self.aux_classifier is not None:
            raw["aux_logits"] = self.aux_classifier(features["aux"])
        return raw


def _register(name: str, has_aux: bool) -> Callable[..., SemanticSegmentor]:
    def plain(
        *,
        num_classes: int = 21,
        transform: Config = _TRANSFORM,
        upsample: Upsample = "network",
        background: int | None = 0,
    ) -> SemanticSegmentor:
        return _wrap(name, num_classes, transform, upsample, background)

    def with_aux(
        *,
        num_classes: int = 21,
        aux_loss: bool = True,
        transform: Config = _TRANSFORM,
        upsample: Upsample = "network",
        background: int | None = 0,
    ) -> SemanticSegmentor:
        return _wrap(name, num_classes, transform, upsample, background, aux_loss=aux_loss)

    decorate = register_model(name, architecture="SemanticSegmentor", kind="semantic", weights=_VOC_LABELS)
    return decorate(with_aux if has_aux else plain)


def _wrap(
    name: str, num_classes: int, transform: Config, upsample: Upsample, background: int | None, **options: bool
) -> SemanticSegmentor:
    builder = getattr(torchvision.models.segmentation, name)
    model = builder(weights=None, weights_backbone=None, num_classes=num_classes, **options)
    return SemanticSegmentor(
        TorchvisionNetwork(model),
        num_classes=num_classes,
        transform=transform,
        upsample=upsample,
        background=background,
    )


lraspp_mobilenet_v3_large = _register("lraspp_mobilenet_v3_large", has_aux=False)
deeplabv3_mobilenet_v3_large = _register("deeplabv3_mobilenet_v3_large", has_aux=True)
deeplabv3_resnet50 = _register("deeplabv3_resnet50", has_aux=True)
deeplabv3_resnet101 = _register("deeplabv3_resnet101", has_aux=True)
fcn_resnet50 = _register("fcn_resnet50", has_aux=True)
fcn_resnet101 = _register("fcn_resnet101", has_aux=True)
