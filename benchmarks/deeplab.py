"""DeepLabV3+ against the reference implementation: the same weights, the same picture, turn by turn.

    VISIONMILL_REFERENCE_DIR=FOLDER python -m benchmarks.deeplab [--models NAME ...] [--side 513] [--repeats 7]

FOLDER holds a checkout of VainF/DeepLabV3Plus-Pytorch under the name ``DeepLabV3Plus-Pytorch``. One thread, float32,
both eager. From the normalised picture to a class for every pixel; ours gives probabilities beside it. Then what only
ours has: compressed run lengths, boxes and scores of the segments. Maps that differ end the benchmark.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from modelkit.importing import import_weights
from modelkit.transform import Geometry
from modelkit.weights import load_weights

_VARIABLE, _REPOSITORY = "VISIONMILL_REFERENCE_DIR", "DeepLabV3Plus-Pytorch"
_THEIR_NAMES = {
    "deeplabv3plus_resnet50": "deeplabv3plus_resnet50",
    "deeplabv3plus_resnet101": "deeplabv3plus_resnet101",
    "deeplabv3plus_mobilenet_v2": "deeplabv3plus_mobilenet",
}
_MOST_DIFFERING = 1e-4  # share of pixels: sums in another order decide the few where two classes are equally likely
_NUM_CLASSES = 21


def theirs(name: str, folder: Path) -> nn.Module:
    """The reference's network with weights of a seed, norms included, so that classes differ over an image."""
    sys.path.insert(0, str(folder))
    try:
        modeling: Any = importlib.import_module("network").modeling
    finally:
        sys.path.remove(str(folder))
    torch.manual_seed(3)
    model: nn.Module = getattr(modeling, _THEIR_NAMES[name])(
        num_classes=_NUM_CLASSES, output_stride=16, pretrained_backbone=False
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def ours(name: str, reference: nn.Module, side: int) -> Any:
    """Our model with the same weights, through a checkpoint and the importer."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, folder = Path(scratch) / "theirs.pth", Path(scratch) / "ours"
        torch.save({"model_state": reference.state_dict()}, checkpoint)
        transform = {"min_size": side, "max_size": side, "padding": "none", "size_divisible": 1}
        import_weights(name, checkpoint, folder, config={"transform": transform})
        return load_weights(folder)[0].eval()


def picture(side: int) -> Tensor:
    """(1, 3, side, side): smooth, of about unit deviation, as after normalising."""
    rows, columns = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    waves = [torch.sin(17 * rows * (channel + 1)) + torch.cos(23 * columns + channel) for channel in range(3)]
    return torch.stack(waves)[None].float()


@torch.inference_mode()
def compare(name: str, folder: Path, side: int, repeats: int) -> tuple[float, float, float]:
    """Median seconds: theirs to the map, ours to the map, ours from the map to run lengths. Turns alternate."""
    reference, batch = theirs(name, folder), picture(side)
    model, geometries = ours(name, reference, side), [Geometry((side, side), (side, side), (side, side))]
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    for repeat in range(repeats + 1):
        begin = time.perf_counter()
        expected = reference(batch).argmax(1)[0]
        middle = time.perf_counter()
        found = model.decode(model.dense(batch), geometries)[0]
        end = time.perf_counter()
        found.finish()
        if repeat:  # the first is for caches
            for own, seconds in zip(times, (middle - begin, end - middle, time.perf_counter() - end), strict=True):
                own.append(seconds)
    differing = float((torch.from_numpy(found.full_size()).long() != expected).float().mean())
    if differing > _MOST_DIFFERING or len(expected.unique()) < 2:
        raise SystemExit(
            f"{name}: the maps differ in {differing:.2%} of their pixels, {len(expected.unique())} classes"
        )
    return median(times[0]), median(times[1]), median(times[2])


def main() -> None:
    """Print a table, or what is missing for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=sorted(_THEIR_NAMES), choices=sorted(_THEIR_NAMES))
    parser.add_argument("--side", type=int, default=513)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    folder = Path(os.environ.get(_VARIABLE, "")) / _REPOSITORY
    if not os.environ.get(_VARIABLE) or not folder.is_dir():
        print(f"not measured: needs {_VARIABLE} with a checkout of VainF/{_REPOSITORY} in it, as '{_REPOSITORY}'")
        return
    torch.set_num_threads(1)
    print(f"{given.side} x {given.side}, {given.repeats} repeats, medians, ms; to a class for every pixel")
    print(f"{'':28s} {'theirs':>8s} {'ours':>8s} {'times faster':>13s} {'run lengths':>12s}")
    for name in given.models:
        their, our, rest = compare(name, folder, given.side, given.repeats)
        print(f"{name:28s} {1e3 * their:8.1f} {1e3 * our:8.1f} {their / our:13.2f} {1e3 * rest:12.1f}")


if __name__ == "__main__":
    main()
