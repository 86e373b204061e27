"""Every entry of a target goes where the pixels go, in one pixel convention; unknown ones are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modelkit.augmentation import STRONG, Pipeline, Sample, cutmix, paste, undo, warp
from modelkit.augmentation.geometry import about_centre, horizontal_flip, rotation, scaling, shear, translation
from modelkit.carriers.fields import Field, Resize, Value, Warp
from modelkit.carriers.targets import FIELDS, field_of, register_field, resize_target, select, warp_target
from modelkit.errors import DuplicateNameError, TargetError
from modelkit.registry import import_families
from modelkit.transform import Geometry, ImageTransform

FEW = settings(max_examples=30, deadline=None, derandomize=True)
SIZE = (48, 64)
PAIRS = [(1, 2)]


def target(size_hw: tuple[int, int] = SIZE) -> dict[str, Any]:
    """Two objects with every kind of entry; each object's first keypoint is the middle of its mask and box."""
    rows, columns = size_hw
    boxes = torch.tensor([[8.0, 12, 28, 36], [36.0, 8, 60, 40]]) * torch.tensor([columns / 64, rows / 48]).repeat(2)
    masks = torch.zeros((2, rows, columns), dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    off = torch.tensor([[0.0, 0.0], [-4.0, -2.0], [4.0, 2.0]]) * torch.tensor([columns / 64, rows / 48])
    keypoints = torch.cat([middles[:, None] + off, torch.full((2, 3, 1), 2.0)], -1)
    yx = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    return {
        "boxes": boxes,
        "labels": torch.tensor([1, 2]),
        "masks": masks,
        "keypoints": keypoints,
        "flip_pairs": PAIRS,
        "track_ids": torch.tensor([7, 9]),
        "iscrowd": torch.tensor([False, True]),
        "class_weights": torch.tensor([0.25, 1.0]),
        "box_weights": torch.tensor([0.5, 1.0]),
        "mask_weights": torch.tensor([0.75, 1.0]),
        "ignore_boxes": torch.tensor([[2.0, 40, 20, 46]]),
        "semantic": (masks[0] + 2 * masks[1]).long(),
        "semantic_weights": masks.amax(0).float(),
        "abstaining": torch.tensor([3]),
        "reference_image": torch.rand((3, rows, columns), generator=torch.Generator().manual_seed(0)),
        "reference_boxes": boxes + 2,
        "reference_track_ids": torch.tensor([7, 9]),
        "flow": torch.stack([0.1 * yx[1] + 0.02 * yx[0], 1.0 - 0.05 * yx[0]]),
    }


def sample(**changes: Any) -> Sample:
    return Sample.fresh(torch.rand((3, *SIZE), generator=torch.Generator().manual_seed(1)), {**target(), **changes})


def alone(entries: dict[str, Any]) -> dict[str, Any]:
    """Without what belongs to a second frame."""
    return {k: v for k, v in entries.items() if not k.startswith("reference") and k != "flow"}


def centroids(masks: Tensor) -> Tensor:
    """(n, 2) x and y of the middles of masks: pixel (r, c) has its middle at (c + 0.5, r + 0.5)."""
    places = [torch.nonzero(mask).double().add(0.5).mean(0).flip(0) for mask in masks]
    return torch.stack(places)


moves = st.builds(
    lambda x, y, angle, slope, grow: (
        translation(x, y) @ about_centre(rotation(angle) @ shear(slope, 0.0) @ scaling(grow, grow), SIZE)
    ),
    st.floats(-4, 4),
    st.floats(-4, 4),
    st.floats(-20, 20),
    st.floats(-0.2, 0.2),
    st.floats(0.8, 1.2),
)


import_families()  # they make entries of their own known, which are tested here like all others


def known() -> dict[str, Field]:
    """Every entry but meshes and surfaces, which cannot be mirrored and have tests of their own."""
    return {name: field for name, field in FIELDS.items() if name not in ("meshes", "surface_points", "coarse_parts")}


def test_the_sample_above_has_every_entry_that_is_known() -> None:
    assert target().keys() == known().keys()


@pytest.mark.parametrize(
    "move",
    [
        lambda it: ImageTransform(24, 32).target(it, Geometry(SIZE, (24, 32), (32, 32))),
        lambda it: warp(Sample.fresh(torch.zeros(3, *SIZE), it), translation(1, 1)),
        lambda it: select(it, torch.tensor([0])),
        lambda it: paste(sample(), Sample.fresh(torch.zeros(3, *SIZE), it), torch.zeros(SIZE, dtype=torch.bool)),
    ],
    ids=["resize", "warp", "select", "paste"],
)
def test_an_entry_that_nobody_knows_how_to_move_is_refused_by_name(move: Callable[[dict[str, Any]], Any]) -> None:
    with pytest.raises(TargetError, match=r"'elbows'.*register_field"):
        move({**alone(target()), "elbows": torch.zeros(2, 3)})


def test_a_family_registers_further_entries_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FIELDS, "depth_of_scene", Value())
    assert isinstance(field_of("depth_of_scene"), Field)
    with pytest.raises(DuplicateNameError, match="depth_of_scene"):
        register_field("depth_of_scene", Value())


@FEW
@given(st.integers(30, 120), st.integers(30, 120), st.integers(30, 120), st.integers(30, 120))
def test_resized_there_and_back_is_the_same(rows: int, columns: int, new_rows: int, new_columns: int) -> None:
    before = target((rows, columns))
    there = resize_target(before, Resize((rows, columns), (new_rows, new_columns)))
    back = resize_target(there, Resize((new_rows, new_columns), (rows, columns)))
    for name in ("boxes", "ignore_boxes", "reference_boxes", "keypoints"):
        assert torch.allclose(back[name], before[name], atol=1e-3), name
    for name in ("labels", "track_ids", "iscrowd", "class_weights", "box_weights", "mask_weights"):
        assert torch.equal(back[name], before[name]), name
    for name in ("masks", "semantic", "semantic_weights", "flow", "reference_image"):
        assert there[name].shape[-2:] == (new_rows, new_columns), name
        assert back[name].shape == before[name].shape, name
    # Half a pixel of before, because masks are drawn on whole pixels there, and half a pixel of after, likewise.
    tolerance = 0.51 * (1 + max(new_columns / columns, new_rows / rows))
    assert (there["keypoints"][:, 0, :2] - centroids(there["masks"])).abs().max() <= tolerance


@pytest.mark.parametrize("shrink", [2, 3, 4, 8])
def test_masks_and_maps_shrink_about_the_centres_of_pixels(shrink: int) -> None:
    """torchvision's rule takes the upper left corner: a mask lies up to half a new pixel too far down and right."""
    side = 48 * shrink
    wide = torch.arange(side) + 0.5
    slope = (wide[:, None] + wide[None, :]).expand(side, side)
    mask = (slope < side).to(torch.uint8)[None]
    exact, corner = (
        resize_target({"masks": mask}, Resize((side, side), (48, 48), aligned))["masks"] for aligned in (True, False)
    )
    area = float(mask.sum()) / shrink**2
    assert abs(float(exact.sum()) - area) < abs(float(corner.sum()) - area)
    assert (centroids(exact) - centroids(mask) / shrink).abs().max() < 0.3


@FEW
@given(moves)
def test_keypoints_masks_and_boxes_of_an_object_move_together(matrix: Tensor) -> None:
    after = warp(sample(), matrix, min_visible=0.0).target
    inside = (after["keypoints"][..., 2] > 0).all(1)
    expected = target()["keypoints"][..., :2].double() @ matrix[:2, :2].T + matrix[:2, 2]
    for k in torch.nonzero(inside)[:, 0].tolist():
        assert torch.allclose(after["keypoints"][k, :, :2].double(), expected[k], atol=1e-3)
        touches = after["boxes"][k, :2].min() <= 0 or (after["boxes"][k, 2:] >= torch.tensor([64, 48])).any()
        if not touches:
            assert (centroids(after["masks"][k : k + 1])[0] - after["keypoints"][k, 0, :2]).abs().max() <= 0.6
            middle = (after["boxes"][k, :2] + after["boxes"][k, 2:]) / 2
            assert (middle - after["keypoints"][k, 0, :2]).abs().max() <= 1.1


@FEW
@given(moves)
def test_what_was_warped_can_be_undone(matrix: Tensor) -> None:
    before = sample()
    there = warp(before, matrix, min_visible=0.0)
    back = undo(there).target
    seen = (there.target["keypoints"][..., 2] > 0)[..., None]
    assert len(back["labels"]) == 2
    assert torch.allclose(back["keypoints"][..., :2] * seen, before.target["keypoints"][..., :2] * seen, atol=1e-2)


@FEW
@given(moves)
def test_a_pixel_and_its_place_in_the_other_frame_move_alike(matrix: Tensor) -> None:
    moved = warp(sample(), matrix, min_visible=0.0).target["flow"]
    rows, columns = torch.where(moved.isfinite().all(0))
    places = torch.stack([columns, rows], -1) + 0.5
    origin = (places.double() - matrix[:2, 2]) @ torch.linalg.inv(matrix[:2, :2]).T
    x, y = origin.unbind(-1)
    true = torch.stack([0.1 * x + 0.02 * y, 1.0 - 0.05 * y], -1) @ matrix[:2, :2].T
    assert (moved[:, rows, columns].T - true).abs().max() <= 0.12  # of a flow that changes by 0.1 a pixel: one pixel


def test_resized_flow_is_in_the_new_pixels() -> None:
    small = resize_target({"flow": torch.full((2, 40, 40), 6.0)}, Resize((40, 40), (20, 10)))["flow"]
    assert small.shape == (2, 20, 10)
    assert small[0].unique().tolist() == [1.5]
    assert small[1].unique().tolist() == [3.0]


def test_a_mirror_exchanges_left_and_right_and_a_second_one_brings_everything_back() -> None:
    before, flip = sample(), horizontal_flip(SIZE)
    once = warp(before, flip)
    left, right = PAIRS[0]
    mirrored = 64 - before.target["keypoints"][:, right, 0]
    assert torch.allclose(once.target["keypoints"][:, left, 0], mirrored, atol=1e-4)
    assert torch.equal(once.target["keypoints"][:, left, 1], before.target["keypoints"][:, right, 1])
    assert torch.equal(once.target["masks"], before.target["masks"].flip(-1))
    assert torch.equal(once.target["semantic"], before.target["semantic"].flip(-1))
    assert torch.allclose(once.target["flow"][0], -before.target["flow"][0].flip(-1))
    twice = warp(once, flip)
    for name, value in before.target.items():
        if isinstance(value, Tensor):
            assert torch.allclose(twice.target[name].double(), value.double(), atol=1e-4), name


@FEW
@given(st.integers(0, 40), st.integers(0, 30), st.integers(8, 24), st.integers(8, 24))
def test_a_crop_keeps_what_lies_in_it_and_shifts_it(left: int, top: int, width: int, height: int) -> None:
    before = sample()
    crop = warp(before, translation(-left, -top), (height, width), min_visible=0.0)
    known = before.target["semantic"][top : top + height, left : left + width]
    assert torch.equal(crop.target["semantic"][: known.shape[0], : known.shape[1]], known)
    whole = warp_target(before.target, _shift(left, top, height, width))
    shifted = before.target["keypoints"][..., :2] - torch.tensor([left, top])
    inside = ((shifted >= 0) & (shifted < torch.tensor([width, height]))).all(-1)
    assert torch.equal(whole["keypoints"][..., 2] > 0, inside), "points that leave the picture are no longer labelled"
    assert torch.allclose(whole["keypoints"][..., :2], shifted, atol=1e-4)


def _shift(left: int, top: int, height: int, width: int) -> Any:
    return Warp(translation(-left, -top), (height, width), PAIRS)


def test_covered_keypoints_are_no_longer_labelled() -> None:
    host, donor = (Sample.fresh(torch.zeros(3, *SIZE), alone(target())) for _ in range(2))
    where = torch.zeros(SIZE, dtype=torch.bool)
    where[:, 16:] = True
    mixed = paste(host, donor, where).target
    assert mixed["keypoints"].shape == (len(mixed["labels"]), 3, 3)
    by_track = {(int(t), len(k)): k for t, k in zip(mixed["track_ids"], mixed["keypoints"], strict=True)}
    assert by_track
    for x, y, v in mixed["keypoints"].reshape(-1, 3).tolist():
        assert (v > 0) <= (0 <= x < 64 and 0 <= y < 48)
    below = mixed["keypoints"][0]
    assert below[:, 2].tolist() == [float(x < 16) * 2 for x in below[:, 0].tolist()]


def test_samples_disagreeing_about_left_and_right_and_pairs_of_frames_are_not_mixed() -> None:
    plain = Sample.fresh(torch.zeros(3, *SIZE), alone(target()))
    other = Sample.fresh(torch.zeros(3, *SIZE), {**alone(target()), "flip_pairs": [(0, 1)]})
    draws = torch.Generator().manual_seed(0)
    with pytest.raises(TargetError, match="agree"):
        cutmix(plain, other, draws)
    with pytest.raises(TargetError, match="pairs of frames"):
        cutmix(sample(), sample(), draws)


def test_a_pipeline_carries_every_entry() -> None:
    for seed in range(5):
        after = Pipeline(STRONG)(sample(), torch.Generator().manual_seed(seed)).target
        assert after.keys() == known().keys()
        per_object = [name for name, field in known().items() if field.per_object]
        assert len({len(after[name]) for name in per_object}) == 1
