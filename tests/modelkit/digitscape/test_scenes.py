"""Digitscape scenes: seeded, split cleanly, and exact in every truth they carry."""

from __future__ import annotations

import numpy as np
import pytest

from modelkit.digitscape import (
    CLASS_NAMES,
    FIRST_STUFF_ID,
    SPLITS,
    STUFF_NAMES,
    Digitscape,
    DigitscapeError,
    Scene,
    SceneStyle,
    load_digits,
    picture_names,
)
from modelkit.digitscape.composer import _MAX_DIGITS

CROWDED = SceneStyle(digits=(6, 12), empty_share=0.0, overlap=0.5, min_visibility=0.3)


def _bytes(scene: Scene) -> list[bytes]:
    arrays = [getattr(scene, name) for name in Scene.__dataclass_fields__]
    return [array.tobytes() for array in arrays if array is not None]


@pytest.mark.parametrize("split", SPLITS)
def test_same_arguments_give_the_same_bytes(split: str) -> None:
    first, second = (Digitscape(split, seed=5) for _ in range(2))  # type: ignore[arg-type]
    assert _bytes(first.scene(3)) == _bytes(second.scene(3))
    # the order in which scenes are asked for does not matter
    second.scene(9)
    assert _bytes(first.scene(4)) == _bytes(second.scene(4))


def test_seed_split_and_index_each_change_the_scene() -> None:
    base = Digitscape("train", seed=1).scene(0).image_rgb
    assert not np.array_equal(base, Digitscape("train", seed=2).scene(0).image_rgb)
    assert not np.array_equal(base, Digitscape("test", seed=1).scene(0).image_rgb)
    assert not np.array_equal(base, Digitscape("train", seed=1).scene(1).image_rgb)


def test_dense_truth_does_not_change_the_picture() -> None:
    with_dense, without = Digitscape("train").scene(2), Digitscape("train", dense=False).scene(2)
    assert np.array_equal(with_dense.image_rgb, without.image_rgb)
    assert without.uv is None
    assert with_dense.uv is not None


def test_splits_share_neither_digits_nor_pictures() -> None:
    rows = {split: set(load_digits(split).source_rows.tolist()) for split in SPLITS}
    names = {split: set(picture_names(split)) for split in SPLITS}
    for a in SPLITS:
        for b in SPLITS:
            if a != b:
                assert not rows[a] & rows[b]
                assert not names[a] & names[b]
    assert sum(map(len, rows.values())) == 5000
    # a stereo pair shows one motorcycle, so it must not be cut apart
    assert {"motorcycle_left.png", "motorcycle_right.png"} <= names["train"]


def test_no_digit_picture_occurs_in_two_splits() -> None:
    """Disjoint rows are not enough if the bank itself held duplicates."""
    pictures = {split: {image.tobytes() for image in load_digits(split).images} for split in SPLITS}
    assert not pictures["train"] & pictures["test"]
    assert not pictures["val"] & pictures["test"]


@pytest.mark.parametrize("split", SPLITS)
def test_every_class_is_equally_frequent_in_the_bank(split: str) -> None:
    labels, counts = np.unique(load_digits(split).labels, return_counts=True)  # type: ignore[arg-type]
    assert labels.tolist() == list(range(1, 11))
    assert len(set(counts.tolist())) == 1


def test_masks_boxes_and_maps_say_the_same() -> None:
    source = Digitscape("train", style=CROWDED)
    for index in range(12):
        scene = source.scene(index)
        masks = scene.masks
        assert masks.shape == (len(scene), *scene.size_hw)
        assert masks.sum(axis=0).max() <= 1, "a pixel shows one digit"
        assert np.array_equal(masks.any(axis=0), scene.instance_map > 0)
        for mask, box, label in zip(masks, scene.boxes_xyxy, scene.labels, strict=True):
            ys, xs = np.nonzero(mask)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert set(scene.semantic_map[mask].tolist()) == {int(label)}
        background = scene.instance_map == 0
        assert set(np.unique(scene.stuff_map)) <= {FIRST_STUFF_ID + k for k in range(len(STUFF_NAMES))}
        assert np.array_equal(scene.semantic_map[background], scene.stuff_map[background])
        assert np.array_equal(scene.panoptic_map // 1000, scene.semantic_map)
        assert np.array_equal(scene.panoptic_map % 1000, scene.instance_map)


def test_visibility_is_the_share_of_the_digit_that_is_seen() -> None:
    """Measured against the same digits drawn one by one on an empty canvas."""
    from modelkit.digitscape import composer
    from modelkit.digitscape.rendering import stamp

    source = Digitscape("train", (192, 192), seed=3, style=CROWDED)
    covered_somewhere = 0
    for index in range(8):
        cast: list[list[composer._Actor]] = []
        original = composer.Digitscape._cast

        def remember(self: Digitscape, *args: object, original=original, cast=cast) -> list:  # type: ignore[no-untyped-def,type-arg]
            cast.append(original(self, *args))
            return cast[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(composer.Digitscape, "_cast", remember)
            scene = source.scene(index)
        roomy = 4 * 192
        for k, actor in enumerate(cast[0]):
            moved = composer.Pose(actor.poses[0].matrix, actor.poses[0].position_xy + 192)
            whole = stamp(actor.glyph, moved, (roomy, roomy))
            assert whole is not None
            assert scene.visibility[k] == pytest.approx(scene.masks[k].sum() / whole.ink.sum(), abs=1e-6)
            assert scene.visibility[k] >= CROWDED.min_visibility - 1e-6
            covered_somewhere += bool(scene.visibility[k] < 0.98)
    assert covered_somewhere > 0, "the crowded style must show occlusions, or this test proves nothing"


def test_later_instances_cover_earlier_ones() -> None:
    from modelkit.digitscape import composer

    source = Digitscape("train", seed=11, style=CROWDED, dense=False)
    for index in range(6):
        cast: list[list[composer._Actor]] = []
        original = composer.Digitscape._cast
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                composer.Digitscape,
                "_cast",
                lambda self, *a, original=original, cast=cast: cast.append(original(self, *a)) or cast[-1],
            )
            scene = source.scene(index)
        for k, actor in enumerate(cast[0]):
            inside = scene.instance_map[actor.first.window][actor.first.ink]
            assert inside.min() >= k + 1, "where a digit has ink, only itself or one in front of it is seen"


def test_landmarks_lie_on_the_digit_and_know_whether_they_are_seen() -> None:
    source = Digitscape("test", style=CROWDED)
    seen = hidden = 0
    for index in range(10):
        scene = source.scene(index)
        assert set(np.unique(scene.landmarks[..., 2])) <= {1.0, 2.0}
        for k in range(len(scene)):
            for x, y, v in scene.landmarks[k, :4]:  # the fifth, the centre of mass, need not lie on ink
                row, column = round(float(y)), round(float(x))
                near = scene.instance_map[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
                if v == 2:
                    seen += 1
                    assert 0 <= row < scene.size_hw[0]
                    assert 0 <= column < scene.size_hw[1]
                    assert (near >= k + 1).any(), "within two pixels there is the digit, or one in front of it"
                else:
                    hidden += 1
    assert seen > 100
    assert hidden > 0


def test_uv_is_defined_exactly_on_digits_and_runs_across_them() -> None:
    scene = next(s for s in map(Digitscape("train", seed=4).scene, range(20)) if len(s) >= 2)
    assert scene.uv is not None
    assert np.array_equal(np.isfinite(scene.uv).all(axis=2), scene.instance_map > 0)
    for mask, visibility in zip(scene.masks, scene.visibility, strict=True):
        values = scene.uv[mask]
        assert values.min() >= 0
        assert values.max() <= 1
        if visibility > 0.99:
            assert np.ptp(values, axis=0).min() > 0.6


def test_ink_stands_out_from_the_background() -> None:
    """Strokes stay visible: the same scene without digits differs by many grey levels beneath the ink."""
    style = SceneStyle(empty_share=0.0, noise_std=0.0, blur_share=0.0)
    for index in range(10):
        scene = Digitscape("test", seed=9, style=style).scene(index)
        luma = scene.image_rgb.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        for mask in scene.masks:
            ring = _grown(mask, 3) & (scene.instance_map == 0)
            colour_gap = np.abs(scene.image_rgb[mask].mean(axis=0) - scene.image_rgb[ring].mean(axis=0)).max()
            assert max(colour_gap, abs(luma[mask].mean() - luma[ring].mean())) > 20


def _grown(mask: np.ndarray, by_px: int) -> np.ndarray:
    grown = mask.copy()
    for _ in range(by_px):
        padded = np.pad(grown, 1)
        grown = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:] | grown
    return grown


def test_some_scenes_are_empty_and_valid() -> None:
    scene = Digitscape("train", style=SceneStyle(empty_share=1.0)).scene(0)
    assert len(scene) == 0
    assert scene.masks.shape == (0, 160, 160)
    assert scene.boxes_xyxy.shape == (0, 4)
    assert scene.semantic_map.min() >= FIRST_STUFF_ID


@pytest.mark.parametrize("size_hw", [(160, 160), (192, 256), (97, 131), (32, 32)])
def test_any_size_from_32_pixels(size_hw: tuple[int, int]) -> None:
    scene = Digitscape("test", size_hw).scene(1)
    assert scene.image_rgb.shape == (*size_hw, 3)
    assert scene.image_rgb.dtype == np.uint8


def test_digits_and_sizes_keep_to_the_style() -> None:
    scenes = [Digitscape("train", seed=2).scene(k) for k in range(60)]
    counts = [len(scene) for scene in scenes]
    assert max(counts) <= 8
    assert 0 in counts
    sides = np.concatenate([s.boxes_xyxy[:, 2:] - s.boxes_xyxy[:, :2] for s in scenes if len(s)]).max(axis=1)
    assert 20 < np.percentile(sides, 5)
    assert np.percentile(sides, 95) < 110
    assert {int(label) for scene in scenes for label in scene.labels} == set(range(1, len(CLASS_NAMES) + 1))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Digitscape("nowhere"),  # type: ignore[arg-type]
        lambda: Digitscape("train", (16, 160)),
        lambda: Digitscape("train", seed=-1),
        lambda: SceneStyle(digits=(3, 2)),
        lambda: SceneStyle(digits=(1, _MAX_DIGITS + 1)),
        lambda: Digitscape("train").scene(-1),
        lambda: Digitscape("train").clip(0, 0),
    ],
)
def test_nonsense_is_refused_with_a_reason(build) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DigitscapeError, match=r"\d|nowhere"):
        build()
