"""VPSNet's parts: fusion of frames, flow, embeddings, and the assignment of identities on hand cases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.panoptic_fuse import correlate_by_shifting
from modelkit import ConfigError, TargetError, create_model
from modelkit.detection import Samples
from modelkit.layers import FPN, SlimResNetBackbone
from modelkit.panoptic import RaftFlow, TemporalFusion, TrackHead, ZeroFlow
from modelkit.panoptic.temporal import AttentionFusion, correlate
from modelkit.panoptic.tracking import Tracked, assign, canonical_order, match_logits, match_scores
from modelkit.transform import ImageTransform
from tests.modelkit.builders import as_tensor, picture, rectangles, small_vpsnet


@pytest.mark.parametrize("size", [(16, 24), (13, 9), (1, 1), (8, 31)])
@pytest.mark.parametrize("reach", [4, 1])
def test_the_correlation_by_tiles_is_the_plain_one_with_its_gradients(size: tuple[int, int], reach: int) -> None:
    generator = torch.Generator().manual_seed(1)
    pair = [torch.randn(2, 5, *size, generator=generator, requires_grad=True) for _ in range(2)]
    ours, plain = correlate(pair[0], pair[1], reach), correlate_by_shifting(pair[0], pair[1], reach)
    assert ours.shape == (2, (2 * reach + 1) ** 2, *size)
    assert (ours - plain).abs().max() < 1e-5
    weights = torch.randn(ours.shape, generator=generator)
    expected = torch.autograd.grad((plain * weights).sum(), pair)
    actual = torch.autograd.grad((ours * weights).sum(), pair)
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(actual, expected, strict=True))


def fusion_of_eight() -> tuple[TemporalFusion, dict[str, Tensor]]:
    torch.manual_seed(0)
    backbone = SlimResNetBackbone(widths=[8, 8, 8, 8], norm="group")
    neck = FPN(backbone, channels=8)
    return TemporalFusion(neck, refine_channels=(8,)), neck(backbone(torch.rand(1, 3, 64, 96)))


def test_gathering_is_the_mean_of_all_levels_at_the_finest_size() -> None:
    fusion, features = fusion_of_eight()
    stacked = torch.stack([F.interpolate(level, size=(16, 24)) for level in features.values()])
    assert (fusion.gather(features) - stacked.mean(0)).abs().max() < 1e-6


def test_alignment_follows_the_flow_then_its_rest() -> None:
    fusion, features = fusion_of_eight()
    gathered = fusion.gather(features)
    for layer in fusion.refine_flow:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    none = torch.zeros(1, 2, 16, 24)
    assert (fusion.align(gathered, gathered, none) - gathered).abs().max() < 1e-5
    fusion.refine_flow[-1].bias.data[:] = torch.tensor([2.0, 1.0])  # type: ignore[union-attr, operator]
    moved = fusion.align(gathered, gathered, none)
    assert (moved[..., :-1, :-2] - gathered[..., 1:, 2:]).abs().max() < 1e-4


def test_what_both_frames_agree_on_is_added_to_every_level() -> None:
    fusion, features = fusion_of_eight()
    torch.nn.init.zeros_(fusion.refine.weight)
    torch.nn.init.constant_(fusion.refine.bias, 0.5)  # type: ignore[arg-type]
    gathered = fusion.gather(features)
    fused = fusion(features, gathered, gathered, torch.zeros(1, 2, 16, 24))
    assert fused.keys() == features.keys()
    assert all((fused[level] - features[level] - 0.5).abs().max() < 1e-6 for level in features)


def test_attention_weighs_a_frame_by_how_much_it_resembles_the_current_one() -> None:
    torch.manual_seed(0)
    attention = AttentionFusion(4)
    for embed in (attention.embed, attention.embed_current):
        torch.nn.init.dirac_(embed.weight)
        torch.nn.init.zeros_(embed.bias)  # type: ignore[arg-type]
    current = torch.full((1, 4, 6, 6), 3.0)
    alike, unlike = attention(current, current), attention(current, -current)
    without = attention(current, torch.zeros_like(current))
    assert (unlike - without).abs().max() < 1e-3 < (alike - without).abs().max()


def test_flow_has_a_quarter_of_the_size_also_of_odd_and_of_small_frames() -> None:
    torch.manual_seed(0)
    frames = torch.rand(2, 1, 3, 37, 90)
    transform = ImageTransform()
    assert torch.equal(ZeroFlow(transform)(*frames), torch.zeros(1, 2, 10, 23))
    raft = RaftFlow(transform, iterations=1).train()
    assert not raft.network.training
    assert not any(parameter.requires_grad for parameter in raft.parameters())
    assert raft(*frames).shape == (1, 2, 10, 23)
    with pytest.raises(ConfigError, match="'medium'"):
        RaftFlow(transform, size="medium")


def test_raft_sees_frames_as_it_was_trained() -> None:
    transform = ImageTransform()
    frames = torch.rand(2, 3, 8, 8)
    assert (RaftFlow(transform)._scaled(transform.normalise(frames)) - (2 * frames - 1)).abs().max() < 1e-5


EMBEDDINGS = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
MEMORY = torch.tensor([[2.0, 0], [0, 2]])


def golden_scores() -> Tensor:
    """Classes 1, 2, 1 against 1, 2; the boxes lie apart, and the overlaps of the hand case are added by hand."""
    apart = torch.tensor([[0.0, 0, 1, 1]]) + 5 * torch.arange(5)[:, None]
    found = Tracked(EMBEDDINGS, apart[:3], torch.tensor([1, 2, 1]))
    memory = Tracked(MEMORY, apart[3:], torch.tensor([1, 2]))
    overlaps = torch.tensor([[0.8, 0], [0, 0.1], [0.3, 0.3]])
    scores = match_scores(found, torch.tensor([0.9, 0.8, 0.7]), memory)
    scores[:, 1:] += 2 * overlaps
    return scores


def test_golden_match_logits_and_composite_scores() -> None:
    logits = match_logits(EMBEDDINGS, MEMORY)
    assert logits.tolist() == [[0, 2, 0], [0, 0, 2], [0, 2, 2]]
    expected = [[-2.2395, -0.2395, -2.2395], [-2.2395, -2.2395, -0.2395], [-2.7586, -0.7586, -0.7586]]
    assert torch.allclose(logits.log_softmax(1), torch.tensor(expected), atol=1e-4)
    composite = [[7.6551, 11.2551, -2.3449], [7.5373, -2.4627, 9.7373], [6.8847, 9.4847, -0.5153]]
    assert torch.allclose(golden_scores(), torch.tensor(composite), atol=2e-4)


def test_of_two_that_want_one_entry_the_higher_score_keeps_it_and_the_other_is_new() -> None:
    assert assign(golden_scores()).tolist() == [0, 1, -1]
    assert assign(golden_scores()[[2, 1, 0]]).tolist() == [-1, 1, 0]
    assert assign(torch.tensor([[0.0, 1], [0, 1]])).tolist() == [0, -1]
    assert assign(torch.zeros(2, 1)).tolist() == [-1, -1]
    assert assign(torch.zeros(0, 3)).tolist() == []


def test_overlap_counts_twice_and_class_ten() -> None:
    found = Tracked(torch.zeros(1, 2), torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([1]))
    memory = Tracked(torch.zeros(2, 2), torch.tensor([[0.0, 0, 10, 5], [0, 0, 10, 10]]), torch.tensor([1, 2]))
    scores = match_scores(found, torch.ones(1), memory) + torch.tensor(3.0).log()
    assert scores[0].tolist() == pytest.approx([10, 11, 2], abs=1e-5)


def test_the_canonical_order_is_one_whatever_the_order() -> None:
    scores = torch.tensor([0.5, 0.9, 0.5])
    boxes = torch.tensor([[2.0, 0, 3, 1], [5, 5, 6, 6], [1, 0, 3, 1]])
    assert canonical_order(scores, boxes).tolist() == [1, 2, 0]


def track_loss(target_ids: list[int], reference_ids: list[int], reference: Tensor) -> float:
    head = TrackHead(FPN(SlimResNetBackbone(widths=[8, 8, 8, 8]), channels=8), 3, channels=2)
    n = len(target_ids)
    target = {
        "boxes": torch.zeros(n, 4),
        "track_ids": torch.tensor(target_ids, dtype=torch.int64),
        "reference_track_ids": torch.tensor(reference_ids, dtype=torch.int64),
        "reference_embeddings": reference,
    }
    samples = Samples([torch.zeros(n, 4)], [torch.ones(n, dtype=torch.int64)], [torch.arange(n)], [target])
    return float(head.loss({"embeddings": EMBEDDINGS[:n]}, samples)["loss_track"])


def test_the_track_loss_is_cross_entropy_over_new_and_the_reference() -> None:
    expected = -F.log_softmax(torch.tensor([[0.0, 2, 0], [0, 0, 2]]), 1)
    assert track_loss([7, 3], [7, 3], MEMORY) == pytest.approx(float(expected[0, 1] + expected[1, 2]) / 2)
    assert track_loss([7, 3], [3, 7], MEMORY) == pytest.approx(float(expected[0, 2] + expected[1, 1]) / 2)
    assert track_loss([7], [1, 2], MEMORY) == pytest.approx(float(expected[0, 0]))  # a new one
    assert track_loss([7], [], MEMORY[:0]) == 0  # nothing but "new" to choose
    assert track_loss([], [3, 7], MEMORY) == 0


def target_with_reference() -> dict[str, Tensor]:
    target = rectangles(64, 80, [[8, 8, 30, 40], [40, 20, 70, 60]], [1, 2])
    return {
        **target,
        "track_ids": torch.tensor([4, 9]),
        "reference_image": as_tensor(picture(64, 80, 3)),
        "reference_boxes": torch.tensor([[44.0, 20, 74, 60]]),
        "reference_track_ids": torch.tensor([9]),
    }


def test_frames_with_and_without_a_reference_train_together() -> None:
    torch.manual_seed(0)
    model = create_model("vpsnet", **small_vpsnet()).train()
    images = [as_tensor(picture(64, 80, seed)) for seed in (1, 2)]
    losses = model(images, [target_with_reference(), rectangles(64, 80, [[20, 10, 60, 50]], [3])])
    assert {"loss_track", "loss_panoptic", "loss_semantic"} <= set(losses)
    assert all(value.isfinite() for value in losses.values())
    assert (model.loss_weights["loss_track"], model.loss_weights["loss_panoptic"]) == (0.5, 0.5)


def test_a_reference_that_is_not_whole_is_refused() -> None:
    model = create_model("vpsnet", **small_vpsnet())
    image, target = as_tensor(picture(64, 80)), target_with_reference()
    with pytest.raises(TargetError, match=r"\['reference_boxes'\]"):
        model([image], [{name: value for name, value in target.items() if name != "reference_boxes"}])
    with pytest.raises(TargetError, match=r"\(3, 64, 80\)"):
        model([image], [{**target, "reference_image": as_tensor(picture(60, 80))}])


def test_a_vpsnet_without_a_track_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="'track'"):
        create_model("vpsnet", **small_vpsnet(heads={"track": None}))
