"""True masks on the grids of boxes, and back into the image: nothing may move on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modelkit import rle
from modelkit.detection.roi_heads import cropped_masks
from modelkit.digitscape import Digitscape, SceneStyle
from modelkit.rle.boxes import encode_box_masks

SIZE_HW = (96, 96)
STYLE = SceneStyle(digits=(2, 4), size_px=(28.0, 60.0), empty_share=0.0, overlap=0.1)


def ious_after_the_way_back(aligned: bool, shifts: list[tuple[int, int]]) -> list[float]:
    """Mean IoU of digits with what comes back of them, moved by (rows, columns); boxes are a little off, as found."""
    source, chance = Digitscape("train", SIZE_HW, seed=1, style=STYLE, dense=False), np.random.default_rng(0)
    found: list[list[float]] = [[] for _ in shifts]
    for index in range(20):
        scene = source.scene(index)
        masks = torch.from_numpy(np.asarray(scene.masks, np.uint8))
        boxes = torch.from_numpy((np.asarray(scene.boxes_xyxy) + chance.uniform(-1, 1, (len(masks), 4))).astype("f4"))
        grids = cropped_masks(masks, boxes, torch.arange(len(masks)), 28, aligned)
        for true, code in zip(masks.numpy().astype(bool), encode_box_masks(grids, boxes, SIZE_HW, 0.5), strict=True):
            back = rle.decode(code, SIZE_HW).astype(bool)
            for ious, shift in zip(found, shifts, strict=True):
                moved = np.roll(back, shift, (0, 1))
                ious.append(float((moved & true).sum() / (moved | true).sum()))
    return [float(np.mean(ious)) for ious in found]


def test_a_perfect_mask_comes_back_where_it_was() -> None:
    here, *moved = ious_after_the_way_back(True, [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)])
    assert here > 0.9
    assert max(moved) < here - 0.1
    assert max(moved) - min(moved) < 0.05, "it would rather move one way than the other"


def test_torchvisions_crops_lie_up_and_to_the_left() -> None:
    here, right, down, left, up = ious_after_the_way_back(False, [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)])
    assert min(right, down) > here > max(left, up)


def test_without_alignment_crops_are_torchvisions() -> None:
    from torchvision.models.detection.roi_heads import project_masks_on_boxes

    masks = (torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0)) > 0.5).to(torch.uint8)
    boxes, matched = torch.tensor([[3.0, 4.5, 30.2, 33.0], [0.0, 0.0, 50.0, 40.0]]), torch.tensor([2, 0])
    expected = project_masks_on_boxes(masks, boxes, matched, 14)
    assert torch.equal(cropped_masks(masks, boxes, matched, 14, False), expected)


@pytest.mark.parametrize("cells", [4, 8])
def test_a_box_of_whole_pixels_gives_their_means(cells: int) -> None:
    masks = (torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(1)) > 0.5).to(torch.uint8)
    found = cropped_masks(masks, torch.tensor([[0.0, 0.0, 16.0, 16.0]]), torch.tensor([0]), cells, True)[0]
    side = 16 // cells
    assert torch.allclose(found, masks[0].float().view(cells, side, cells, side).mean((1, 3)), atol=1e-6)
