"""The YOLACT of its authors (dbolya/yolact) on weights that a seed decides, in a process of its own: it takes over
``sys.path`` and expects a GPU.

    python -m benchmarks.yolact_reference FOLDER CONFIG STATE

writes the weights to STATE; then, for every line that comes in, takes one picture from the network to compressed run
lengths and answers with a line of JSON: seconds of the parts, number of masks, and a digest of their bytes. Nothing of
its code is here but the names of what is called.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PHOTOGRAPH_HW = (427, 640)  # COCO's most common size, for masks to go back to


def open_folder(folder: Path, *, jit: bool) -> None:
    """Make its modules importable without OpenCV, Cython and a GPU.

    Args:
        folder: its checkout.
        jit: let it compile its pyramid and its backbone with TorchScript, as it does on one GPU.
    """
    torch.cuda.current_device = lambda: 0  # type: ignore[assignment]
    torch.cuda.device_count = lambda: 1 if jit else 2  # type: ignore[assignment]
    for name in ("cv2", "pyximport"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["pyximport"].install = lambda **options: None  # type: ignore[attr-defined]
    sys.path.insert(0, str(folder.resolve()))


@torch.no_grad()
def build(config: str) -> Any:
    """Its network in evaluation mode, with ``side``, of its images, in pixels; ``open_folder`` comes first.

    Weights are random, scaled so that scores differ from one prior to the next instead of all being 1, boxes have a
    size, and no mask's probability is 1 to the last bit: its mask loss takes the logarithm of probabilities, which
    would leave nothing of such a logit.

    Args:
        config: name in its ``data/config.py``.
    """
    from data import cfg, set_cfg

    set_cfg(config)
    cfg.freeze_bn = True
    cfg.mask_proto_debug = False
    from yolact import Yolact

    net = randomise(Yolact())
    net.train()  # the norms stay at rest; gives raw maps
    raw, head = net(pictures(2, cfg.max_size)), net.prediction_layers[0]
    wanted = {head.conf_layer: 3 / raw["conf"].std(), head.bbox_layer: 1 / raw["loc"].std()}
    wanted[net.proto_net[-1]] = 0.3 / raw["proto"].std()
    for layer, factor in wanted.items():
        layer.weight.mul_(factor)
        layer.bias.mul_(factor)
    net.detect.use_fast_nms = True
    net.side = cfg.max_size
    net.eval()  # returns nothing
    return net


def randomise(net: Any) -> Any:
    """Every tensor away from its start, so that no mistake hides behind zeros and ones."""
    generator = torch.Generator().manual_seed(3)
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            gain = 0.3 if "flow_net.pred" in name and name.endswith("conv") else 1.0
            std = gain / module.weight[0].numel() ** 0.5
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * std)
            if module.bias is not None:
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
        if isinstance(module, nn.BatchNorm2d):
            module.weight.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
            module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
            module.running_mean.copy_(torch.randn(module.weight.shape, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
    return net


def pictures(count: int, side: int) -> Tensor:
    """(count, 3, side, side): smooth, of about unit deviation, as after normalising."""
    rows, columns = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    waves = [
        torch.sin(17 * rows * (channel + 1) + frame / 3) + torch.cos(23 * columns + channel + frame / 5)
        for frame in range(count)
        for channel in range(3)
    ]
    return torch.stack(waves).reshape(count, 3, side, side).float()


def digest(masks: Sequence[bytes]) -> str:
    """Of masks as compressed run lengths, whatever their order."""
    return hashlib.sha256(b"\n".join(sorted(masks))).hexdigest()


@torch.no_grad()
def one_picture(net: Any, batch: Tensor) -> dict[str, Any]:
    """From a normalised picture to run lengths on ``PHOTOGRAPH_HW``, the way its evaluation goes."""
    import numpy as np
    from layers.output_utils import postprocess
    from pycocotools import mask as coco

    begin = time.perf_counter()
    found = net(batch)
    masks = postprocess(found, *PHOTOGRAPH_HW[::-1])[3]
    flat = [np.asfortranarray(mask.numpy().astype(np.uint8)) for mask in masks]
    encoded = [coco.encode(mask)["counts"] for mask in flat]
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "network": net.arrived - begin, "masks": len(encoded), "digest": digest(encoded)}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("config")
    parser.add_argument("state", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr  # it prints as it likes
    open_folder(given.folder, jit=True)
    net = build(given.config)
    torch.save(net.state_dict(), given.state)
    detect = net.detect

    def arrive(*arguments: Any) -> Any:
        net.arrived = time.perf_counter()
        return detect(*arguments)

    net.detect = arrive
    batch = pictures(1, net.side)
    for _ in sys.stdin:
        print(json.dumps(one_picture(net, batch)), file=answers, flush=True)


if __name__ == "__main__":
    main()
