"""Errors of points beside plain loops over objects and points, and values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from modelkit.metrics import (
    area_under_curve,
    between,
    box_diagonal,
    failure_rate,
    geodesic_point_similarity,
    masked_point_similarity,
    mean_errors,
    object_diagonal,
    pck,
    point_errors,
    point_offsets,
)


def objects(seed: int, count: int = 12, points: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Found (n, K, 2) with some missing, true (n, K, 3) with some unlabelled, boxes."""
    random = np.random.default_rng(seed)
    true = np.concatenate([random.uniform(0, 90, (count, points, 2)), random.integers(0, 3, (count, points, 1))], 2)
    true[0, :, 2] = 0
    found = true[..., :2] + random.normal(0, 8, (count, points, 2))
    found[random.random((count, points)) < 0.1] = np.nan
    corners = random.uniform(0, 40, (count, 2))
    return found, true, np.concatenate([corners, corners + random.uniform(10, 50, (count, 2))], 1)


def by_loops(found: np.ndarray, true: np.ndarray, lengths: np.ndarray) -> list[list[float]]:
    """Errors of the points that count, by object; objects without a length have none."""
    errors: list[list[float]] = []
    for mine, theirs, length in zip(found, true, lengths, strict=True):
        errors.append([])
        for (x, y), (tx, ty, v) in zip(mine, theirs, strict=True):
            if v > 0 and not math.isnan(length):
                errors[-1].append(math.inf if math.isnan(x) else math.dist((x, y), (tx, ty)) / length)
    return errors


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("normaliser", [box_diagonal, object_diagonal, between([0], [1]), between([0, 1], [2, 3])])
def test_errors_and_what_is_counted_of_them_equal_plain_loops(seed: int, normaliser: object) -> None:
    found, true, boxes = objects(seed)
    lengths = normaliser(true, boxes)  # type: ignore[operator]
    errors, loops = point_errors(found, true, lengths), by_loops(found, true, lengths)
    assert [[e for e in row if not math.isnan(e)] for row in errors.tolist()] == [pytest.approx(row) for row in loops]
    means = [sum(row) / len(row) if row else math.nan for row in loops]
    np.testing.assert_allclose(mean_errors(errors), means)
    flat = [error for row in loops for error in row]
    for threshold in (0.05, 0.2, 1.0):
        assert pck(errors, threshold) == pytest.approx(sum(e <= threshold for e in flat) / len(flat))
    known = [each for each in means if not math.isnan(each)]
    assert failure_rate(mean_errors(errors), 0.2) == pytest.approx(sum(e > 0.2 for e in known) / len(known))


def test_the_area_under_the_curve_is_that_of_its_steps() -> None:
    errors = np.abs(np.random.default_rng(0).normal(0, 0.08, 200))
    steps = np.linspace(0, 0.1, 20_001)
    shares = [(errors <= t).mean() for t in steps[::20]]
    assert area_under_curve(errors, 0.1) == pytest.approx(np.trapezoid(shares, steps[::20]) / 0.1, abs=1e-3)
    assert area_under_curve(np.array([0.0, 0.05, 0.1, 9.0, np.inf, np.nan]), 0.1) == pytest.approx(1.5 / 5)


def test_lengths_by_hand() -> None:
    true = np.array([[[0.0, 0, 2], [3, 4, 1], [9, 9, 0]], [[1, 1, 0], [2, 2, 0], [3, 3, 2]]])
    boxes = np.array([[0.0, 0, 6, 8], [1, 1, 1, 1]])
    np.testing.assert_allclose(box_diagonal(true, boxes), [10, np.nan])
    np.testing.assert_allclose(object_diagonal(true, boxes), [5, np.nan])
    np.testing.assert_allclose(between([0], [1])(true, boxes), [5, np.nan])


def test_what_nobody_labelled_counts_nowhere() -> None:
    nothing = np.full((2, 3), np.nan)
    assert math.isnan(pck(nothing, 1.0)) and math.isnan(area_under_curve(nothing, 1.0))
    assert np.isnan(mean_errors(nothing)).all() and np.isnan(geodesic_point_similarity(nothing)).all()


def test_gps_is_a_bell_over_the_way_along_the_surface() -> None:
    distances = np.array([[0.255, 0.255], [0.0, np.inf], [0.0, np.nan]])
    gps = geodesic_point_similarity(distances)
    np.testing.assert_allclose(gps, [0.60653, 0.5, 1.0], atol=1e-5)
    by_part = geodesic_point_similarity(np.array([[0.351, 0.107]]), np.array([[0.351, 0.107]]))
    np.testing.assert_allclose(by_part, [math.exp(-0.5)])
    np.testing.assert_allclose(masked_point_similarity(gps, np.array([1.0, 0.5, 0.25])), np.sqrt(gps * [1, 0.5, 0.25]))


def test_offsets_are_as_long_as_errors_and_point_from_the_true_place_to_the_found_one() -> None:
    found, true, boxes = objects(3)
    lengths = box_diagonal(true, boxes)
    errors, offsets = point_errors(found, true, lengths), point_offsets(found, true, lengths)
    finite = np.isfinite(errors)
    assert np.array_equal(finite, np.isfinite(offsets).all(2)) and finite.any() and not finite.all()
    assert np.hypot(*offsets[finite].T) == pytest.approx(errors[finite])
    right_and_up = point_offsets(np.array([[[14.0, 7.0]]]), np.array([[[10.0, 10.0, 1.0]]]), np.array([10.0]))
    assert right_and_up.tolist() == [[[0.4, -0.3]]]
