"""Same weights, same picture: our semantic models compute what the reference implementations compute.

Checkpoints go through the importer and pictures through the ``Predictor``, with nothing said about their size: what the
record says of it is the reference's own rule.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from modelkit import Predictor, import_weights, load, rle
from tests.modelkit.builders import as_tensor, picture
from tests.modelkit.parity.differences import of_maps
from tests.modelkit.reference.checkouts import reference

pytestmark = pytest.mark.reference
_MEAN_BGR = [104.00698793, 116.66876762, 122.67891434]  # of their data set
_TOLERANCE = 1e-5  # of the largest logit


def imported(name: str, state: dict[str, Any], folder: Path, **config: Any) -> Predictor:
    """Through a checkpoint file and the importer, as a user would do it."""
    torch.save(state, folder / "theirs.pth")
    import_weights(name, folder / "theirs.pth", folder / "ours", config=config)
    return load(folder / "ours")


def randomise(model: nn.Module, scale: float = 1.0) -> nn.Module:
    """Every tensor away from its start: statistics of norms too, so that no mistake hides behind zeros and ones."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=scale / module.weight[0].numel() ** 0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def assert_same(predictor: Predictor, image: np.ndarray, expected: Tensor, record: Any) -> None:
    prepared = predictor.prepare(image)
    assert prepared.geometry.padded_hw == prepared.geometry.resized_hw == image.shape[:2], "as it is"
    with torch.inference_mode():
        logits = predictor.forward_fn(predictor.batch([prepared]))["logits"]
        logits = F.interpolate(logits, size=expected.shape[-2:], mode="bilinear", align_corners=False)
    difference = float((logits - expected).abs().max() / expected.abs().max())
    record("relative_difference", f"{difference:.2e}")
    print(f"largest difference over largest logit: {difference:.2e}")
    assert float(expected.std()) > 1e-3
    assert difference <= _TOLERANCE
    given = np.zeros(image.shape[:2], np.int64)
    found = predictor([image])[0]
    for label, mask in zip(found.labels.tolist(), found.rles or (), strict=True):
        given[rle.decode(mask, found.size_hw).astype(bool)] = label
    wrong = float((given != expected[0].argmax(0).numpy()).mean())
    record("wrong_pixels", f"{wrong:.1e}")
    assert wrong <= 1e-3, "classes of pixels, where a tie is decided by the last digit"


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("fcn32s", "FCN32s"), ("fcn16s", "FCN16s"), ("fcn8s", "FCN8s"), ("fcn8s_atonce", "FCN8sAtOnce")],
)
def test_fcn_equals_wkentaros(name: str, theirs: str, tmp_path: Path, record_property: Any) -> None:
    image = picture(97, 131, 4)
    with reference("pytorch-fcn", absent=["fcn"], bare=["torchfcn"]):
        model = getattr(importlib.import_module("torchfcn.models"), theirs)(n_class=21)
        randomise(model, scale=1.4)
        bgr = torch.from_numpy(image[:, :, ::-1].astype(np.float32)) - torch.tensor(_MEAN_BGR)
        with torch.inference_mode():
            expected = model(bgr.permute(2, 0, 1)[None])
        state = {"epoch": 3, "arch": theirs, "model_state_dict": model.state_dict(), "best_mean_iu": np.float64(0.6)}
        del model
        ours = imported(name, state, tmp_path)
    assert_same(ours, image, expected, record_property)


@pytest.mark.parametrize(
    ("name", "bilinear", "classes"), [("unet", False, 2), ("unet", False, 1), ("unet_bilinear", True, 3)]
)
def test_unet_equals_milesials(name: str, bilinear: bool, classes: int, tmp_path: Path, record_property: Any) -> None:
    image = picture(97, 131, 4)
    with reference("Pytorch-UNet"):
        model = importlib.import_module("unet").UNet(3, classes, bilinear)
        randomise(model, scale=1.4)
        with torch.inference_mode():
            expected = model(as_tensor(image)[None])
        state = {**model.state_dict(), "mask_values": [0, 255]}
        ours = imported(name, state, tmp_path, transform={"scale": 1.0})  # its default halves the picture
    if classes == 1:
        expected = torch.cat([torch.zeros_like(expected), expected], 1)
    assert_same(ours, image, expected, record_property)


def test_unet_shows_pictures_as_milesials_predict_does(tmp_path: Path, record_property: Any) -> None:
    """Halved by Pillow's cubic curves, and the logits brought back to the picture."""
    image = picture(97, 131, 4)
    with reference("Pytorch-UNet", absent=["wandb"]):
        model = randomise(importlib.import_module("unet").UNet(3, 3, False), scale=1.4)
        preprocess = importlib.import_module("utils.data_loading").BasicDataset.preprocess
        seen = torch.from_numpy(preprocess(None, Image.fromarray(image), 0.5, is_mask=False)).float()
        with torch.inference_mode():
            expected = F.interpolate(model(seen[None]), image.shape[:2], mode="bilinear")[0].argmax(0)
        ours = imported("unet", model.state_dict(), tmp_path)
    difference = of_maps(ours([image])[0], expected.numpy())
    record_property("missed", f"{difference.missed:.2e}")
    print(f"pixels of another class: {difference.missed:.2e}")
    assert difference.missed <= 0.01, "single grey levels of the resized picture differ"


@pytest.mark.parametrize(
    ("name", "theirs", "stride", "separable"),
    [
        ("deeplabv3plus_resnet50", "deeplabv3plus_resnet50", 16, False),
        ("deeplabv3plus_resnet50", "deeplabv3plus_resnet50", 8, True),
        ("deeplabv3plus_resnet101", "deeplabv3plus_resnet101", 16, False),
        ("deeplabv3plus_mobilenet_v2", "deeplabv3plus_mobilenet", 16, False),
        ("deeplabv3plus_mobilenet_v2", "deeplabv3plus_mobilenet", 8, False),
    ],
)
def test_deeplabv3plus_equals_vainfs(
    name: str, theirs: str, stride: int, separable: bool, tmp_path: Path, record_property: Any
) -> None:
    image = picture(97, 131, 4)
    with reference("DeepLabV3Plus-Pytorch"):
        network = importlib.import_module("network")
        build = getattr(network.modeling, theirs)
        model = build(num_classes=19, output_stride=stride, pretrained_backbone=False)
        if separable:
            network.convert_to_separable_conv(model.classifier)
        randomise(model)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        with torch.inference_mode():
            expected = model(((as_tensor(image) - mean[:, None, None]) / std[:, None, None])[None])
        state = {"cur_itrs": 9, "model_state": model.state_dict(), "best_score": np.float64(0.7), "optimizer_state": {}}
        backbone = {"dilate_last": 1 if stride == 16 else 2}
        ours = imported(name, state, tmp_path, backbone=backbone)
    assert_same(ours, image, expected, record_property)
