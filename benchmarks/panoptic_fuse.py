"""VPSNet's fusion of two frames, and UPSNet's of objects and stuff: ours against the usual way to the same numbers.

    python -m benchmarks.panoptic_fuse [--size 160 320] [--repeats 5] [--device cpu]

``--size`` is the finest map's (rows, columns): a quarter of the frame; ResNet-50's pyramid of 256 channels. The usual
way stacks all levels at the finest size before it takes their mean, and correlates by one shifted product a
displacement, 81 in all; both share warping, convolutions and weights. The usual way to a panoptic map draws a whole
channel for every object before the argmax. Repeats interleaved, medians, one thread; results that differ end the
benchmark.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from modelkit.layers import FPN, ResNetBackbone
from modelkit.layers.warping import warp
from modelkit.panoptic import Regions, TemporalFusion, panoptic_argmax, panoptic_logits
from modelkit.panoptic.temporal import correlate


def correlate_by_shifting(current: Tensor, other: Tensor, reach: int) -> Tensor:
    """The usual way: one pass over both maps for every displacement."""
    height, width = current.shape[-2:]
    padded = F.pad(other, (reach,) * 4)
    span = range(2 * reach + 1)
    shifted = (padded[:, :, dy : dy + height, dx : dx + width] for dy in span for dx in span)
    return torch.stack([(current * view).mean(1) for view in shifted], dim=1)


def gather_by_stacking(features: Mapping[str, Tensor]) -> Tensor:
    """The usual way: every level at the finest size, then the mean."""
    size = next(iter(features.values())).shape[-2:]
    return torch.stack([F.interpolate(level, size=size) for level in features.values()]).mean(0)


def fuse_plainly(fusion: TemporalFusion, features: Mapping[str, Tensor], previous: Tensor, flow: Tensor) -> Tensor:
    """``TemporalFusion`` step by step, up to the finest map."""
    gathered = gather_by_stacking(features)
    aligned = warp(previous, flow)
    correlation = correlate_by_shifting(gathered, aligned, fusion.reach)
    aligned = warp(aligned, fusion.refine_flow(torch.cat([gathered, correlation, flow], dim=1)))
    return features["p2"] + fusion.refine(fusion.attention(gathered, aligned))


def compare(usual: Callable[[], Tensor], ours: Callable[[], Tensor], repeats: int) -> tuple[float, float]:
    """Median milliseconds of both, interleaved."""
    error = float((usual() - ours()).abs().max())
    if error > 1e-3:
        raise SystemExit(f"the ways differ by {error}")
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for way, own in zip((usual, ours), times, strict=True):
            begin = time.perf_counter()
            way()
            own.append(time.perf_counter() - begin)
    return 1e3 * median(times[0]), 1e3 * median(times[1])


def objects(count: int, size_hw: tuple[int, int], things: int) -> Regions:
    """Random ones, of a twentieth to a quarter of the picture's sides."""
    extent = torch.tensor([size_hw[1], size_hw[0]], dtype=torch.float32)
    sides = torch.empty(count, 2).uniform_(0.05, 0.25) * extent
    corners = torch.rand(count, 2) * (extent - sides)
    labels = torch.randint(1, things + 1, (count,))
    return Regions(torch.cat([corners, corners + sides], 1), torch.ones(count), labels, torch.randn(count, 28, 28))


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(160, 320))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows, columns = given.size
    with torch.device("meta"):
        neck = FPN(ResNetBackbone(depth=50))
    fusion = TemporalFusion(neck).eval().to(given.device)
    sizes = [(-(-rows // 2**k), -(-columns // 2**k)) for k in range(5)]
    features = {
        level: torch.randn(1, 256, *size, device=given.device)
        for level, size in zip(neck.out_channels, sizes, strict=True)
    }
    previous = torch.randn(1, 256, rows, columns, device=given.device)
    flow = 3 * torch.randn(1, 2, rows, columns, device=given.device)
    scores = torch.randn(11 + 8, 4 * rows, 4 * columns, device=given.device)  # of Cityscapes
    found = objects(50, (4 * rows, 4 * columns), 8).to(given.device)
    cases = {
        "gather 5 levels": (lambda: gather_by_stacking(features), lambda: fusion.gather(features)),
        "correlate 81 displacements": (
            lambda: correlate_by_shifting(features["p2"], previous, 4),
            lambda: correlate(features["p2"], previous, 4),
        ),
        "whole fuse step": (
            lambda: fuse_plainly(fusion, features, previous, flow),
            lambda: fusion(features, fusion.gather(features), previous, flow)["p2"],
        ),
        "panoptic map of 50 objects": (
            lambda: panoptic_logits(scores, 11, found).argmax(0),
            lambda: panoptic_argmax(scores, 11, found),
        ),
    }
    print(f"{f'maps of {rows}x{columns}, 256 channels':44s} usual ms   ours ms   ratio")
    for name, (usual, ours) in cases.items():
        before, after = compare(usual, ours, given.repeats)
        print(f"{name:44s} {before:8.1f} {after:9.1f} {before / after:7.1f}")


if __name__ == "__main__":
    main()
