"""YolactEdge: what a key frame leaves behind is enough for the frames after it (models.md 3.3, checks a to e)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from modelkit import ConfigError, TargetError, create_model, rle
from modelkit.digitscape import Digitscape, SceneStyle
from modelkit.layers import SlimResNetBackbone
from modelkit.layers.warping import warp
from modelkit.onestage.edge import VideoAnchorDetector, flow_loss
from modelkit.onestage.flow import FLOW_UNIT, FlowNetMini, flow_from_pixels, flow_in_cells
from modelkit.registry import build
from modelkit.video import VideoState
from modelkit.weights import random_weights
from tests.modelkit.builders import as_tensor, picture, rectangles, small_yolact
from tests.modelkit.scenes import image_of, objects_of


@pytest.fixture(scope="module")
def model() -> VideoAnchorDetector:
    found = random_weights("yolact_edge", 0, small_yolact(feature_transform={"width": 8}))[0]
    assert isinstance(found, VideoAnchorDetector)
    return found


@pytest.fixture
def at_rest(model: VideoAnchorDetector) -> VideoAnchorDetector:
    """Nothing moves: flow 0, scale 1, bias 0, refinement 0."""
    still = create_model(**model.config)
    still.load_state_dict(model.state_dict())
    assert isinstance(still, VideoAnchorDetector)
    transform = still.feature_transform
    with torch.no_grad():
        for motion in (transform.flow_net.motion2, transform.flow_net.motion3):
            for parameter in (motion.flow.weight, motion.scale.weight, motion.bias.weight, motion.bias.bias):
                parameter.zero_()
            motion.scale.bias.fill_(1)
        for parameter in transform.refine.parameters():
            parameter.zero_()
    return still.eval()


def frames(count: int, shift: int = 3) -> list[Tensor]:
    """A wide picture seen through a window that moves to the right."""
    wide = as_tensor(picture(64, 64 + shift * count, 4))
    return [wide[:, :, k * shift : k * shift + 64] for k in range(count)]


def test_without_motion_a_frame_computes_what_its_key_frame_computed(at_rest: VideoAnchorDetector) -> None:
    batch, _ = at_rest.transform.batch(frames(1))
    with torch.inference_mode():
        sums, lateral = at_rest.neck.merge(at_rest.backbone(batch))
        reduced = at_rest.feature_transform.reduce(lateral)
        warped, _ = at_rest.feature_transform(at_rest.partial_lateral(batch), sums, reduced)
        key, other = (at_rest.head(at_rest.neck.finish(each)) for each in (sums, warped))
    for name in key:
        assert torch.allclose(key[name], other[name], atol=1e-6, rtol=1e-5), name


@pytest.mark.parametrize("cells", [1, 3])
def test_a_constant_flow_moves_the_map_by_whole_cells(cells: int) -> None:
    stored = torch.randn(1, 4, 9, 13)
    flow = torch.zeros(1, 2, 9, 13)
    flow[:, 0] = FLOW_UNIT * 2 * cells / (13 - 1)
    moved = warp(stored, flow_in_cells(flow))
    assert torch.allclose(moved[..., : 13 - cells], stored[..., cells:], atol=1e-5)
    assert moved[..., 13 - cells :].abs().max() < 1e-4  # zeros come in from outside
    flow[:, 0], flow[:, 1] = 0, -FLOW_UNIT * 2 * cells / (9 - 1)
    assert torch.allclose(warp(stored, flow_in_cells(flow))[:, :, cells:], stored[:, :, : 9 - cells], atol=1e-5)


def test_only_every_fifth_frame_runs_the_whole_backbone(model: VideoAnchorDetector) -> None:
    calls = {"c3": 0, "c5": 0}

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    handles = [model.backbone.stages[name].register_forward_hook(count(name)) for name in calls]
    state, keys, runs = model.start(), [], []
    for image in frames(12):
        _, state = model.predict_video([image], state)
        keys.append(state.counters["key_index"])
        runs.append(tuple(calls.values()))
    for handle in handles:
        handle.remove()
    assert runs == [(k + 1, k // 5 + 1) for k in range(12)]
    assert keys == [0] * 5 + [5] * 5 + [10] * 2
    assert state.frame == 12


def test_a_static_clip_has_the_same_masks_on_all_frames_between_two_key_frames(model: VideoAnchorDetector) -> None:
    found, _ = model.predict_video(frames(1) * 5)
    masks = [each.finish().rles for each in found]
    assert all(len(each) > 0 and each == masks[1] for each in masks[2:])
    ious = rle.ious(masks[1], masks[4])
    assert (ious[rle.areas(masks[1]) > 0] == 1).all()


def test_a_clip_in_pieces_equals_the_clip_in_one_piece_also_when_the_state_is_saved_between_them(
    model: VideoAnchorDetector,
) -> None:
    clip = frames(7)
    whole, last = model.predict_video(clip)
    first, state = model.predict_video(clip[:3])
    kept = state.to_bytes()
    second, end = model.predict_video(clip[3:], VideoState.from_bytes(kept))
    for a, b in zip(whole, [*first, *second], strict=True):
        assert torch.equal(a.boxes_xyxy, b.boxes_xyxy)
        assert torch.equal(a.masks, b.masks)
    assert (last.frame, last.counters) == (end.frame, end.counters)
    # the state that was handed out is not written to later
    again, _ = model.predict_video(clip[3:], state)
    assert torch.equal(again[0].scores, second[0].scores)
    assert state.to_bytes() == kept


def test_the_state_holds_the_two_coarser_sums_and_a_reduced_lateral(model: VideoAnchorDetector) -> None:
    _, state = model.predict_video(frames(1))
    shapes = {name: tuple(value.shape) for name, value in state.tensors.items()}
    assert shapes == {"p4": (1, 16, 4, 4), "p5": (1, 16, 2, 2), "context": (1, 8, 8, 8)}
    assert state.nbytes == 4 * (16 * 16 + 16 * 4 + 8 * 64)
    assert isinstance(model.start(), VideoState)


def test_an_image_alone_is_a_key_frame(model: VideoAnchorDetector) -> None:
    image = frames(1)[0]
    alone, (first, *_) = model.predict([image])[0], model.predict_video([image])[0]
    assert torch.equal(alone.boxes_xyxy, first.boxes_xyxy)
    assert torch.equal(alone.scores, first.scores)


def pair_target() -> dict[str, Tensor]:
    return rectangles(64, 64, [[8, 8, 40, 44]], [1])


def test_training_takes_a_frame_with_its_key_frame(model: VideoAnchorDetector) -> None:
    key, frame = frames(2)
    torch.manual_seed(0)
    alone = model([frame], [pair_target()])
    paired = model([frame], [{**pair_target(), "reference_image": key}])
    assert set(alone) == set(model.loss_weights)
    for name in ("loss_classifier", "loss_box_reg", "loss_mask", "loss_semantic"):
        assert torch.equal(alone[name], paired[name])  # those of the frame itself
        assert not torch.equal(alone[f"warped_{name}"], paired[f"warped_{name}"])
    assert paired["loss_feature_matching"].item() > 0
    with pytest.raises(TargetError, match="reference_image"):
        model([frame], [{**pair_target(), "reference_image": key[:, :30]}])


def test_feature_matching_is_zero_for_equal_features_and_two_for_opposite_ones(model: VideoAnchorDetector) -> None:
    true = {level: torch.randn(1, 16, 4, 4) for level in ("p4", "p5")}
    assert float(model.feature_matching(true, true)) == pytest.approx(0, abs=1e-6)
    opposite = {level: -value for level, value in true.items()}
    before = [(1 - torch.cosine_similarity(opposite[level], true[level])).mean() for level in true]
    assert float(torch.stack(before).mean()) == pytest.approx(2)
    assert float(model.feature_matching(opposite, true)) > 0.5


def test_feature_matching_trains_the_transform_but_neither_true_features_nor_the_output_convolution(
    model: VideoAnchorDetector,
) -> None:
    learner = create_model(**model.config)
    assert isinstance(learner, VideoAnchorDetector)
    key, frame = (learner.transform.batch([image])[0] for image in frames(2))
    true, _ = learner.neck.merge(learner.backbone(frame))
    with torch.no_grad():
        sums, lateral = learner.neck.merge(learner.backbone(key))
        own = learner.partial_lateral(frame)
    reduced = learner.feature_transform.reduce(lateral)
    warped, _ = learner.feature_transform(own, sums, reduced)
    learner.feature_matching(warped, true).backward()
    assert learner.feature_transform.refine["p5"][0].weight.grad.abs().sum() > 0
    assert learner.feature_transform.flow_net.motion2.flow.weight.grad.abs().sum() > 0
    assert learner.neck.outputs["p4"].weight.grad is None
    assert learner.backbone.stages["c5"][0].conv1.weight.grad is None


def test_a_frozen_backbone_gets_no_gradient_and_keeps_its_statistics() -> None:
    options = small_yolact(freeze_backbone=True)
    options["backbone"] = {**options["backbone"], "norm": "batch"}
    model = create_model("yolact_edge", **options).train()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    key, frame = frames(2)
    losses = model([frame], [{**pair_target(), "reference_image": key}])
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is None for p in [*model.backbone.parameters(), *model.neck.laterals.parameters()])
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())


def test_the_flow_loss_is_zero_at_the_true_flow_and_ignores_what_is_unknown() -> None:
    network = FlowNetMini(4, 8)
    with torch.no_grad():
        motions = network(torch.randn(1, 4, 16, 16), torch.randn(1, 4, 16, 16), finest=True)
    truth = torch.full((2, 64, 64), 3.0)
    exact = []
    for motion in motions:
        cells = motion.flow.shape[-1]
        in_units = flow_from_pixels(truth[None], (cells, cells))[:, :, :1, :1].expand_as(motion.flow)
        assert flow_in_cells(in_units).unique().tolist() == pytest.approx([3 * cells / 64]), "warping moves by 3 pixels"
        exact.append(motion._replace(flow=in_units))
    assert float(flow_loss(exact, [truth])) == pytest.approx(0, abs=1e-6)
    off = [m._replace(flow=m.flow * 0) for m in motions]
    expected = sum(3 * 16 / (w - 1) * w / 64 * np.sqrt(2) for w in (16, 8, 4))
    assert float(flow_loss(off, [truth])) == pytest.approx(expected, rel=1e-5)
    half_known = truth.clone()
    half_known[:, :, 32:] = torch.nan
    assert float(flow_loss(off, [half_known])) == pytest.approx(expected, rel=1e-5)
    assert float(flow_loss(off, [None])) == 0


def test_a_key_frame_interval_below_one_or_another_neck_is_refused() -> None:
    with pytest.raises(ConfigError, match="key_every"):
        create_model("yolact_edge", **small_yolact(key_every=0))
    with pytest.raises(ConfigError, match="yolact_fpn"):
        create_model("yolact_edge", **small_yolact(neck={"name": "fpn", "channels": 16, "extra": "p6p7"}))


def test_a_backbone_that_cannot_be_stopped_half_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(SlimResNetBackbone, "steps")
    with pytest.raises(ConfigError, match="half way"):
        create_model("yolact_edge", **small_yolact())


@pytest.mark.parametrize(
    "backbone",
    [
        {"name": "resnet", "depth": 18},
        {"name": "mobilenet_v2", "width": 0.25},
        {"name": "mobilenet_v3", "size": "small"},
        {"name": "vgg", "depth": 11, "width": 8},
        {"name": "darknet53", "width": 4, "depths": [1, 1, 1, 1, 1]},
        {"name": "slim_resnet", "widths": [8, 8, 8, 8], "depths": [1, 1, 1, 1]},
    ],
    ids=lambda backbone: backbone["name"],
)
def test_half_a_backbone_gives_the_map_of_the_whole(backbone: dict[str, Any]) -> None:
    network = build("backbone", {**backbone, "out": ["c3", "c4", "c5"]}).eval()
    batch = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        half, whole = network.until(batch, "c3"), network(batch)
    assert list(half) == ["c3"]
    assert torch.equal(half["c3"], whole["c3"])
    with pytest.raises(ConfigError, match="c9"):
        network.until(batch, "c9")


def test_a_scene_and_the_same_scene_moved_on_are_learnt_by_heart() -> None:
    """The whole system learns: masks of the frame after a key frame come from what the key frame left, and fit."""
    style = SceneStyle(digits=(2, 2), empty_share=0.0, size_px=(60.0, 80.0), noise_std=0.0, overlap=0.0)
    scene = Digitscape("train", (96, 96), 3, style, dense=False).scene(0)
    key, target, shift = image_of(scene), objects_of(scene), 8
    frame = key.roll(-shift, 2)
    moved = {
        "boxes": target["boxes"] - torch.tensor([shift, 0, shift, 0]),
        "labels": target["labels"],
        "masks": target["masks"].roll(-shift, 2),
        "reference_image": key,
    }
    torch.manual_seed(0)
    model = create_model(
        "yolact_edge",
        num_classes=11,
        backbone={
            "name": "slim_resnet",
            "widths": [16, 24, 32, 48],
            "depths": [1, 1, 1, 1],
            "norm": "group",
            "out": ["c2", "c3", "c4"],
        },
        neck={"channels": 32, "num_downsample": 1},
        head={"anchor_scales": [[24], [40], [60], [84]], "num_prototypes": 8},
        feature_transform={"width": 16},
        transform={"min_size": 96, "max_size": 96},
    )
    assert isinstance(model, VideoAnchorDetector)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 140)
    for _ in range(140):
        losses = model([frame], [moved])
        total = torch.stack([model.loss_weights[name] * value for name, value in losses.items()]).sum()
        optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        scheduler.step()
    found = model.eval().predict_video([key, frame])[0][1].finish()
    for label, truth in zip(moved["labels"].tolist(), moved["masks"].numpy(), strict=True):
        sure = [k for k in range(len(found)) if found.labels[k] == label and found.scores[k] > 0.9]
        ious = [rle.iou(found.rles[k], rle.encode(truth), scene.size_hw) for k in sure]
        assert max(ious, default=0) > 0.85, f"digit {label - 1}: {ious}"
