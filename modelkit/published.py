"""Published weights that are usable by name: where they are, what config they need, what their record says.

URLs, metrics and categories come from torchvision's own tables; only what these do not say stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torchvision

from modelkit.carriers.classes import ClassInfo
from modelkit.downloads import PublishedFile
from modelkit.errors import UnknownNameError

NO_CLASS = ("__background__", "no person", "N/A")  # among torchvision's categories
_LICENCE = "BSD-3-Clause (torchvision); trained on COCO, annotations CC BY 4.0"


@dataclass(frozen=True, slots=True)
class Published:
    """One published set of weights.

    Args:
        model: registered name.
        weights: its name among the model's weights, e.g. "COCO_V1".
        entry: of torchvision's table, "<enum>.<member>".
        config: options that the published computation needs.
        is_thing: False where the classes are regions, not single objects.
    """

    model: str
    weights: str
    entry: str
    config: Mapping[str, Any] = field(default_factory=dict)
    is_thing: bool = True

    @property
    def url(self) -> str:
        """Where the file is."""
        return torchvision.models.get_weight(self.entry).url

    @property
    def file(self) -> PublishedFile:
        """The checkpoint itself."""
        return PublishedFile(self.model, self.weights, self.url)

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """Label ids and names; background and unused ids left out."""
        names = torchvision.models.get_weight(self.entry).meta["categories"]
        return tuple(ClassInfo(i, name, self.is_thing) for i, name in enumerate(names) if name not in NO_CLASS)

    @property
    def metrics(self) -> dict[str, Any]:
        """As published, by data set."""
        return dict(torchvision.models.get_weight(self.entry).meta["_metrics"])

    @property
    def lineage(self) -> dict[str, Any]:
        """Where they come from."""
        recipe = torchvision.models.get_weight(self.entry).meta["recipe"]
        return {"kind": "published", "publisher": "torchvision", "entry": self.entry, "url": self.url, "recipe": recipe}

    @property
    def licence(self) -> str:
        """Of code and data."""
        return _LICENCE


# torchvision sets the eps of this file's frozen norms to zero when it loads it.
_FROZEN = {"backbone": {"norm": "frozen_batch", "norm_eps": 0.0}}
_VOC = "COCO_WITH_VOC_LABELS_V1"

PUBLISHED = (
    Published("maskrcnn_resnet50_fpn", "COCO_V1", "MaskRCNN_ResNet50_FPN_Weights.COCO_V1", _FROZEN),
    Published("fasterrcnn_resnet50_fpn", "COCO_V1", "FasterRCNN_ResNet50_FPN_Weights.COCO_V1", _FROZEN),
    Published("keypointrcnn_resnet50_fpn", "COCO_V1", "KeypointRCNN_ResNet50_FPN_Weights.COCO_V1", _FROZEN),
    Published(
        "keypointrcnn_resnet50_fpn",
        "COCO_LEGACY",
        "KeypointRCNN_ResNet50_FPN_Weights.COCO_LEGACY",
        {"backbone": {"norm": "frozen_batch"}},
    ),
    Published("maskrcnn_resnet50_fpn_v2", "COCO_V1", "MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1"),
    Published("fasterrcnn_resnet50_fpn_v2", "COCO_V1", "FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1"),
    Published(
        "retinanet_resnet50_fpn",
        "COCO_V1",
        "RetinaNet_ResNet50_FPN_Weights.COCO_V1",
        {"norm": "frozen_batch", "norm_eps": 0.0},
    ),
    Published("retinanet_resnet50_fpn_v2", "COCO_V1", "RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1"),
    Published("fcos_resnet50_fpn", "COCO_V1", "FCOS_ResNet50_FPN_Weights.COCO_V1", {"norm": "frozen_batch"}),
    Published("ssd300_vgg16", "COCO_V1", "SSD300_VGG16_Weights.COCO_V1"),
    Published("ssdlite320_mobilenet_v3_large", "COCO_V1", "SSDLite320_MobileNet_V3_Large_Weights.COCO_V1"),
    *(
        Published(model, _VOC, f"{enum}_Weights.{_VOC}", is_thing=False)
        for model, enum in (
            ("lraspp_mobilenet_v3_large", "LRASPP_MobileNet_V3_Large"),
            ("deeplabv3_mobilenet_v3_large", "DeepLabV3_MobileNet_V3_Large"),
            ("deeplabv3_resnet50", "DeepLabV3_ResNet50"),
            ("deeplabv3_resnet101", "DeepLabV3_ResNet101"),
            ("fcn_resnet50", "FCN_ResNet50"),
            ("fcn_resnet101", "FCN_ResNet101"),
        )
    ),
)


def find_published(model: str, weights: str) -> Published:
    """The entry; raises UnknownNameError with the weights that the model has."""
    entries = {each.weights: each for each in PUBLISHED if each.model == model}
    if weights not in entries:
        raise UnknownNameError(
            f"model {model!r} has no published weights {weights!r}; known: {', '.join(entries) or 'none'}"
        )
    return entries[weights]


def published_by_digest(model: str, digest: str) -> Published | None:
    """The entry whose file has this SHA-256, if any."""
    return next(
        (each for each in PUBLISHED if each.model == model and digest.startswith(each.file.digest_prefix)), None
    )
