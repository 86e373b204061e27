"""encode_box_masks against torchvision's paste and pycocotools' encode, byte for byte."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from modelkit import rle
from modelkit.rle import boxes as rle_boxes
from modelkit.rle.boxes import encode_box_masks


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def by_pasting(masks: Tensor, boxes: Tensor, size_hw: tuple[int, int], threshold: float = 0.5) -> list[bytes]:
    """The usual way, one mask at a time; torchvision fails for boxes wholly outside the image: an empty mask."""
    rles = []
    for mask, box in zip(masks, boxes, strict=True):
        try:
            pasted = paste_masks_in_image(mask[None, None], box[None], size_hw)[0, 0]
        except RuntimeError:
            pasted = torch.zeros(size_hw)
        rles.append(coco.encode(np.asfortranarray((pasted > threshold).numpy().astype(np.uint8)))["counts"])
    return rles


def smooth_masks(n: int, size: int, rng: np.random.Generator) -> Tensor:
    coarse = torch.from_numpy(rng.normal(0, 3, (n, 1, 5, 5)).astype(np.float32))
    return torch.sigmoid(torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic"))[:, 0]


def hard_masks(n: int, size: int, rng: np.random.Generator) -> Tensor:
    """Values that land on the threshold again and again."""
    return torch.from_numpy(rng.choice(np.array([0, 0.25, 0.5, 0.75, 1], np.float32), (n, size, size)))


MASKS = {
    "smooth": smooth_masks,
    "hard": hard_masks,
    "noise": lambda n, size, rng: torch.from_numpy(rng.random((n, size, size), np.float32)),
    "binary": lambda n, size, rng: torch.from_numpy((rng.random((n, size, size)) > 0.5).astype(np.float32)),
    "full": lambda n, size, rng: torch.ones(n, size, size),
    "empty": lambda n, size, rng: torch.zeros(n, size, size),
}
EDGES = st.one_of(
    st.floats(-60, 160, width=32),
    st.integers(-60, 160).map(float),
    st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0, 99.0, 99.5, 100.0, 100.5, 101.0, 2000.0, -2000.0]),
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(MASKS)),
    st.sampled_from([1, 2, 7, 14, 28, 28, 28, 56]),
    st.lists(st.tuples(EDGES, EDGES, EDGES, EDGES), min_size=1, max_size=4),
    st.tuples(st.integers(1, 130), st.integers(1, 130)),
    st.sampled_from([0.5, 0.5, 0.5, 0.0, 0.3, 0.95]),
    st.integers(0, 2**31),
)
def test_any_box_at_any_place_gives_the_pasted_bytes(
    kind: str, size: int, corners: list[tuple[float, ...]], size_hw: tuple[int, int], threshold: float, seed: int
) -> None:
    masks = MASKS[kind](len(corners), size, np.random.default_rng(seed))
    boxes = torch.tensor(corners, dtype=torch.float32)
    expected = by_pasting(masks, boxes, size_hw, threshold)
    assert encode_box_masks(masks, boxes, size_hw, threshold) == expected
    assert encode_box_masks(masks.numpy(), boxes.numpy(), size_hw, threshold) == expected


def detections(n: int, size_hw: tuple[int, int], rng: np.random.Generator, largest: float) -> tuple[Tensor, Tensor]:
    """Round-ish objects in boxes of 2 % to ``largest`` of the image's sides."""
    height, width = size_hw
    sides = rng.uniform(0.02, largest, (n, 2)) * [width, height]
    first = rng.uniform(0, 1, (n, 2)) * ([width, height] - sides)
    axis = np.linspace(-1, 1, 28)
    bumps = 0.1 * np.cos(3 * np.arctan2(axis[:, None], axis) + rng.uniform(0, 6, (n, 1, 1)))
    logits = 12 * (0.85 + bumps - np.hypot(axis[:, None], axis)) + rng.normal(0, 0.3, (n, 28, 28))
    probabilities = 1 / (1 + np.exp(-logits))
    boxes = np.concatenate([first, first + sides], axis=1)
    return torch.from_numpy(probabilities.astype(np.float32)), torch.from_numpy(boxes.astype(np.float32))


@pytest.mark.parametrize("largest", [0.1, 0.5, 1.0])
def test_a_hundred_detections_on_a_large_image_give_the_pasted_bytes(largest: float) -> None:
    masks, boxes = detections(100, (800, 1333), np.random.default_rng(7), largest)
    assert encode_box_masks(masks, boxes, (800, 1333)) == by_pasting(masks, boxes, (800, 1333))


def test_rounding_decides_few_masks_so_few_are_stretched(monkeypatch: pytest.MonkeyPatch) -> None:
    stretched = []
    original = rle_boxes.edges_by_stretching
    monkeypatch.setattr(rle_boxes, "edges_by_stretching", lambda *a: stretched.append(a) or original(*a))
    encode_box_masks(*detections(1000, (800, 1333), np.random.default_rng(8), 0.4), (800, 1333))
    assert rle_boxes.fused_rounding(torch.device("cpu")) is not None  # the kernel's arithmetic is known on this machine
    assert len(stretched) < 50


def test_the_bytes_hold_when_the_kernel_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rle_boxes, "fused_rounding", lambda device: None)
    masks, boxes = detections(50, (400, 600), np.random.default_rng(9), 0.7)
    assert encode_box_masks(masks, boxes, (400, 600)) == by_pasting(masks, boxes, (400, 600))


def test_boxes_too_large_for_torch_to_stretch_are_still_encoded() -> None:
    ones = torch.full((1, 28, 28), 0.5)  # on the threshold everywhere: doubtful, and far too large to draw
    boxes = torch.tensor([[-1e6, -1e6, 1e6, 1e6]])
    assert rle.area(encode_box_masks(ones, boxes, (60, 80))[0]) == 0
    assert rle.area(encode_box_masks(2 * ones, boxes, (60, 80))[0]) == 60 * 80


def test_no_detections_are_no_masks() -> None:
    assert encode_box_masks(np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32), (10, 10)) == []


@pytest.mark.parametrize(
    ("masks", "boxes", "threshold", "message"),
    [
        (torch.ones(2, 28, 27), torch.ones(2, 4), 0.5, r"masks must have shape \(n, M, M\)"),
        (torch.ones(2, 28, 28), torch.ones(3, 4), 0.5, "boxes_xyxy must have shape"),
        (torch.ones(1, 28, 28), torch.full((1, 4), float("nan")), 0.5, "finite"),
        (torch.full((1, 28, 28), float("inf")), torch.ones(1, 4), 0.5, "finite"),
        (torch.ones(1, 28, 28), torch.full((1, 4), 1e10), 0.5, "finite"),
        (torch.ones(1, 28, 28), torch.ones(1, 4), 1.0, "threshold"),
        (torch.ones(1, 28, 28), torch.ones(1, 4), -0.1, "threshold"),
    ],
)
def test_nonsense_is_refused(masks: Tensor, boxes: Tensor, threshold: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_box_masks(masks, boxes, (10, 10), threshold)


def test_costs_at_most_a_twentieth_of_pasting_and_encoding() -> None:
    size_hw = (800, 1333)
    masks, boxes = detections(100, size_hw, np.random.default_rng(10), 0.4)
    encode_box_masks(masks, boxes, size_hw)
    usual_s, ours_s = [], []
    for _ in range(3):  # interleaved, because the machine is shared
        begin = time.perf_counter()
        pasted = paste_masks_in_image(masks[:, None], boxes, size_hw)[:, 0] > 0.5
        for mask in pasted.numpy():
            coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        usual_s.append(time.perf_counter() - begin)
        for _ in range(3):
            begin = time.perf_counter()
            encode_box_masks(masks, boxes, size_hw)
            ours_s.append(time.perf_counter() - begin)
    assert min(ours_s) <= min(usual_s) / 20
