"""Objects are followed through synthetic motion whose truth is known; the filter's jitter and lag are measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from modelkit.carriers.landmarks import Landmarks
from modelkit.digitscape import Digitscape
from modelkit.landmarks import OneEuro
from modelkit.landmarks.tracking import NO_TRACK, Tracking, Tracks, follow
from modelkit.video import VideoState

SIZE = 100.0
SHAPE = np.array([[-30, -40], [30, -40], [0, 0], [-20, 45], [20, 45]], float)  # of a body, about its middle


def people(middles: Iterable[tuple[float, float]], scores: Iterable[float] | None = None, points: int = 5) -> Landmarks:
    """Bodies of a size of 100 pixels about their middles."""
    at = np.array(list(middles), np.float64).reshape(-1, 2)
    n = len(at)
    xy = (at[:, None] + SHAPE[None, :points]).astype(np.float32)
    return Landmarks(
        (480, 2000),
        np.concatenate([at - SIZE / 2, at + SIZE / 2], 1).astype(np.float32),
        np.full(n, 0.9, np.float32) if scores is None else np.array(list(scores), np.float32),
        np.ones(n, np.int32),
        xy,
        np.ones(xy.shape[:2], np.float32),
        np.full(xy.shape[:2], 2, np.uint8),
    )


def followed(clip: Iterable[Landmarks], how: Tracking | None = None) -> list[Landmarks]:
    """A clip from its first frame on; the state goes through bytes, as between two shards."""
    seen, state = [], VideoState(0, {}, {})
    for frame in clip:
        tracks = Tracks.of(state, frame.keypoint_scores.shape[1])
        found, after = follow(frame, tracks, how or Tracking())
        state = VideoState.from_bytes(after.state(state.frame + 1).to_bytes())
        seen.append(found)
    return seen


def ids(frames: Iterable[Landmarks]) -> list[list[int]]:
    return [frame.track_ids.tolist() for frame in frames if frame.track_ids is not None]


def test_two_who_cross_keep_their_ids_whatever_their_order_in_the_frame() -> None:
    clip = []
    for t in range(41):
        middles = [(200 + 10 * t, 200 + t), (600 - 10 * t, 245)]
        clip.append(people(middles[:: 1 if t % 2 else -1]))
    found = ids(followed(clip))
    assert all(sorted(each) == [1, 2] for each in found)
    first, second = found[1]
    assert all(each == ([first, second] if t % 2 else [second, first]) for t, each in enumerate(found))


@pytest.mark.parametrize("points", [5, 0])
def test_a_track_outlives_a_gap_and_ends_after_a_long_one(points: int) -> None:
    def clip(gap: int) -> list[Landmarks]:
        return [people([] if 5 <= t < 5 + gap else [(200 + 8 * t, 200)], points=points) for t in range(30)]

    assert [each[0] for each in ids(followed(clip(9))) if each] == [1] * 21
    assert {each[0] for each in ids(followed(clip(12))) if each} == {1, 2}


def test_an_unsure_object_goes_on_with_a_track_and_starts_none() -> None:
    clip = [people([(200, 200), (900, 200)], scores=(0.9 if t == 0 else 0.1, 0.1)) for t in range(4)]
    assert ids(followed(clip)) == [[1, NO_TRACK]] * 4
    other = replace(people([(200, 200)]), labels=np.array([2], np.int32))
    assert ids(followed([people([(200, 200)]), other])) == [[1], [2]], "a track has one class"


def test_without_a_filter_points_stay_where_they_were_found() -> None:
    clip = [people([(200 + 5 * t, 200)]) for t in range(4)]
    for before, after in zip(clip, followed(clip), strict=True):
        assert (before.keypoints_xy == after.keypoints_xy).all()


def test_the_filter_halves_jitter_at_rest_and_lags_little_in_motion() -> None:
    rng, how = np.random.default_rng(0), Tracking(smoothing=OneEuro())

    def moved(speed: float) -> tuple[np.ndarray, np.ndarray]:
        """(frames, points) errors along x of what was found and of what the filter made of it, of a body that moves."""
        truth = [people([(200 + speed * t, 200)]) for t in range(200)]
        noisy = [replace(each, keypoints_xy=each.keypoints_xy + rng.normal(0, 1, (1, 5, 2)).astype(np.float32))
                 for each in truth]  # fmt: skip
        true = np.stack([each.keypoints_xy[0, :, 0] for each in truth])
        made = (np.stack([each.keypoints_xy[0, :, 0] for each in clip]) for clip in (noisy, followed(noisy, how)))
        raw, smooth = made
        return (raw - true)[50:], (smooth - true)[50:]

    raw, smooth = moved(0.0)
    assert np.diff(smooth, axis=0).std() < 0.4 * np.diff(raw, axis=0).std(), "from frame to frame"
    assert smooth.std() < 0.6 * raw.std()
    raw, smooth = moved(5.0)
    assert -0.035 * SIZE < smooth.mean() < -0.015 * SIZE, "behind the motion, by less than a frame of it"
    [one] = followed([people([(200, 200)])], how)
    assert (one.keypoints_xy == people([(200, 200)]).keypoints_xy).all(), "the first frame is as it was found"


def test_digits_of_clips_keep_their_ids_though_some_are_missed_and_their_points_are_noisy() -> None:
    rng, clips = np.random.default_rng(0), Digitscape("test", size_hw=(96, 128), seed=5)
    jitter: dict[str, list[float]] = {"found": [], "filtered": []}
    switches = objects = 0
    for number in range(1):
        tracks, ids, errors = Tracks.none(5), dict[int, int](), dict[int, tuple[np.ndarray, np.ndarray]]()
        for scene in clips.clip(number, 25):
            seen = np.flatnonzero((scene.visibility > 0.3) & (rng.random(len(scene)) > 0.1))
            true = scene.landmarks[seen, :, :2] + 0.5
            noisy = (true + rng.normal(0, 1, true.shape)).astype(np.float32)
            ones, boxes = np.ones(noisy.shape[:2], np.float32), scene.boxes_xyxy[seen]
            frame = Landmarks(
                scene.size_hw, boxes, ones[:, 0], scene.labels[seen], noisy, ones, (2 * ones).astype(np.uint8)
            )
            filtered, tracks = follow(frame, tracks, Tracking(smoothing=OneEuro()))
            assert filtered.track_ids is not None
            for k, digit in enumerate(scene.track_ids[seen].tolist()):
                switches += ids.get(digit, filtered.track_ids[k]) != filtered.track_ids[k]
                ids[digit], objects = filtered.track_ids[k], objects + 1
                now = noisy[k] - true[k], filtered.keypoints_xy[k] - true[k]
                for name, error, before in zip(jitter, now, errors.get(digit, now), strict=True):
                    jitter[name].append(float(np.linalg.norm(error - before, axis=1).mean()))
                errors[digit] = now
    assert objects > 40 and switches <= 0.01 * objects
    assert np.mean(jitter["filtered"]) < 0.75 * np.mean(jitter["found"])


def test_the_filter_is_the_papers_algorithm() -> None:
    """Of one point along x, computed by hand: alpha = 1 / (1 + 1 / (2 pi cutoff))."""
    tau = 2 * np.pi
    filtered, speed = OneEuro(0.05, 5.0, 0.1)(np.array([[10.0, 0]]), np.zeros((1, 2)), np.zeros((1, 2)), 1, 100.0)
    dx = 0.1 / (1 + 1 / (tau * 0.1))
    alpha = 1 / (1 + 1 / (tau * (0.05 + 5 * dx)))
    assert speed[0] == pytest.approx([dx, 0])
    assert filtered[0] == pytest.approx([10 * alpha, 0])


def test_a_point_that_was_absent_starts_afresh() -> None:
    absent = np.full((1, 2), np.nan)
    filtered, speed = OneEuro()(np.array([[3.0, 4.0]]), absent, np.ones((1, 2)), 1, 10.0)
    assert filtered.tolist() == [[3, 4]] and speed.tolist() == [[0, 0]]
    assert np.isnan(OneEuro()(absent, np.zeros((1, 2)), np.zeros((1, 2)), 1, 10.0)[0]).all()
    with pytest.raises(ValueError, match="cutoffs must be positive"):
        OneEuro(min_cutoff=0)
