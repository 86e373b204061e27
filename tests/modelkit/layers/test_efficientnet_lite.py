"""EfficientNet-Lite0: its maps, its published weights, and that these see what is in photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from modelkit import ConfigError, create_model
from modelkit.layers.efficientnet_lite import EfficientNetLiteBackbone, published_state, translate
from modelkit.registry import build
from modelkit.training.transfer import adopt, imagenet_state

ALL = ("c1", "c2", "c3", "c4", "c5")
COCO = Path(__file__).parents[4] / "shared" / "data" / "coco_free"
CLASSES = torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"]


@pytest.fixture(scope="module")
def trained() -> EfficientNetLiteBackbone:
    backbone = EfficientNetLiteBackbone(out=ALL)
    backbone.load_state_dict(backbone.imagenet_state())
    return backbone.eval()


def test_maps_have_a_cell_for_every_begun_stride() -> None:
    backbone = build("backbone", {"name": "efficientnet_lite0", "out": ALL})
    maps = backbone(torch.zeros(1, 3, 65, 97))
    assert {name: tuple(each.shape[1:]) for name, each in maps.items()} == {
        "c1": (16, 33, 49), "c2": (24, 17, 25), "c3": (40, 9, 13), "c4": (112, 5, 7), "c5": (320, 3, 4),
    }  # fmt: skip
    assert backbone.strides == {"c1": 2, "c2": 4, "c3": 8, "c4": 16, "c5": 32}
    assert set(backbone.until(torch.zeros(1, 3, 64, 64), "c3")) == {"c1", "c2", "c3"}


@pytest.mark.parametrize(("dilated", "cells"), [(1, (4, 6)), (2, (8, 12))])
def test_dilation_keeps_the_finer_stride_and_the_same_weights(dilated: int, cells: tuple[int, int]) -> None:
    backbone = EfficientNetLiteBackbone(out=("c2", "c5"), dilate_last=dilated)
    assert tuple(backbone(torch.zeros(1, 3, 64, 96))["c5"].shape[2:]) == cells
    assert backbone.strides["c5"] == 32 // 2**dilated
    assert adopt(backbone, backbone.imagenet_state()).new == ()


def test_every_published_tensor_but_the_classifier_has_its_place(trained: EfficientNetLiteBackbone) -> None:
    own, published = trained.state_dict(), translate(published_state())
    assert own.keys() <= published.keys()
    assert {name.split(".")[0] for name in published.keys() - own.keys()} == {"_conv_head", "_bn1", "_fc"}
    assert sum(tensor.numel() for tensor in published_state().values() if tensor.is_floating_point()) == 4_694_024


def test_a_backbone_that_ends_early_takes_the_part_it_has() -> None:
    backbone = EfficientNetLiteBackbone(out=("c2", "c3"))
    assert adopt(backbone, backbone.imagenet_state()).new == ()
    with pytest.raises(ConfigError, match="no maps"):
        EfficientNetLiteBackbone(out=("c6",))


def test_a_model_begins_from_what_its_backbone_learnt_on_imagenet() -> None:
    head = {"channels": 16, "low_channels": 8}
    model = create_model(
        "deeplabv3plus", num_classes=3, backbone={"name": "efficientnet_lite0", "out": ["c2", "c4"]}, head=head
    )
    adopted = adopt(model, imagenet_state(model))
    assert {name.split(".")[1] for name in adopted.new} == {"head"}
    assert adopted.unused == ()


def classify(backbone: EfficientNetLiteBackbone, image: np.ndarray) -> str:
    """The published input rule: the central 224/256 of the shorter side, bicubic to 224 x 224, (x - 127) / 128."""
    picture = Image.fromarray(image).convert("RGB")
    side = int(224 / 256 * min(picture.size))
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    cut = picture.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(cut)).permute(2, 0, 1)[None].float()
    return CLASSES[int(_scores(backbone, (pixels - 127) / 128).argmax())]


@torch.no_grad()
def _scores(backbone: EfficientNetLiteBackbone, batch: Tensor) -> Tensor:
    state = translate(published_state())
    norm = nn.BatchNorm2d(1280, eps=1e-3).eval()
    norm.load_state_dict({name.removeprefix("_bn1."): each for name, each in state.items() if name.startswith("_bn1.")})
    features = F.relu6(norm(F.conv2d(backbone(batch)["c5"], state["_conv_head.weight"]))).mean((2, 3))
    return F.linear(features, state["_fc.weight"], state["_fc.bias"])


@pytest.mark.parametrize(
    ("photograph", "expected"),
    [("chelsea", "tiger cat"), ("coffee", "espresso"), ("camera", "tripod"), ("rocket", "missile")],
)
def test_the_published_weights_see_what_is_in_photographs(
    trained: EfficientNetLiteBackbone, photograph: str, expected: str
) -> None:
    assert classify(trained, getattr(skimage.data, photograph)()) == expected


@pytest.mark.skipif(not COCO.exists(), reason="the photographs of COCO are not at hand")
@pytest.mark.parametrize(
    ("segment", "expected"),
    [
        ("5535630", "school bus"), ("8165276", "tub"), ("6578786", "streetcar"), ("460038", "microwave"),
        ("5456014", "umbrella"), ("pizza", "pizza"),
    ],
)  # fmt: skip
def test_the_published_weights_name_labelled_objects_of_photographs(
    trained: EfficientNetLiteBackbone, segment: str, expected: str
) -> None:
    """A COCO segment by its id, or the largest of a class: a square that is 1.2 times its longer side around it."""
    labels = json.loads((COCO / "panoptic_train2017.json").read_text())
    classes = {each["id"]: each["name"] for each in labels["categories"]}
    found = [
        (each["area"], each["bbox"], annotation["image_id"])
        for annotation in labels["annotations"]
        for each in annotation["segments_info"]
        if segment in (str(each["id"]), classes[each["category_id"]])
    ]
    _, (left, top, width, height), image = max(found)
    side = max(width, height) * 1.2 * 256 / 224  # classify cuts the margin off again
    x, y = left + (width - side) / 2, top + (height - side) / 2
    picture = Image.open(COCO / "train2017" / f"{image:012d}.jpg").convert("RGB")
    assert classify(trained, np.array(picture.crop((int(x), int(y), int(x + side), int(y + side))))) == expected
