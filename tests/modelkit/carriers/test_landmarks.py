"""What landmark models find: shapes are checked, points stay with their objects, and records say what points are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from modelkit.carriers.landmarks import ABSENT, VISIBLE, KeypointSet, Landmarks, Surface
from modelkit.records import Weights, read_record, write_record

FACE = KeypointSet(
    ("left eye", "right eye", "nose"), flip_pairs=((0, 1),), skeleton=((0, 2), (1, 2)), sigmas=(0.1,) * 3
)


def some(n: int = 3, points: int = 2) -> Landmarks:
    draws = np.random.default_rng(0)
    return Landmarks(
        (40, 60),
        draws.random((n, 4), np.float32),
        draws.random(n, np.float32),
        np.arange(n, dtype=np.int32),
        draws.random((n, points, 2), np.float32),
        draws.random((n, points), np.float32),
        np.full((n, points), VISIBLE, np.uint8),
        surfaces=[Surface((k, 0), np.full((2, 2), k, np.uint8), np.zeros((2, 2, 2), np.uint8)) for k in range(n)],
    )


def test_chosen_objects_keep_their_points_and_surfaces() -> None:
    found = some()
    chosen = found.chosen(np.array([2, 0]))
    assert chosen.labels.tolist() == [2, 0] and [each.origin_xy for each in chosen.surfaces or ()] == [(2, 0), (0, 0)]
    assert np.array_equal(chosen.keypoints_xy, found.keypoints_xy[[2, 0]])
    assert len(found.at_least(float(found.scores.max()))) == 1
    assert len(Landmarks.empty((4, 5), 7)) == 0 and Landmarks.empty((4, 5), 7).keypoint_scores.shape == (0, 7)


def test_points_of_another_number_than_their_scores_are_refused() -> None:
    with pytest.raises(ValueError, match=r"keypoints_xy must have shape \(3, 2, 2\)"):
        replace(some(), keypoints_xy=np.zeros((3, 5, 2), np.float32))
    with pytest.raises(ValueError, match="surfaces must be 3"):
        replace(some(), surfaces=[])


def test_a_point_is_absent_everywhere_or_nowhere() -> None:
    found = some()
    gone, places = found.visibility.copy(), found.keypoints_xy.copy()
    gone[1, 0] = ABSENT
    with pytest.raises(ValueError, match="NaN exactly where"):
        replace(found, visibility=gone)
    places[1, 0] = np.nan
    assert replace(found, visibility=gone, keypoints_xy=places).visibility[1, 0] == ABSENT


def test_a_set_of_keypoints_survives_json_and_refuses_what_makes_no_sense() -> None:
    assert KeypointSet.from_json(json.loads(json.dumps(FACE.to_json()))) == FACE
    assert len(KeypointSet.numbered(5)) == 5
    with pytest.raises(ValueError, match="called alike"):
        KeypointSet(("a", "a"))
    with pytest.raises(ValueError, match="from 0 to 2"):
        replace(FACE, skeleton=((0, 3),))
    with pytest.raises(ValueError, match="more than one partner"):
        replace(FACE, flip_pairs=((0, 1), (1, 2)))
    with pytest.raises(ValueError, match="3 positive sigmas"):
        replace(FACE, sigmas=(0.1,))
    with pytest.raises(ValueError, match="has no colour"):
        KeypointSet.from_json({"names": ["a"], "colour": 1})


def test_records_say_what_points_are_and_older_ones_stay_as_they_were(tmp_path: Path) -> None:
    plain = Weights("w", "a", {}, "keypoints", (), {}, "0" * 64, 1)
    assert "keypoints" not in plain.to_json()
    write_record(tmp_path / "w.json", replace(plain, keypoints=FACE))
    assert read_record(tmp_path / "w.json") == replace(plain, keypoints=FACE)
    assert replace(plain, keypoints=FACE).rows_digest != plain.rows_digest
