"""Decoding of heatmaps against the usual loop over maps, and top-down batches against one object after the other.

    python -m benchmarks.landmarks [--repeats 7] [--objects 32]

Heatmaps: 64 objects of 17 maps, 64x48, with noise; DARK with a blur of 11 cells. The loop is written after the
procedure of Zhang et al. 2020 in numpy and scipy, map by map; points that differ end the benchmark. Top-down: so many
objects of a picture of 640x480 through a heatmap landmarker, from the picture to points, in one call and in a call
each. Repeats are interleaved, medians reported; a job is measured by ``python -m benchmarks.throughput --models
points``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from statistics import median

import numpy as np
import torch
from scipy.ndimage import convolve1d
from torch import Tensor

import modelkit
from modelkit.landmarks import FoundBoxes, TopDownPredictor
from modelkit.landmarks.heatmaps import HeatmapCodec

OBJECTS, POINTS, MAP_HW, BLUR = 64, 17, (64, 48), 11
IMAGE_HW = (480, 640)
_SMALLEST = 1e-10


def heatmaps(seed: int = 0) -> Tensor:
    """(64, 17, 64, 48) float32: a Gaussian each, off the cells' centres, and a little noise."""
    rng = np.random.default_rng(seed)
    places = torch.from_numpy(rng.uniform(8, 40, (OBJECTS, POINTS, 2)).astype(np.float32))
    noise = torch.from_numpy(rng.normal(0, 0.003, (OBJECTS, POINTS, *MAP_HW)).astype(np.float32))
    return HeatmapCodec().encode(places, MAP_HW) + noise


def by_loop(maps: np.ndarray) -> np.ndarray:
    """(N, K, 2) places, in map pixels counted from corners: each map is smoothed, then its peak refined."""
    found = np.zeros((*maps.shape[:2], 2))
    half = (BLUR - 1) / 2
    sigma = 0.3 * (half - 1) + 0.8
    kernel = np.exp(-((np.arange(BLUR) - half) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    for index in np.ndindex(maps.shape[:2]):
        one = maps[index]
        row, column = np.unravel_index(one.argmax(), one.shape)
        smooth = convolve1d(convolve1d(one, kernel, axis=1, mode="constant"), kernel, axis=0, mode="constant")
        log = np.log(np.maximum(smooth * one.max() / smooth.max(), _SMALLEST))
        found[index] = np.array([column, row]) + 0.5 + _step(log, int(row), int(column))
    return found


def _step(log: np.ndarray, y: int, x: int) -> np.ndarray:
    """From the peak to the maximum of the parabola through its neighbours; zero near the border."""
    if not (1 < x < log.shape[1] - 2 and 1 < y < log.shape[0] - 2):
        return np.zeros(2)
    slope = 0.5 * np.array([log[y, x + 1] - log[y, x - 1], log[y + 1, x] - log[y - 1, x]])
    across = 0.25 * (log[y, x + 2] - 2 * log[y, x] + log[y, x - 2])
    down = 0.25 * (log[y + 2, x] - 2 * log[y, x] + log[y - 2, x])
    both = 0.25 * (log[y + 1, x + 1] - log[y - 1, x + 1] - log[y + 1, x - 1] + log[y - 1, x - 1])
    return -np.linalg.solve(np.array([[across, both], [both, down]]), slope)


def top_down(objects: int, seed: int = 0) -> Mapping[str, Callable[[], object]]:
    """All objects of a picture in one call, and in a call each."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*IMAGE_HW, 3), dtype=np.uint8)
    first = rng.uniform(0, 1, (objects, 2)) * [IMAGE_HW[1] - 120, IMAGE_HW[0] - 160]
    boxes = np.concatenate([first, first + np.array([120, 160])], 1).astype(np.float32)
    landmarker = modelkit.load("heatmap_landmarker", weights="random:0", config={"backbone": {"depth": 18}})
    predictor = TopDownPredictor(landmarker, landmarker.weights.classes, objects_per_batch=objects)

    def points_of(some: np.ndarray) -> object:
        ones = np.ones(len(some), np.float32)
        seen = predictor.prepare_boxes(image, FoundBoxes(some, ones, ones.astype(np.int64)))
        return predictor.finish(predictor.infer([seen])[0])

    return {
        "one call": lambda: points_of(boxes),
        "a call each": lambda: [points_of(boxes[k : k + 1]) for k in range(objects)],
    }


def medians(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Milliseconds by name, interleaved; each goes once before it counts."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if number:
                spent[name].append(1000 * (time.perf_counter() - began))
    return {name: median(values) for name, values in spent.items()}


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--objects", type=int, default=32)
    given = parser.parse_args()
    torch.set_num_threads(1)
    maps, codec = heatmaps(), HeatmapCodec(blur=BLUR)
    plain = maps.numpy()
    apart = np.abs(codec.decode(maps)[0].numpy() - by_loop(plain)).max()
    if apart > 1e-2:
        raise SystemExit(f"the two decodings differ by {apart:.4f} cells")
    spent = medians({"ours": lambda: codec.decode(maps), "loop over maps": lambda: by_loop(plain)}, given.repeats)
    print(f"{OBJECTS} x {POINTS} heatmaps of {MAP_HW[0]}x{MAP_HW[1]}, at most {apart:.1e} cells apart")
    print("".join(f"  {name:15} {value:8.1f} ms\n" for name, value in spent.items()), end="")
    spent = medians(top_down(given.objects), given.repeats)
    print(f"{given.objects} objects of a picture, ResNet-18 at 256x192, one thread")
    print("".join(f"  {name:15} {value:8.1f} ms\n" for name, value in spent.items()), end="")


if __name__ == "__main__":
    main()
