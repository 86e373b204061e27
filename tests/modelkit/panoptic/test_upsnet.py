"""UPSNet: deformable head, the unknown channel, fusion and its loss, on hand cases and against the formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from modelkit import ConfigError, create_model
from modelkit.panoptic import (
    PanopticFusionHead,
    PanopticSegmentor,
    Regions,
    panoptic_argmax,
    panoptic_logits,
)
from modelkit.panoptic.upsnet import _roi_loss
from tests.modelkit.builders import as_tensor, picture, rectangles, small_panoptic
from tests.modelkit.panoptic.cases import one_hot_logits, plain, regions, sizes

GOLDEN_SCORES = torch.tensor([[2.0, 0, 0, 1], [0, 3, 1, 0], [0, 1, 4, 0]])[:, None]


def golden_regions(count: int) -> Regions:
    masks = torch.tensor([[[2.0, -1.0]], [[1.0, 1.0]]]).expand(2, 2, 2)
    boxes = [[1.0, 0, 2, 0], [2.0, 0, 3, 0]]
    return regions(boxes[:count], [0.9, 0.8][:count], [1, 2][:count], masks[:count])


def random_case(seed: int, n: int, num_stuff: int = 3) -> tuple[Tensor, Regions]:
    """Scores of 4 things on 24 x 32 and n boxes, all whole numbers so that ties are frequent."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-3, 4, (num_stuff + 4, 24, 32), generator=generator).float()
    corners = torch.rand(n, 2, generator=generator) * torch.tensor([28.0, 20.0])
    extent = torch.rand(n, 2, generator=generator) * torch.tensor([16.0, 12.0])
    boxes = torch.cat([corners, torch.minimum(corners + extent, torch.tensor([32.0, 24.0]))], dim=1)
    labels = torch.randint(1, 5, (n,), generator=generator)
    masks = torch.randint(-2, 3, (n, 2, 2), generator=generator).float()
    return scores, Regions(boxes, torch.linspace(1, 0.7, n), labels, masks)


def test_golden_logits_of_two_objects_and_of_one() -> None:
    both = panoptic_logits(GOLDEN_SCORES, 1, golden_regions(2))
    assert both[:, 0].tolist() == [[2, 0, 0, 1], [0, 5, 0, 0], [0, 0, 5, 1], [0, 0, 0, 0]]
    assert panoptic_argmax(GOLDEN_SCORES, 1, golden_regions(2))[0].tolist() == [0, 1, 2, 0]
    one = panoptic_logits(GOLDEN_SCORES, 1, golden_regions(1))
    assert one[1:, 0].tolist() == [[0, 5, 0, 0], [0, 0, 3, 0]]
    assert panoptic_argmax(GOLDEN_SCORES, 1, golden_regions(1))[0].tolist() == [0, 1, 2, 0]


def test_without_objects_there_is_no_object_channel_and_things_are_unknown() -> None:
    none = golden_regions(0)
    z = panoptic_logits(GOLDEN_SCORES, 1, none)
    assert z[:, 0].tolist() == [[2, 0, 0, 1], [0, 3, 4, 0]]
    assert panoptic_argmax(GOLDEN_SCORES, 1, none)[0].tolist() == [0, 1, 1, 0]
    found, things = PanopticFusionHead(2, 1, stuff_area=1).decode(GOLDEN_SCORES, none, plain(1, 4))
    assert len(things) == 0
    assert found.segment_map.tolist() == [[1, 0, 0, 1]]


@pytest.mark.parametrize("unknown", [True, False])
@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_the_argmax_by_windows_is_the_argmax_of_the_whole(n: int, unknown: bool) -> None:
    for seed in range(8):
        scores, found = random_case(seed, n)
        expected = panoptic_logits(scores, 3, found, unknown).argmax(0)
        assert torch.equal(panoptic_argmax(scores, 3, found, unknown), expected)


def test_without_stuff_the_unknown_takes_what_no_object_has() -> None:
    scores, found = random_case(0, 2, num_stuff=0)
    assert torch.equal(panoptic_argmax(scores, 0, found), panoptic_logits(scores, 0, found).argmax(0))
    with pytest.raises(ConfigError, match="neither"):
        PanopticFusionHead(2, 0, unknown=False)


def test_shuffled_objects_permute_their_channels_only() -> None:
    scores, found = random_case(3, 5)
    order = torch.tensor([3, 0, 4, 2, 1])
    straight, shuffled = panoptic_logits(scores, 3, found), panoptic_logits(scores, 3, found[order])
    assert torch.equal(shuffled[3:8], straight[3:8][order])
    assert torch.equal(shuffled[:3], straight[:3])
    assert torch.equal(shuffled[8], straight[8])


def test_where_an_object_carries_the_winning_thing_score_unknown_is_exactly_zero() -> None:
    scores, found = random_case(5, 4)
    unknown = panoptic_logits(scores, 3, found)[-1]
    best = scores[3:].amax(0)
    covered = torch.zeros_like(best, dtype=torch.bool)
    for box, label in zip(found.boxes.tolist(), found.labels.tolist(), strict=True):
        rows, columns = slice(int(box[1]), round(box[3]) + 1), slice(int(box[0]), round(box[2]) + 1)
        covered[rows, columns] |= scores[2 + label, rows, columns] == best[rows, columns]
    assert (covered & (best > 0)).any()
    assert (unknown[covered & (best > 0)] == 0).all()
    assert (unknown[~covered & (best > 0)] > 0).all()


def test_selection_is_confident_unlike_each_other_and_not_on_top_of_its_own_kind() -> None:
    head = PanopticFusionHead(2, 1)
    boxes = [[0.0, 0, 19, 19], [1, 0, 20, 19], [6, 0, 38, 9], [6, 0, 38, 9], [30, 30, 39, 39], [20, 20, 29, 29]]
    scores, labels = [0.95, 0.9, 0.8, 0.75, 0.6, 0.7], [1, 2, 1, 2, 1, 2]
    masks = torch.full((6, 28, 28), 5.0)
    masks[5] = -5  # empty
    chosen = head.select(regions(boxes, scores, labels, masks), (40, 40))
    assert chosen.scores.tolist() == pytest.approx(
        [0.95]
    )  # 1, 3: same place; 2: 43 % on its own kind; 4: not confident
    other = head.select(regions(boxes[:1] + boxes[3:4], [0.95, 0.75], [1, 2]), (40, 40))
    assert other.labels.tolist() == [1, 2]  # another kind may lie on top


def test_an_object_that_the_semantic_head_sees_as_stuff_becomes_that_stuff() -> None:
    channels = torch.zeros(40, 40, dtype=torch.int64)
    channels[:, 20:] = 1
    logits = one_hot_logits(channels, 4, 1.0)  # stuff 0 and 1, things 2 and 3
    inside = regions([[0.0, 0, 9, 9]], [0.9], [1])
    found, things = PanopticFusionHead(2, 2, stuff_area=1).decode(logits, inside, plain(40, 40))
    assert len(things) == 0
    assert sizes(found) == [(3, False, 800), (4, False, 800)]
    logits[2, :10, :10] = 2.0
    found, things = PanopticFusionHead(2, 2, stuff_area=1).decode(logits, inside, plain(40, 40))
    assert sizes(found) == [(1, True, 100), (3, False, 700), (4, False, 800)]


def test_small_stuff_is_dropped_and_the_unknown_is_nothing() -> None:
    channels = torch.zeros(40, 40, dtype=torch.int64)
    channels[:10, :10] = 1
    channels[30:, 30:] = 2  # a thing that nobody detected
    found, _ = PanopticFusionHead(1, 2, stuff_area=101).decode(
        one_hot_logits(channels, 3), regions([], [], []), plain(40, 40)
    )
    assert sizes(found) == [(2, False, 1400)]
    assert (found.segment_map[30:, 30:] == 0).all()


def test_pixels_of_a_dropped_object_are_to_be_unknown_and_stuff_keeps_its_class() -> None:
    head = PanopticFusionHead(2, 2)
    semantic = torch.full((8, 8), 3)
    masks = torch.zeros(3, 8, 8, dtype=torch.uint8)
    for k in range(3):
        masks[k, 2 * k : 2 * k + 2, :4] = 1
        semantic[2 * k : 2 * k + 2, :4] = 1 + k % 2
    semantic[7, 7], semantic[6, 0] = 255, 1  # unlabelled; a thing without an object
    wanted = head.semantic_target(semantic)
    target = head.panoptic_target(wanted, masks, torch.tensor([True, False, True]), (8, 8))
    assert target[::2, 0].tolist() == [2, 4, 3, -100]
    assert target[0, 5] == 0
    assert target[7, 7] == -100
    assert head.panoptic_target(wanted, masks, torch.ones(3, dtype=torch.bool), (4, 4))[:, 0].tolist() == [2, 3, 4, 0]


def test_most_true_objects_take_part_at_least_one_and_all_without_the_unknown() -> None:
    head = PanopticFusionHead(2, 2)
    assert [int(head._draw(n).sum()) for n in (0, 1, 2, 10)] == [0, 1, 1, 7]
    assert [int(PanopticFusionHead(2, 2, unknown=False)._draw(n).sum()) for n in (0, 3)] == [0, 3]


def test_the_loss_on_boxes_sees_every_box_at_one_size() -> None:
    wanted = torch.full((2, 32, 32), 255)
    wanted[0, 4:20, 4:20], wanted[1, 2:12, 2:12], wanted[1, 14:, 14:] = 2, 1, 0
    logits = 60 * torch.nn.functional.one_hot(torch.where(wanted == 255, 3, wanted), 4).permute(0, 3, 1, 2).float()
    boxes = [torch.tensor([[8.0, 8, 16, 16]]), torch.tensor([[4.0, 4, 8, 8], [16, 16, 30, 30]])]
    assert float(_roi_loss(torch.zeros_like(logits), wanted, boxes)) == pytest.approx(math.log(4), abs=1e-5)
    assert float(_roi_loss(logits, wanted, boxes)) < 1e-6
    logits[1, :, 2:12, 2:12] = 0  # the smallest of three boxes
    assert float(_roi_loss(logits, wanted, boxes)) == pytest.approx(math.log(4) / 3, abs=1e-4)
    assert float(_roi_loss(logits, wanted, [torch.zeros(0, 4)] * 2)) == 0


def test_the_panoptic_loss_alone_reaches_the_mask_head_and_the_semantic_head() -> None:
    torch.manual_seed(0)
    model = create_model("upsnet", **small_panoptic(semantic={"channels": [16, 16]}))
    assert isinstance(model, PanopticSegmentor)
    target = rectangles(64, 80, [[8, 8, 30, 40], [40, 20, 70, 60]], [1, 2])
    target["semantic"][target["semantic"] == 0] = 4
    model([as_tensor(picture(64, 80))], [target])["loss_panoptic"].backward()
    for part in (model.detector.roi_heads["mask"], model.semantic, model.detector.backbone):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    assert all(p.grad is None for p in model.detector.roi_heads["box"].parameters())
