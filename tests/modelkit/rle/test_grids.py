"""Masks on a grid over the image to run lengths: byte for byte what stretching and pycocotools give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from torch import Tensor
from torch.nn import functional as F

from modelkit import rle
from modelkit.rle import boxes as rle_boxes
from modelkit.rle import grids as rle_grids
from modelkit.rle.grids import encode_grid_masks


def by_stretching(masks: Tensor, size_hw: tuple[int, int], threshold: float = 0.5) -> list[bytes]:
    """The usual way, one mask after the other."""
    stretched = [F.interpolate(mask[None, None], size_hw, mode="bilinear", align_corners=False) for mask in masks]
    return [
        coco.encode(np.asfortranarray((each[0, 0] > threshold).numpy().astype(np.uint8)))["counts"]
        for each in stretched
    ]


def blobs(count: int, grid_hw: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Smooth masks with zeros outside of a box, as prototypes give them."""
    height, width = grid_hw
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    masks = np.zeros((count, height, width), np.float32)
    for mask in masks:
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        radius = rng.uniform(0.05, 0.6) * max(height, width)
        logits = (radius - np.hypot(rows - y, columns - x)) * rng.uniform(0.2, 3) + rng.normal(0, 0.4, mask.shape)
        window = (abs(rows - y) < radius * 0.9) & (abs(columns - x) < radius * 1.2)
        mask[:] = window / (1 + np.exp(-logits))
    return torch.from_numpy(masks)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    grid_hw=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    size_hw=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    kind=st.sampled_from(["blobs", "noise", "binary", "half"]),
    threshold=st.sampled_from([0.5, 0.0, 0.3]),
)
def test_the_bytes_are_those_of_stretching_and_pycocotools(
    seed: int, grid_hw: tuple[int, int], size_hw: tuple[int, int], kind: str, threshold: float
) -> None:
    rng = np.random.default_rng(seed)
    if kind == "blobs":
        masks = blobs(4, grid_hw, rng)
    else:
        masks = torch.from_numpy(rng.random((4, *grid_hw), np.float32))
        masks = {"noise": masks, "binary": (masks > 0.5).float(), "half": (masks * 4).round() / 4}[kind]
    assert encode_grid_masks(masks, size_hw, threshold) == by_stretching(masks, size_hw, threshold)


@pytest.mark.parametrize("size_hw", [(427, 640), (550, 550), (97, 131)])
def test_masks_of_yolacts_grid_give_the_stretched_bytes(size_hw: tuple[int, int]) -> None:
    masks = blobs(12, (138, 138), np.random.default_rng(3))
    assert encode_grid_masks(masks, size_hw) == by_stretching(masks, size_hw)


def test_full_and_empty_masks_are_one_run_or_none() -> None:
    masks = torch.stack([torch.ones(5, 7), torch.zeros(5, 7)])
    full, empty = encode_grid_masks(masks, (20, 30))
    assert (rle.counts_of(full).tolist(), rle.counts_of(empty).tolist()) == ([0, 600], [600])
    assert encode_grid_masks(torch.zeros(0, 5, 7), (20, 30)) == []


def test_rounding_decides_few_masks_so_few_are_stretched(monkeypatch: pytest.MonkeyPatch) -> None:
    stretched = []
    original = rle_grids.edges_by_stretching
    monkeypatch.setattr(rle_grids, "edges_by_stretching", lambda *a: stretched.append(a) or original(*a))
    encode_grid_masks(blobs(200, (138, 138), np.random.default_rng(5)), (427, 640))
    assert rle_boxes.fused_rounding(torch.device("cpu")) is not None
    assert len(stretched) < 20


def test_many_instances_are_worked_off_in_chunks_with_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = blobs(9, (40, 30), np.random.default_rng(6))
    whole = encode_grid_masks(masks, (200, 211))
    monkeypatch.setattr(rle_grids, "_CROSSINGS_AT_ONCE", 300)
    assert encode_grid_masks(masks, (200, 211)) == whole


@pytest.mark.parametrize(
    ("masks", "size_hw", "threshold", "message"),
    [
        (torch.zeros(4, 4), (8, 8), 0.5, "shape"),
        (torch.zeros(1, 0, 4), (8, 8), 0.5, "shape"),
        (torch.zeros(1, 4, 4), (0, 8), 0.5, "positive"),
        (torch.zeros(1, 4, 4), (8, 8), 1.0, "threshold"),
        (torch.full((1, 4, 4), torch.nan), (8, 8), 0.5, "finite"),
    ],
)
def test_nonsense_is_refused(masks: Tensor, size_hw: tuple[int, int], threshold: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_grid_masks(masks, size_hw, threshold)
