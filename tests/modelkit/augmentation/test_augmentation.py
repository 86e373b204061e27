"""Augmentations: labels go where pixels go and come back, draws are explicit, mixing forgets no object."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from modelkit.augmentation import (
    STRONG,
    WEAK,
    Pipeline,
    RandAugment,
    Sample,
    copy_paste,
    cutmix,
    cutmix_region,
    paste,
    replay,
    undo,
    warp,
)
from modelkit.augmentation.geometry import about_centre, horizontal_flip, rotation, scaling, shear, translation
from modelkit.augmentation.mixing import Region
from modelkit.augmentation.randaugment import OPERATIONS, strength
from modelkit.errors import ConfigError, TargetError
from tests.modelkit.builders import as_tensor, picture

SIDE = 160
GEOMETRIC = [
    {"name": "horizontal_flip"},
    {"name": "stac_geometric"},
    {"name": "scale_jitter"},
    {"name": "rand_augment", "num_ops": 3, "magnitude": 20},
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def disc(x: float, y: float, radius: float, side: int = SIDE) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    return ((columns - x) ** 2 + (rows - y) ** 2 <= radius**2).to(torch.uint8)


def sample(seed: int = 0, side: int = SIDE) -> Sample:
    """Two discs with every kind of label."""
    scale = side / SIDE
    circles = [(56, 64, 36), (110, 96, 34)]
    masks = torch.stack([disc(x * scale, y * scale, r * scale, side) for x, y, r in circles])
    boxes = torch.tensor([[x - r, y - r, x + r, y + r] for x, y, r in circles]) * scale
    centres = torch.tensor([[[x, y, 2.0], [x - 5.0, y + 3.0, 2.0]] for x, y, _ in circles])
    semantic = torch.where(masks[1] > 0, 2, torch.where(masks[0] > 0, 1, 0))
    target = {
        "boxes": boxes.float(),
        "labels": torch.tensor([1, 2]),
        "masks": masks,
        "keypoints": centres * torch.tensor([scale, scale, 1.0]),
        "semantic": semantic,
        "semantic_weights": torch.ones(side, side),
        "class_weights": torch.tensor([0.5, 1.0]),
        "flip_pairs": [(0, 1)],
    }
    return Sample.fresh(as_tensor(picture(side, side, seed)), target)


def iou(a: Tensor, b: Tensor) -> float:
    a, b = a.bool(), b.bool()
    return float((a & b).sum() / (a | b).sum())


def same(a: Sample, b: Sample) -> bool:
    return (
        torch.equal(a.image, b.image)
        and torch.equal(a.matrix, b.matrix)
        and a.target.keys() == b.target.keys()
        and all(torch.equal(a.target[key], b.target[key]) for key in a.target if key != "flip_pairs")
    )


ROUND_TRIPS = {
    "flip": horizontal_flip((SIDE, SIDE)),
    "shift": translation(9.3, -7.7),
    "rotate": about_centre(rotation(17.0), (SIDE, SIDE)),
    "shear": about_centre(shear(0.15, 0.0), (SIDE, SIDE)),
    "enlarge": about_centre(scaling(1.1, 1.07), (SIDE, SIDE)),
    "all": about_centre(rotation(-8.0) @ shear(0.0, 0.1) @ scaling(0.95, 1.05), (SIDE, SIDE)) @ translation(3.5, 2.25),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_masks_boxes_and_keypoints_come_back_from_every_geometry(name: str) -> None:
    before = sample()
    after = undo(warp(before, ROUND_TRIPS[name]))
    assert after.target["labels"].tolist() == [1, 2]
    for k in range(2):
        assert iou(before.target["masks"][k], after.target["masks"][k]) >= 0.99
    assert iou(before.target["semantic"] == 1, after.target["semantic"] == 1) >= 0.98  # an overlapped, thinner shape
    assert (before.target["keypoints"] - after.target["keypoints"]).abs().max() <= 0.5
    assert (before.target["boxes"] - after.target["boxes"]).abs().max() <= 1.5
    assert torch.allclose(after.matrix, torch.eye(3, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("config", GEOMETRIC, ids=lambda config: config["name"])
@pytest.mark.parametrize("seed", range(4))
def test_labels_go_exactly_where_the_matrix_sends_them(config: dict[str, Any], seed: int) -> None:
    before = sample()
    after = Pipeline([config])(before, generator(seed))
    alone = warp(Sample.fresh(before.image, {"masks": before.target["masks"], **before.target}), after.matrix)
    role = int(float(torch.linalg.det(after.matrix)) < 0)
    for k, label in enumerate(after.target["labels"].tolist()):
        moved = after.matrix @ torch.cat([before.target["keypoints"][label - 1, 0, :2].double(), torch.ones(1)])
        assert (after.target["keypoints"][k, role, :2] - moved[:2]).abs().max() <= 1e-3
        if label in alone.target["labels"]:
            expected = alone.target["masks"][alone.target["labels"].tolist().index(label)]
            assert iou(after.target["masks"][k], expected) >= 0.97  # several steps resample several times
            rows, columns = torch.where(after.target["masks"][k] > 0)
            box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
            assert after.target["boxes"][k].tolist() == box


def test_an_augmentation_can_be_repeated_and_leaves_global_randomness_alone() -> None:
    pipeline = Pipeline([*STRONG, {"name": "colour_jitter"}, {"name": "greyscale"}, {"name": "blur"}])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = pipeline(sample(), generator(5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again, other = pipeline(sample(), generator(5)), pipeline(sample(), generator(6))
    assert same(one, again)
    assert not torch.equal(one.image, other.image)


def test_what_a_thread_augments_changes_no_draw_of_another_thread() -> None:
    """Batches are made beside training, and torch's global generator is one for all threads."""
    from concurrent.futures import ThreadPoolExecutor

    pipeline = Pipeline([*STRONG, {"name": "colour_jitter"}, {"name": "blur"}, {"name": "rand_augment"}])
    torch.manual_seed(3)
    alone = [float(torch.rand(())) for _ in range(2000)]
    torch.manual_seed(3)
    with ThreadPoolExecutor(1) as thread:
        busy = [thread.submit(pipeline, sample(), generator(seed)) for seed in range(5)]
        beside = []
        while len(beside) < 2000:
            beside.append(float(torch.rand(())))
        for each in busy:
            each.result()
    assert beside == alone


def test_the_given_sample_is_never_changed() -> None:
    given, copy = sample(), sample()
    for seed in range(5):
        Pipeline(STRONG)(given, generator(seed))
        cutmix(given, sample(1), generator(seed))
        copy_paste(given, sample(1), generator(seed))
    assert same(given, copy)


def test_a_replayed_map_shows_what_the_sample_shows() -> None:
    before = sample()
    after = Pipeline([{"name": "horizontal_flip", "probability": 1.0}, {"name": "stac_geometric"}])(
        before, generator(2)
    )
    replayed = replay(before.target["masks"][:1].float(), after)
    assert iou(replayed[0] > 0.5, after.target["masks"][0]) > 0.97


def test_a_mirror_moves_whole_pixels_and_resamples_none() -> None:
    given = sample()
    after = warp(given, horizontal_flip(given.size_hw))
    assert torch.equal(after.image, given.image.flip(-1))
    assert torch.equal(after.target["masks"], given.target["masks"].flip(-1))
    cut = warp(given, horizontal_flip(given.size_hw), (SIDE, SIDE - 10))
    assert torch.allclose(cut.image, given.image.flip(-1)[..., : SIDE - 10], atol=1e-5)


def test_mirrored_keypoints_change_roles() -> None:
    pipeline = Pipeline([{"name": "horizontal_flip", "probability": 1.0}])
    after = pipeline(sample(), generator())
    before = sample().target["keypoints"]
    assert after.target["keypoints"][0, 0, 0] == pytest.approx(float(SIDE - before[0, 1, 0]))
    nobody_said = Sample.fresh(sample().image, {k: v for k, v in sample().target.items() if k != "flip_pairs"})
    with pytest.raises(TargetError, match="which of them change places"):
        pipeline(nobody_said, generator())


def test_objects_that_leave_are_dropped_and_what_shows_of_them_is_ignored_not_background() -> None:
    gone = warp(sample(), translation(-100.0, 0.0))
    assert gone.target["labels"].tolist() == [2]
    assert gone.target["class_weights"].tolist() == [1.0]
    partly = warp(sample(), translation(-82.0, 0.0))  # ten columns of the first disc stay
    assert partly.target["labels"].tolist() == [2]
    [box] = partly.target["ignore_boxes"].tolist()
    assert box[0] == 0 and 8 <= box[2] <= 11
    assert (partly.target["semantic"][:, 100:] == 255).all(), "what came in from outside is nobody's"
    assert (partly.target["semantic_weights"][:, 100:] == 0).all()


def test_boxes_without_masks_enclose_their_corners() -> None:
    plain = Sample.fresh(torch.zeros(3, 10, 10), {"boxes": torch.tensor([[2.0, 2, 4, 6]]), "labels": torch.tensor([1])})
    moved = warp(plain, about_centre(rotation(90.0), (10, 10)))
    assert moved.target["boxes"][0].tolist() == pytest.approx([4, 2, 8, 4])


def test_randaugment_uses_torchvisions_strengths() -> None:
    space = v2.RandAugment._AUGMENTATION_SPACE
    assert sorted(space) == sorted(OPERATIONS)
    for name, (magnitudes, signed) in space.items():
        table = magnitudes(31, 120, 200)
        for magnitude in (0, 9, 30):
            ours = strength(name, magnitude, 31, (120, 200))
            if table is not None:
                assert ours == pytest.approx(float(table[magnitude]), abs=1e-4), name
        assert signed == (name in OPERATIONS[1:10]), name
    # golden numbers of bin 9 of 31
    assert strength("ShearX", 9, 31, (64, 64)) == pytest.approx(0.09)
    assert strength("TranslateX", 9, 31, (64, 100)) == pytest.approx(13.595, abs=1e-3)
    assert strength("Rotate", 9, 31, (64, 64)) == pytest.approx(9)
    assert strength("Posterize", 9, 31, (64, 64)) == 7
    assert strength("Solarize", 9, 31, (64, 64)) == pytest.approx(0.7)


def test_randaugment_draws_every_operation_equally_often_and_magnitude_0_changes_little() -> None:
    augment, draws = RandAugment(num_ops=1, magnitude=0), generator()
    small = Sample.fresh(torch.rand(3, 4, 4, generator=generator(1)), {})
    counts = dict.fromkeys(OPERATIONS, 0)
    from modelkit.augmentation.draws import choice

    for _ in range(1400):
        counts[choice(draws, augment.operations)] += 1
    chi2 = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert chi2 < 34.5  # 99.9 % quantile at 13 degrees of freedom
    assert RandAugment(num_ops=0)(small, draws) is small
    photometric = RandAugment(photometric_only=True).operations
    assert len(photometric) == 9 and "Rotate" not in photometric


def test_cutmix_golden_regions_and_pixels() -> None:
    region = cutmix_region((32, 32), 0.75, (16, 16))
    assert region.area == 256 and 1 - region.area / 1024 == 0.75
    corner = cutmix_region((32, 32), 0.75, (0, 0))
    assert (corner.bottom, corner.right) == (8, 8) and 1 - corner.area / 1024 == 0.9375
    host, donor = sample(0), sample(3)
    where = Region(20, 30, 100, 120).mask(host.size_hw)
    mixed = paste(host, donor, where)
    assert torch.equal(mixed.image[:, where], donor.image[:, where])
    assert torch.equal(mixed.image[:, ~where], host.image[:, ~where])
    assert torch.equal(mixed.target["semantic"][where], donor.target["semantic"][where])
    assert torch.equal(mixed.target["semantic"][~where], host.target["semantic"][~where])


def test_cutmix_forgets_no_object_that_still_shows() -> None:
    for seed in range(12):
        host, donor = sample(0), warp(sample(3), horizontal_flip((SIDE, SIDE)))
        mixed = cutmix(host, donor, generator(seed)).target
        assert len({len(mixed[key]) for key in ("boxes", "labels", "masks", "keypoints", "class_weights")}) == 1
        covered = mixed["masks"].bool().any(0) if len(mixed["masks"]) else torch.zeros(SIDE, SIDE, dtype=torch.bool)
        for x1, y1, x2, y2 in mixed.get("ignore_boxes", torch.zeros(0, 4)).int().tolist():
            covered[y1:y2, x1:x2] = True
        assert covered[mixed["semantic"] > 0].all(), "every pixel of an object is in a mask or ignored"
        for box, mask in zip(mixed["boxes"], mixed["masks"], strict=True):
            rows, columns = torch.where(mask > 0)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_pasted_objects_cover_those_below() -> None:
    host, donor = sample(0), warp(sample(3), translation(20.0, -10.0))
    pasted = next(
        p
        for p in (copy_paste(host, donor, generator(seed), labels=[2]) for seed in range(20))
        if len(p.target["labels"]) == 3
    )
    assert pasted.target["labels"].tolist() == [1, 2, 2]
    assert not (pasted.target["masks"].sum(0) > 1)[pasted.target["masks"][2] > 0].any(), "it covers what is below it"
    on_top = pasted.target["masks"][2].bool()
    assert torch.equal(pasted.image[:, on_top], donor.image[:, on_top])
    assert copy_paste(host, donor, generator(), labels=[7]) is host


def test_human_labels_weigh_1_when_mixed_with_pseudo_labels() -> None:
    host = sample(0)
    human = Sample.fresh(
        host.image, {k: v for k, v in host.target.items() if k not in ("class_weights", "semantic_weights")}
    )
    pseudo = sample(3).with_target(
        semantic_weights=torch.zeros(SIDE, SIDE), ignore_boxes=torch.tensor([[1.0, 1, 9, 9]])
    )
    where = Region(0, 0, SIDE, SIDE // 2).mask((SIDE, SIDE))
    mixed = paste(human, pseudo, where)
    assert set(mixed.target["class_weights"].tolist()) <= {0.5, 1.0}
    assert (mixed.target["semantic_weights"][where] == 0).all() and (
        mixed.target["semantic_weights"][~where] == 1
    ).all()
    assert [1.0, 1.0, 9.0, 9.0] in mixed.target["ignore_boxes"].tolist()


def test_what_cannot_be_mixed_or_built_is_refused() -> None:
    with pytest.raises(TargetError, match="one size"):
        paste(sample(), sample(side=80), torch.zeros(SIDE, SIDE, dtype=torch.bool))
    bare = Sample.fresh(sample().image, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)})
    with pytest.raises(TargetError, match="masks"):
        copy_paste(bare, sample(), generator())
    with pytest.raises(ConfigError, match="unknown augmentation 'twirl'"):
        Pipeline([{"name": "twirl"}])
    with pytest.raises(ConfigError, match="no option angle"):
        Pipeline([{"name": "stac_geometric", "angle": 3}])
    with pytest.raises(ConfigError, match="magnitude"):
        RandAugment(magnitude=31)


def test_weak_and_strong_run_on_images_without_objects() -> None:
    empty = sample()
    target = {
        k: v[:0] if k in ("boxes", "labels", "masks", "keypoints", "class_weights") else v
        for k, v in empty.target.items()
    }
    for configs in (WEAK, STRONG):
        for seed in range(3):
            after = Pipeline(configs)(Sample.fresh(empty.image, target), generator(seed))
            assert after.target["masks"].shape == (0, SIDE, SIDE)
            assert after.image.shape == (3, SIDE, SIDE)
            assert 0 <= float(after.image.min()) <= float(after.image.max()) <= 1
            assert math.isfinite(float(after.image.sum()))


def test_a_random_crop_is_a_window_of_the_image_whose_labels_lie_where_its_pixels_do() -> None:
    whole = sample()
    pipeline = Pipeline([{"name": "random_crop", "height": 64, "width": 96}])
    cut = pipeline(whole, generator(3))
    assert cut.size_hw == (64, 96) and cut.target["masks"].shape[1:] == (64, 96)
    x, y = (int(-value) for value in cut.matrix[:2, 2])
    window = whole.image[:, y : y + 64, x : x + 96]
    assert torch.allclose(cut.image, window, atol=1e-4), "whole pixels stay as sharp as they are"
    assert torch.equal(cut.target["semantic"], whole.target["semantic"][y : y + 64, x : x + 96])
    zoomed = Pipeline([{"name": "random_crop", "height": 64, "width": 96, "low": 0.5, "high": 2.0}])
    factors = [float(zoomed(whole, generator(seed)).matrix[0, 0]) for seed in range(20)]
    assert 0.5 <= min(factors) < 0.8 and 1.25 < max(factors) <= 2.0
    as_seen = Pipeline([{"name": "random_crop", "height": 64, "width": 96, "short_side": 2 * SIDE}])
    assert float(as_seen(whole, generator()).matrix[0, 0]) == 2.0, "the factor is of the size that a model looks at"


def test_a_crop_larger_than_the_image_is_filled_with_what_nobody_labelled() -> None:
    cut = Pipeline([{"name": "random_crop", "height": 200, "width": 200}])(sample(), generator())
    assert cut.size_hw == (200, 200)
    assert int((cut.target["semantic"] == 255).sum()) == 200 * 200 - SIDE * SIDE
    with pytest.raises(ConfigError, match="random crop"):
        Pipeline([{"name": "random_crop", "height": 0, "width": 8}])
