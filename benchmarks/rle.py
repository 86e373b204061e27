"""Masks to COCO run lengths: ours against torchvision's paste and pycocotools, masks of prototypes against stretching
them to the image, and label maps against one call a class.

    python -m benchmarks.rle [--repeats 7] [--device cpu]

100 detections on 1333x800, boxes of 2 % up to a given share of the sides; repeats interleaved, medians. The bytes are
compared as well: a difference ends the benchmark.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import paste_masks_in_image

from modelkit import rle
from modelkit.rle.boxes import encode_box_masks
from modelkit.rle.grids import encode_grid_masks

SIZE_HW = (800, 1333)
DETECTIONS = 100


def detections(largest: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Round-ish objects: (n, 28, 28) probabilities and (n, 4) boxes inside the image."""
    rng = np.random.default_rng(seed)
    height, width = SIZE_HW
    sides = rng.uniform(0.02, largest, (DETECTIONS, 2)) * [width, height]
    first = rng.uniform(0, 1, (DETECTIONS, 2)) * ([width, height] - sides)
    axis = np.linspace(-1, 1, 28)
    bumps = 0.1 * np.cos(3 * np.arctan2(axis[:, None], axis) + rng.uniform(0, 6, (DETECTIONS, 1, 1)))
    logits = 12 * (0.85 + bumps - np.hypot(axis[:, None], axis)) + rng.normal(0, 0.3, (DETECTIONS, 28, 28))
    boxes = np.concatenate([first, first + sides], axis=1)
    return torch.from_numpy((1 / (1 + np.exp(-logits))).astype(np.float32)), torch.from_numpy(boxes.astype(np.float32))


def by_pasting(masks: Tensor, boxes: Tensor) -> list[bytes]:
    """The usual way."""
    pasted = (paste_masks_in_image(masks[:, None], boxes, SIZE_HW)[:, 0] > 0.5).cpu().numpy()
    return [coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"] for mask in pasted]


def prototype_masks(largest: float, seed: int = 0) -> Tensor:
    """(n, 138, 138) probabilities over the whole image, zero outside of the boxes of ``detections``."""
    masks, boxes = detections(largest, seed)
    grid = paste_masks_in_image(
        masks[:, None], boxes * boxes.new_tensor([138 / SIZE_HW[1], 138 / SIZE_HW[0]] * 2), (138, 138)
    )
    return grid[:, 0]


def by_stretching(masks: Tensor) -> list[bytes]:
    """The usual way for masks that cover the image."""
    stretched = F.interpolate(masks[None], SIZE_HW, mode="bilinear", align_corners=False)[0] > 0.5
    return [coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"] for mask in stretched.cpu().numpy()]


def by_class(label_map: np.ndarray) -> dict[int, bytes]:
    """The usual way for a label map."""
    return {
        int(label): coco.encode(np.asfortranarray((label_map == label).astype(np.uint8)))["counts"]
        for label in np.unique(label_map)
    }


def compare(ways: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median milliseconds of each way, interleaved; all must give the same."""
    times: list[list[float]] = [[] for _ in ways]
    results = [way() for way in ways]
    if any(result != results[0] for result in results):
        raise SystemExit("the ways give different bytes")
    for _ in range(repeats):
        for way, own in zip(ways, times, strict=True):
            begin = time.perf_counter()
            way()
            own.append(time.perf_counter() - begin)
    return [1e3 * median(own) for own in times]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':44s} usual ms   ours ms   ratio")
    for largest in (0.2, 0.4, 0.8):
        masks, boxes = (each.to(given.device) for each in detections(largest))
        usual, ours = compare(
            [partial(by_pasting, masks, boxes), partial(encode_box_masks, masks, boxes, SIZE_HW)],
            given.repeats,
        )
        name = f"{DETECTIONS} masks on 1333x800, boxes up to {largest:.0%}"
        print(f"{name:44s} {usual:8.1f} {ours:9.2f} {usual / ours:7.1f}")
    for largest in (0.2, 0.4, 0.8):
        masks = prototype_masks(largest).to(given.device)
        usual, ours = compare(
            [partial(by_stretching, masks), partial(encode_grid_masks, masks, SIZE_HW)], given.repeats
        )
        name = f"{DETECTIONS} of 138x138 on 1333x800, up to {largest:.0%}"
        print(f"{name:44s} {usual:8.1f} {ours:9.2f} {usual / ours:7.1f}")
    rng = np.random.default_rng(1)
    label_map = np.kron(rng.integers(0, 21, (15, 20)), np.ones((32, 32), np.uint8)).astype(np.uint8)
    usual, ours = compare([lambda: by_class(label_map), lambda: rle.encode_label_map(label_map)], given.repeats)
    print(f"{'label map 640x480, 21 classes':44s} {usual:8.1f} {ours:9.2f} {usual / ours:7.1f}")


if __name__ == "__main__":
    main()
