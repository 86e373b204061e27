"""Top-down models: every object is a crop, its points come back to source pixels, and only labelled ones teach."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modelkit import ConfigError, Predictor, TargetError, create_model
from modelkit.carriers.landmarks import ABSENT, KeypointSet
from modelkit.landmarks import HeatmapCodec, HeatmapLandmarker, StackedHourglass, gathered, prepare_objects
from modelkit.landmarks.crops import CropGeometry, crop_windows, cut, to_windows
from modelkit.training.loop import LoopConfig, Trainer
from modelkit.training.student import weighted_losses
from modelkit.transform import ImageTransform
from modelkit.weights import random_weights
from tests.modelkit.builders import as_tensor, picture, points_in, small_landmarker

FEW = settings(max_examples=30, deadline=None, derandomize=True)
NETWORK = (64, 48)
BOXES = torch.tensor([[8.0, 8, 30, 40], [40.0, 20, 70, 60]])


def target(**changes: Any) -> dict[str, Tensor]:
    return {"boxes": BOXES, "keypoints": points_in(BOXES, 3), **changes}


def landmarker(**changes: Any) -> Predictor:
    return Predictor(*random_weights("heatmap_landmarker", 0, small_landmarker(**changes)))


@FEW
@given(
    x=st.floats(-20, 200), y=st.floats(-20, 200), width=st.floats(4, 300), height=st.floats(4, 300),
    right=st.floats(0, 1), down=st.floats(0, 1),
)  # fmt: skip
def test_a_point_comes_back_through_crop_and_map(
    x: float, y: float, width: float, height: float, right: float, down: float
) -> None:
    """Within half a pixel, of the source or of the network if that is coarser; beside the map's border half a cell."""
    boxes = torch.tensor([[x, y, x + width, y + height]], dtype=torch.float64)
    windows = crop_windows(boxes, NETWORK, 1.25)
    sides = windows[0, 2:] - windows[0, :2]
    assert float(sides[0] / sides[1]) == pytest.approx(NETWORK[1] / NETWORK[0])
    assert bool((windows[0, :2] <= boxes[0, :2]).all() and (windows[0, 2:] >= boxes[0, 2:]).all())
    true = torch.tensor([[[x + right * width, y + down * height]]], dtype=torch.float64)
    geometry = CropGeometry((200, 200), NETWORK, NETWORK, tuple(windows[0].tolist()), (0, 0, 1, 1), 1.0, 1)
    places = to_windows(true, windows, NETWORK)
    assert torch.allclose(geometry.points_to_source(places[0]), true[0])
    codec = HeatmapCodec(sigma=1.0, blur=0)
    found, _ = codec.decode(codec.encode(places / 4, (16, 12)))
    error = (geometry.points_to_source(4 * found[0]) - true[0]).abs().max()
    cells = places[0, 0] / 4
    near_border = bool(((cells < 3) | (cells > torch.tensor([12, 16]) - 3)).any())
    pixel = float(sides[0]) / NETWORK[1]
    assert float(error) <= (2.0 * pixel + 1e-3 if near_border else 0.5 * max(1.0, pixel))


@FEW
@given(rows=st.integers(1, 400), columns=st.integers(1, 400), right=st.floats(0, 1), down=st.floats(0, 1))
def test_a_point_comes_back_through_the_letterbox(rows: int, columns: int, right: float, down: float) -> None:
    transform = ImageTransform(padding="letterbox", fixed_hw=NETWORK)
    resized = transform.resized_hw((rows, columns))
    assert resized[0] == NETWORK[0] or resized[1] == NETWORK[1]
    assert resized[0] <= NETWORK[0] and resized[1] <= NETWORK[1]
    assert transform.bucket((rows, columns)) == NETWORK == transform.buckets()[0]
    _, (geometry,) = transform.batch([torch.zeros((3, rows, columns))])
    true = torch.tensor([[right * columns, down * rows]])
    keypoints = torch.cat([true, torch.full((1, 1), 2.0)], 1)[None]
    moved = transform.target({"keypoints": keypoints}, geometry)["keypoints"][0, :, :2]
    assert torch.allclose(geometry.points_to_source(moved), true, atol=1e-3)


def test_a_letterbox_without_its_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="letterbox"):
        ImageTransform(padding="letterbox")


def test_a_crop_shows_each_place_where_its_point_goes() -> None:
    """A ramp has at every place the value of its coordinate, enlarged, and reduced with the mean of what is covered."""
    ramp = torch.stack([torch.arange(200.0).repeat(100, 1) + 0.5, (torch.arange(100.0) + 0.5)[:, None].repeat(1, 200)])
    for box in ([20.0, 10, 44, 42], [20.0, 10, 92, 106 - 16]):
        windows = crop_windows(torch.tensor([box]), NETWORK, 1.0)
        crop = cut(ramp, windows, NETWORK)[0]
        for row, column in ((20, 10), (40, 30)):
            place = torch.tensor([[[column + 0.5, row + 0.5]]])
            start, sides = windows[0, :2], windows[0, 2:] - windows[0, :2]
            expected = start + place[0, 0] / torch.tensor([48.0, 64.0]) * sides
            assert crop[:, row, column].tolist() == pytest.approx(expected.tolist(), abs=1e-3)


def test_users_see_the_crops_that_training_saw() -> None:
    predictor, image = landmarker(), picture(64, 80)
    prepared = prepare_objects(predictor, image, BOXES.numpy())
    transform = predictor.model.transform
    trained = cut(transform.normalise(as_tensor(image)), crop_windows(BOXES, NETWORK, 1.25), NETWORK)
    assert float((predictor.batch(prepared) - trained).abs().max()) < 0.6 / (255 * min(transform.std))


def test_objects_of_many_images_share_a_batch_and_keep_box_label_and_score() -> None:
    predictor = landmarker()
    images = [picture(64, 80, 1), picture(90, 70, 2)]
    labels, scores = np.array([3, 4]), np.array([0.5, 1.0])
    prepared = [prepare_objects(predictor, image, BOXES.numpy(), scores, labels) for image in images]
    together = [predictor.finish(each) for each in predictor.infer([*prepared[0], *prepared[1]])]
    for image, mine, crops in zip(images, (together[:2], together[2:]), prepared, strict=True):
        size_hw = (image.shape[0], image.shape[1])
        found = gathered(mine, size_hw, 3)
        alone = gathered([predictor.finish(predictor.infer([crop])[0]) for crop in crops], size_hw, 3)
        assert found.size_hw == size_hw and found.labels.tolist() == [3, 4]
        np.testing.assert_array_equal(found.boxes_xyxy, BOXES.numpy())
        np.testing.assert_allclose(found.keypoints_xy, alone.keypoints_xy, atol=0.1)
        np.testing.assert_allclose(found.scores, scores * found.keypoint_scores.mean(1), rtol=1e-5)
    assert prepare_objects(predictor, images[0], np.zeros((0, 4))) == []
    assert len(gathered([], (64, 80), 3)) == 0


def test_without_boxes_the_whole_image_is_the_object() -> None:
    predictor, image = landmarker(), as_tensor(picture(64, 48))
    found = predictor([picture(64, 48)])[0]
    assert found.boxes_xyxy.tolist() == [[0, 0, 48, 64]] and found.labels.tolist() == [1]
    keypoints = points_in(torch.tensor([[0.0, 0, 48, 64]]), 3)
    assert float(predictor.model([image], [{"keypoints": keypoints}])["loss_heatmap"]) > 0


def test_a_map_without_a_peak_gives_an_absent_point() -> None:
    predictor = landmarker()
    torch.nn.init.constant_(predictor.model.network.head.predictor.bias, -10.0)
    found = predictor([picture(64, 48)])[0]
    assert (found.visibility == ABSENT).all() and np.isnan(found.keypoints_xy).all() and found.scores.tolist() == [0]


@pytest.mark.parametrize(
    "nothing",
    [
        {"iscrowd": torch.tensor([True, True])},
        {"box_weights": torch.zeros(2)},
        {"keypoints": points_in(BOXES, 3) * torch.tensor([1, 1, 0])},
    ],
    ids=["crowds", "weight 0", "not labelled"],
)
def test_objects_that_teach_nothing_are_not_looked_at(nothing: dict[str, Tensor]) -> None:
    model = create_model("heatmap_landmarker", **small_landmarker()).train()
    losses = model([as_tensor(picture(64, 80))], [target(**nothing)])
    losses["loss_heatmap"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_a_point_that_is_not_labelled_may_be_anywhere() -> None:
    model = create_model("heatmap_landmarker", **small_landmarker())
    given, elsewhere = points_in(BOXES, 3), points_in(BOXES, 3)
    given[:, 1, 2] = elsewhere[:, 1, 2] = 0
    elsewhere[:, 1, :2] = -1e6
    first, second = (
        model([as_tensor(picture(64, 80))], [target(keypoints=each)])["loss_heatmap"].item()
        for each in (given, elsewhere)
    )
    assert first == second > 0


def test_targets_that_cannot_be_right_are_refused() -> None:
    model, image = create_model("heatmap_landmarker", **small_landmarker()), as_tensor(picture(64, 80))
    with pytest.raises(TargetError, match=r"target 0: keypoints must be \(2, 3, 3\), got \(2, 5, 3\)"):
        model([image], [target(keypoints=points_in(BOXES, 5))])
    with pytest.raises(TargetError, match="needs 'keypoints'"):
        model([image], [{"boxes": BOXES}])
    with pytest.raises(TargetError, match="as many targets"):
        model([image], [])


@pytest.mark.parametrize("name", ["heatmap_landmarker", "coordinate_landmarker", "soft_argmax"])
def test_with_the_flip_test_a_mirror_image_has_mirrored_points(name: str) -> None:
    options: dict[str, Any] = small_landmarker(flip_test=True)
    if name == "soft_argmax":
        name, options = "coordinate_landmarker", {**options, "mode": "soft_argmax"}
    model, _ = random_weights(name, 0, options)
    image = as_tensor(picture(64, 48))
    plain, mirror = (found.keypoints_xy[0] for found in model.predict([image, image.flip(-1)]))
    expected = torch.stack([48 - mirror[[1, 0, 2], 0], mirror[[1, 0, 2], 1]], -1)
    assert torch.allclose(plain, expected, atol=1e-2)


def test_the_mirror_of_a_symmetric_map_is_the_map() -> None:
    model = create_model("heatmap_landmarker", **small_landmarker())
    assert isinstance(model, HeatmapLandmarker)
    left = torch.rand((1, 1, 6, 8), generator=torch.Generator().manual_seed(0))
    middle = left + left.flip(-1)
    maps = {"heatmaps": torch.cat([left, left.flip(-1), middle], 1)}
    assert torch.equal(model.mirrored(maps)["heatmaps"], maps["heatmaps"])


def test_points_are_numbered_with_their_pairs_where_nobody_names_them() -> None:
    assert landmarker().weights.keypoints == KeypointSet(("point 1", "point 2", "point 3"), ((0, 1),))
    with pytest.raises(ConfigError, match="flip_pairs"):
        create_model("heatmap_landmarker", **small_landmarker(flip_pairs=[[0, 3]]))


def small_hourglass(stacks: int = 2, **changes: Any) -> dict[str, Any]:
    options = {"num_keypoints": 3, "stacks": stacks, "width": 16, "depth": 2, "transform": {"fixed_hw": [64, 64]}}
    return {**options, **changes}


def test_an_hourglass_gives_maps_of_every_stack_at_a_quarter_of_the_size() -> None:
    network = StackedHourglass(5, stacks=3, width=8, depth=4)
    maps = network(torch.zeros((2, 3, 128, 64)))
    assert {name: tuple(each.shape) for name, each in maps.items()} == {
        f"heatmaps.{k}": (2, 5, 32, 16) for k in range(3)
    }
    with pytest.raises(ConfigError, match=r"divisible by 64, got \(96, 64\)"):
        network(torch.zeros((1, 3, 96, 64)))
    with pytest.raises(ConfigError, match="divisible by 16"):
        create_model("hourglass", **small_hourglass(transform={"fixed_hw": [64, 56]}))
    with pytest.raises(ConfigError, match="1 to 8 stacks"):
        create_model("hourglass", **small_hourglass(9))


def test_a_stacks_own_loss_teaches_it_and_what_is_before_it() -> None:
    """Without the first stack's loss its maps are taught by the way into the second alone, which changes nothing."""
    model, image = create_model("hourglass", **small_hourglass()).train(), as_tensor(picture(64, 80))

    def gradients(*names: str) -> dict[str, Tensor]:
        model.zero_grad()
        losses = model([image], [target()])
        sum((losses[name] for name in names), torch.zeros(())).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    both, last = gradients("loss_heatmap_0", "loss_heatmap_1"), gradients("loss_heatmap_1")
    assert both.keys() == last.keys()
    for name in (each for each in both if both[each].abs().max() > 1e-7):  # none reaches a bias before a norm
        same = torch.allclose(both[name], last[name], rtol=1e-5, atol=1e-9)
        assert same == name.startswith(("network.stacks.1.", "network.stacks.0.merge_")), name
    remap = model.network.stacks[0].merge_heatmaps
    torch.nn.init.zeros_(remap.weight)
    assert not gradients("loss_heatmap_1")["network.stacks.0.predictor.weight"].any()


def discs(count: int, seed: int, side: int = 48) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images of one bright disc each, and its middle."""
    generator = torch.Generator().manual_seed(seed)
    middles = 8 + torch.rand((count, 2), generator=generator) * (side - 16)
    line = torch.arange(side) + 0.5
    apart = ((line[None, None] - middles[:, :1, None]) ** 2 + (line[None, :, None] - middles[:, 1:, None]) ** 2).sqrt()
    bright = (5.5 - apart).clamp(0, 1)[:, None] * 0.8 + 0.1
    images = (bright + 0.05 * torch.randn((count, 1, side, side), generator=generator)).expand(-1, 3, -1, -1)
    labelled = torch.cat([middles, torch.full((count, 1), 2.0)], 1)[:, None, None]
    return list(images), [{"keypoints": each} for each in labelled]


def error_after_learning(name: str, steps: int, **options: Any) -> float:
    """Mean distance in pixels on 40 discs that training never saw."""
    torch.manual_seed(0)
    model = create_model(name, num_keypoints=1, transform={"fixed_hw": [48, 48]}, **options)
    images, targets = discs(24, 1)
    loop = LoopConfig(steps=steps, learning_rate=4e-3, warmup_steps=5, weight_decay=0.0, decay_from=steps // 2)
    Trainer(model, lambda step: weighted_losses(model, images, targets), loop).run()
    unseen, truth = discs(40, 2)
    found = torch.cat([each.keypoints_xy[0] for each in model.eval().predict(unseen)])
    middles = torch.cat([each["keypoints"][0, :, :2] for each in truth])
    return float((found - middles).norm(dim=1).mean())


SLIM = {"name": "slim_resnet", "widths": [16, 24, 32], "depths": [1, 1, 1]}
NECK = {"channels": [24, 24]}


def test_heatmaps_find_a_disc_between_cells_and_beat_regression() -> None:
    """By as many steps of the same network. Half a cell of the map is two pixels here."""
    codec = {"sigma": 1.0, "blur": 0}
    heatmap = error_after_learning("heatmap_landmarker", 60, backbone=SLIM, neck=NECK, codec=codec)
    linear = error_after_learning("coordinate_landmarker", 60, backbone=SLIM)
    soft = error_after_learning("coordinate_landmarker", 60, backbone=SLIM, neck=NECK, mode="soft_argmax")
    assert heatmap < 1.0 and soft < 2.0, (heatmap, soft)
    assert heatmap < 0.7 * linear, (heatmap, linear)


def test_an_hourglass_learns_a_disc() -> None:
    options = {"stacks": 1, "width": 24, "depth": 2, "codec": {"sigma": 1.0, "blur": 0}}
    assert error_after_learning("hourglass", 30, **options) < 1.5
