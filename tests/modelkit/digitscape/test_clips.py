"""Clips: the same digits keep their ids, and the flow carries one frame onto the next."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from modelkit.digitscape import Digitscape, Scene, SceneStyle

STEADY = SceneStyle(empty_share=0.0, digits=(3, 6), noise_std=0.0, blur_share=0.0)


@pytest.fixture(scope="module")
def clip() -> list[Scene]:
    return Digitscape("test", (160, 192), seed=2, style=STEADY).clip(0, 16)


def test_a_clip_is_seeded_and_its_start_does_not_depend_on_its_length(clip: list[Scene]) -> None:
    again = Digitscape("test", (160, 192), seed=2, style=STEADY).clip(0, 16)
    assert all(np.array_equal(a.image_rgb, b.image_rgb) for a, b in zip(clip, again, strict=True))
    assert len(clip) == 16


def test_a_track_id_always_means_the_same_digit(clip: list[Scene]) -> None:
    labels: dict[int, int] = {}
    for scene in clip:
        assert len(set(scene.track_ids.tolist())) == len(scene)
        for track, label in zip(scene.track_ids.tolist(), scene.labels.tolist(), strict=True):
            assert labels.setdefault(track, label) == label
    assert len(labels) >= 3


def test_front_to_back_order_holds_through_the_clip(clip: list[Scene]) -> None:
    for scene in clip:
        assert (np.diff(scene.track_ids) > 0).all()


def test_flow_carries_each_digit_onto_its_next_place(clip: list[Scene]) -> None:
    """Masks moved by the flow and rounded meet the same track's next mask, or something in front of it."""
    checked = 0
    for here, there in itertools.pairwise(clip):
        assert here.flow_to_next is not None
        for k, track in enumerate(here.track_ids.tolist()):
            following = np.flatnonzero(there.track_ids == track)
            if len(following) == 0:
                continue
            rows, columns = np.nonzero(here.masks[k])
            target = np.stack([columns, rows], axis=1) + here.flow_to_next[rows, columns]
            x, y = np.rint(target).astype(int).T
            inside = (x >= 0) & (x < there.size_hw[1]) & (y >= 0) & (y < there.size_hw[0])
            seen = there.instance_map[y[inside], x[inside]]
            on_it_or_covered = seen >= following[0] + 1
            assert on_it_or_covered.mean() > 0.8, "only rounding at the strokes' borders may miss"
            checked += 1
    assert checked > 30
    assert clip[-1].flow_to_next is None


def test_flow_keeps_the_place_inside_the_digit(clip: list[Scene]) -> None:
    """UV is attached to the digit: following the flow, the digit's own coordinates stay the same."""
    gaps = []
    for here, there in itertools.pairwise(clip):
        assert here.uv is not None
        assert there.uv is not None
        assert here.flow_to_next is not None
        for k, track in enumerate(here.track_ids.tolist()):
            following = np.flatnonzero(there.track_ids == track)
            if len(following) == 0:
                continue
            rows, columns = np.nonzero(here.masks[k])
            target = np.stack([columns, rows], axis=1) + here.flow_to_next[rows, columns]
            x, y = np.rint(target).astype(int).T
            inside = (x >= 0) & (x < there.size_hw[1]) & (y >= 0) & (y < there.size_hw[0])
            x, y, rows, columns = x[inside], y[inside], rows[inside], columns[inside]
            same = there.instance_map[y, x] == following[0] + 1
            extent_px = (here.boxes_xyxy[k, 2:] - here.boxes_xyxy[k, :2]).max()
            gap = np.abs(there.uv[y[same], x[same]] - here.uv[rows[same], columns[same]])
            gaps.append(float(np.median(gap) * extent_px))
    assert np.median(gaps) < 0.5, "half a pixel is what rounding the target costs"


def test_background_flow_is_the_pan_and_moves_the_background_exactly(clip: list[Scene]) -> None:
    moved = 0
    for here, there in itertools.pairwise(clip):
        assert here.flow_to_next is not None
        rows, columns = np.nonzero(here.instance_map == 0)
        flow = here.flow_to_next[rows, columns]
        dx, dy = (int(v) for v in flow[0])
        assert (flow == flow[0]).all()
        y, x = rows + dy, columns + dx
        inside = (x >= 0) & (x < here.size_hw[1]) & (y >= 0) & (y < here.size_hw[0])
        y, x, rows, columns = y[inside], x[inside], rows[inside], columns[inside]
        # two pixels clear of digits in both frames, where no anti-aliased edge reaches
        clear = (_near(there.instance_map)[y, x] == 0) & (_near(here.instance_map)[rows, columns] == 0)
        assert np.array_equal(here.image_rgb[rows[clear], columns[clear]], there.image_rgb[y[clear], x[clear]])
        assert np.array_equal(here.stuff_map[rows, columns], there.stuff_map[y, x])
        moved += bool(dx or dy)
    assert moved > 0


def _near(instance_map: np.ndarray) -> np.ndarray:
    near = instance_map > 0
    for _ in range(2):
        padded = np.pad(near, 1)
        near = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:] | near
        padded = np.pad(near, 1)
        near = padded[:-2, :-2] | padded[2:, 2:] | padded[2:, :-2] | padded[:-2, 2:] | near
    return near


def test_digits_move_and_get_covered_over_a_longer_clip() -> None:
    frames = Digitscape("train", (128, 128), seed=5, style=SceneStyle(digits=(6, 8), empty_share=0.0)).clip(1, 24)
    first, last = frames[0], frames[-1]
    common = set(first.track_ids.tolist()) & set(last.track_ids.tolist())
    travelled = [
        np.abs(
            first.landmarks[list(first.track_ids).index(t), 4, :2]
            - last.landmarks[list(last.track_ids).index(t), 4, :2]
        ).max()
        for t in common
    ]
    assert max(travelled) > 10
    visibility = {}
    for scene in frames:
        for track, value in zip(scene.track_ids.tolist(), scene.visibility.tolist(), strict=True):
            visibility.setdefault(track, []).append(value)
    assert any(min(values) < 0.6 for values in visibility.values()), "digits pass in front of each other or leave"
