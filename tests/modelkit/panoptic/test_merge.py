"""Panoptic FPN: its semantic head, and its merge on hand cases (research golden values)."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from modelkit.layers import FPN, SlimResNetBackbone
from modelkit.metrics import PanopticQuality, panoptic_array
from modelkit.panoptic import PanopticMerge, SemanticFPNHead
from modelkit.panoptic.fusion import paste
from modelkit.semantic.losses import pixel_loss
from tests.modelkit.panoptic.cases import one_hot_logits, plain, regions, sizes


def test_the_semantic_head_answers_on_the_finest_grid_for_odd_sizes_too() -> None:
    backbone = SlimResNetBackbone(widths=[8, 8, 8, 8], norm="group")
    neck = FPN(backbone, channels=8)
    head = SemanticFPNHead(neck, 3, channels=8)
    features = neck(backbone(torch.zeros(2, 3, 37, 91)))
    assert head(features)["semantic_logits"].shape == (2, 3, *features["p2"].shape[-2:])


def test_loss_at_zero_logits_is_ln_c() -> None:
    wanted = torch.randint(0, 54, (1, 16, 16), generator=torch.Generator().manual_seed(0))
    assert float(pixel_loss(torch.zeros(1, 54, 4, 4), wanted)) == pytest.approx(math.log(54), abs=1e-5)


def test_class_ids_map_to_channels_things_share_the_first() -> None:
    ids = torch.tensor([0, 1, 2, 3, 4, 5, 255])
    assert PanopticMerge(3, 2).semantic_target(ids).tolist() == [255, 0, 0, 0, 1, 2, 255]


@pytest.mark.parametrize(
    "box", [[10, 10, 24, 24], [3.7, -2.2, 19.1, 30.9], [35, 36, 60, 50], [5, 5, 5.4, 5.2], [-9, -9, -3, -3]]
)
def test_pasting_into_a_window_equals_torchvisions_pasting_into_an_image(box: list[float]) -> None:
    mask = torch.rand(28, 28, generator=torch.Generator().manual_seed(1))
    window = paste(mask, torch.tensor(box), (40, 40))
    canvas = torch.zeros(40, 40)
    canvas[window.area] = window.values
    if box[2] > 0:  # torchvision fails on boxes outside of the image
        assert torch.equal(canvas, paste_masks_in_image(mask[None, None], torch.tensor([box]), (40, 40))[0, 0])
    else:
        assert window.values.numel() == 0


def test_a_full_mask_pastes_to_its_boxs_pixels() -> None:
    window = paste(torch.ones(28, 28), torch.tensor([10.0, 10, 24, 24]), (40, 40))
    rows, columns = torch.nonzero(window.values > 0.5, as_tuple=True)
    assert len(rows) == 196
    assert (int(rows.min()) + window.rows.start, int(rows.max()) + window.rows.start) == (10, 23)
    assert (int(columns.min()) + window.columns.start, int(columns.max()) + window.columns.start) == (10, 23)


def test_half_covered_objects_keep_their_free_half_more_are_dropped_and_so_are_weak_ones() -> None:
    merge = PanopticMerge(2, 1, stuff_area=1)
    logits = one_hot_logits(torch.zeros(60, 60, dtype=torch.int64), 2)
    boxes = [[10.0, 10, 24, 24], [17, 10, 31, 24], [11, 30, 25, 44], [16, 30, 30, 44], [40, 40, 54, 54]]
    found, things = merge.decode(logits, regions(boxes, [0.9, 0.8, 0.7, 0.6, 0.49], [1, 2, 1, 2, 1]), plain(60, 60))
    assert sizes(found) == [(1, True, 196), (2, True, 98), (1, True, 196)]
    assert things.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert (found.segment_map[40:, 40:] == 0).all()


@pytest.mark.parametrize(("pixels", "expected"), [(4095, []), (4096, [(3, False, 4096)])])
def test_stuff_needs_4096_pixels(pixels: int, expected: list[tuple[int, bool, int]]) -> None:
    channels = torch.zeros(64 * 80, dtype=torch.int64)
    channels[:pixels] = 1
    found, _ = PanopticMerge(2, 1).decode(one_hot_logits(channels.view(64, 80), 2), regions([], [], []), plain(64, 80))
    assert sizes(found) == expected


def test_objects_come_by_score_whatever_their_order() -> None:
    merge = PanopticMerge(2, 1, stuff_area=1)
    logits = one_hot_logits(torch.ones(40, 40, dtype=torch.int64), 2)
    boxes = [[10.0, 10, 24, 24], [17, 10, 31, 24]]
    first, _ = merge.decode(logits, regions(boxes, [0.9, 0.8], [1, 2]), plain(40, 40))
    second, _ = merge.decode(logits, regions(boxes[::-1], [0.8, 0.9], [2, 1]), plain(40, 40))
    assert sizes(first) == sizes(second) == [(1, True, 196), (2, True, 98), (3, False, 1600 - 294)]
    assert torch.equal(first.segment_map, second.segment_map)


def test_scores_of_stuff_are_mean_probabilities() -> None:
    logits = torch.zeros(3, 4, 4)
    logits[1, :, :2], logits[2, :, 2:] = 2.0, 3.0
    found, _ = PanopticMerge(1, 2, stuff_area=1).decode(logits, regions([], [], []), plain(4, 4))
    expected = [math.exp(2) / (math.exp(2) + 2), math.exp(3) / (math.exp(3) + 2)]
    assert found.scores.tolist() == pytest.approx(expected, abs=1e-6)


def test_padding_never_reaches_the_map() -> None:
    logits = one_hot_logits(torch.tensor([[1, 2], [2, 2]]), 3)  # the image lies in the first quarter of the canvas
    geometry = plain(16, 16)
    geometry = type(geometry)((32, 32), (8, 8), (16, 16))
    found, _ = PanopticMerge(1, 2, stuff_area=1).decode(logits, regions([], [], []), geometry)
    assert found.segment_map.shape == (8, 8)
    assert found.labels.tolist()[0] == 2
    assert found.finish().size_hw == (32, 32)


def test_what_was_merged_scores_perfectly_against_itself() -> None:
    merge = PanopticMerge(2, 1, stuff_area=1)
    logits = one_hot_logits(torch.ones(20, 40, dtype=torch.int64), 2)
    found, _ = merge.decode(logits, regions([[0.0, 0, 20, 20]], [0.9], [1]), plain(20, 40))
    array = panoptic_array(found.finish())
    quality = PanopticQuality({1, 2})
    quality.add(array, array)
    assert quality.scores().all.pq == 1
