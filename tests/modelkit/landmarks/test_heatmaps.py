"""Points to heatmaps and back: as exact as the literature says, at every place, in our pixel convention."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.landmarks import BLUR, by_loop, heatmaps
from modelkit import ConfigError
from modelkit.landmarks.heatmaps import (
    HeatmapCodec,
    argmax_points,
    cauchy_heatmaps,
    dark_points,
    gaussian_heatmaps,
    mass_points,
    quarter_points,
    soft_argmax_points,
)
from modelkit.landmarks.losses import coordinate_loss, heatmap_loss, wing

FEW = settings(max_examples=40, deadline=None, derandomize=True)
MAP = (64, 48)


def centres(count: int = 500) -> Tensor:
    """(1, count, 2) float64, far from the borders, so that no bell is cut off."""
    draws = torch.rand((1, count, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return 14 + draws * (torch.tensor(MAP[::-1]) - 28)


def errors(found: Tensor, true: Tensor) -> Tensor:
    """|error| in x and y."""
    return (found - true).abs().flatten()


def test_decoders_are_as_exact_as_the_literature_says() -> None:
    """Mean |error| in cells on exact Gaussians, sigma 2, 64 x 48, 500 places."""
    true = centres()
    maps = gaussian_heatmaps(true, MAP, 2.0)
    assert errors(argmax_points(maps), true).mean() == pytest.approx(0.252, abs=0.01)
    assert errors(quarter_points(maps), true).mean() == pytest.approx(0.126, abs=0.005)
    assert errors(dark_points(maps), true).max() < 1e-9
    assert errors(dark_points(maps, blur=11), true).max() == pytest.approx(3.4e-4, rel=0.15)
    assert errors(mass_points(maps), true).mean() < 1e-7
    single = gaussian_heatmaps(true.float(), MAP, 2.0)
    assert errors(dark_points(single), true).max() < 1e-4, "in float32 as well"


def test_soft_argmax_is_between_cells_and_moves_with_the_map() -> None:
    maps = gaussian_heatmaps(centres(20), MAP, 2.0)
    found = soft_argmax_points(maps, 20.0)
    assert errors(found, centres(20)).max() < 0.05
    assert torch.allclose(soft_argmax_points(maps.roll(1, -1), 20.0)[..., 0], found[..., 0] + 1, atol=1e-6)
    flat = soft_argmax_points(maps, 0.01)
    assert torch.allclose(flat, torch.tensor(MAP[::-1]).double() / 2, atol=0.5), "a small beta draws to the middle"
    maps.requires_grad_()
    soft_argmax_points(maps, 10.0).sum().backward()
    assert maps.grad is not None and bool((maps.grad != 0).any())


def test_bells_have_the_values_of_their_formulas() -> None:
    middle = torch.tensor([[[4.5, 4.5]]], dtype=torch.float64)  # the centre of a cell
    bell = gaussian_heatmaps(middle, (9, 9), 1.0)[0, 0]
    assert bell[4, 4:7].tolist() == pytest.approx([1, 0.60653066, 0.13533528])
    assert float(bell[5, 5]) == pytest.approx(0.36787944)
    plain = cauchy_heatmaps(middle, (9, 9), 1.0, normalised=False)[0, 0]
    assert plain[4, 4:8].tolist() == pytest.approx([1, 0.35355339, 0.08944272, 0.03162278])
    assert float(cauchy_heatmaps(middle, (9, 9), 2.0, normalised=False).max()) == pytest.approx(0.25)
    assert float(cauchy_heatmaps(middle, (9, 9), 2.0).max()) == 1


def test_the_biased_bell_stands_in_the_middle_of_its_cell_and_is_cut_off() -> None:
    bell = gaussian_heatmaps(torch.tensor([[[10.9, 7.1]]]), (20, 20), 1.0, biased=True)[0, 0]
    assert float(bell[7, 10]) == bell.max() == 1
    assert int((bell > 0).sum()) == 7 * 7
    assert float(gaussian_heatmaps(torch.tensor([[[10.9, 7.1]]]), (20, 20), 1.0)[0, 0].max()) < 1


@FEW
@given(x=st.floats(9.5, 38.5), y=st.floats(9.5, 54.5), sigma=st.floats(1.0, 3.0))
def test_every_decoder_finds_every_place_again(x: float, y: float, sigma: float) -> None:
    true = torch.tensor([[[x, y]]], dtype=torch.float64)
    exact, cauchy = gaussian_heatmaps(true, MAP, sigma), cauchy_heatmaps(true, MAP, sigma)
    biased = gaussian_heatmaps(true, MAP, sigma, biased=True)
    assert errors(dark_points(exact), true).max() < 1e-6
    assert errors(dark_points(cauchy), true).max() < 0.4
    for maps in (exact, biased, cauchy):
        assert errors(argmax_points(maps), true).max() <= 0.5 + 1e-6
    assert errors(quarter_points(exact), true).max() <= 0.25 + 1e-6
    assert errors(mass_points(exact, radius=math.ceil(3 * sigma)), true).max() < 0.1


@FEW
@given(x=st.floats(-3, 51), y=st.floats(-3, 67))
def test_places_near_and_beyond_the_border_stay_on_the_map(x: float, y: float) -> None:
    maps = gaussian_heatmaps(torch.tensor([[[x, y]]]), MAP, 2.0)
    for decoder in ("argmax", "quarter", "dark", "soft_argmax", "centre_of_mass"):
        (found,), _ = HeatmapCodec(decoder=decoder).decode(maps)
        assert bool(((found >= 0) & (found <= torch.tensor(MAP[::-1]))).all()), decoder


@FEW
@given(x=st.floats(6.5, 41.5), y=st.floats(6.5, 57.5))
def test_a_mirror_needs_no_shift(x: float, y: float) -> None:
    maps = gaussian_heatmaps(torch.tensor([[[x, y]]], dtype=torch.float64), MAP, 2.0).flip(-1)
    assert dark_points(maps)[0, 0].tolist() == pytest.approx([48 - x, y], abs=1e-6)


def test_all_maps_are_decoded_at_once_as_one_by_one() -> None:
    maps = torch.rand((3, 5, *MAP), generator=torch.Generator().manual_seed(1))
    codec = HeatmapCodec()
    points, scores = codec.decode(maps)
    assert points.shape == (3, 5, 2) and scores.shape == (3, 5)
    for n in range(3):
        for k in range(5):
            alone, score = codec.decode(maps[n : n + 1, k : k + 1])
            assert torch.allclose(alone[0, 0], points[n, k]) and score[0, 0] == scores[n, k]


def test_dark_places_are_those_of_maps_that_are_smoothed_whole_and_one_by_one() -> None:
    maps = heatmaps()[:4]
    assert np.abs(dark_points(maps, BLUR).numpy() - by_loop(maps.numpy())).max() < 1e-4


def test_a_map_without_a_peak_has_no_point() -> None:
    maps = torch.full((1, 2, 8, 8), -1.0)
    maps[0, 1, 3, 4] = 1.5
    points, scores = HeatmapCodec(decoder="argmax").decode(maps)
    assert points[0, 0].isnan().all() and points[0, 1].tolist() == [4.5, 3.5]
    assert scores.tolist() == [[0.0, 1.0]]


def test_points_that_nobody_labelled_and_bells_outside_weigh_nothing() -> None:
    keypoints = torch.tensor([[[4.0, 4, 0], [4.0, 4, 1], [-6.5, 4, 2], [-7.5, 4, 2], [15.9, 4, 2], [16.0, 4, 2]]])
    assert HeatmapCodec(sigma=2.0).weights(keypoints, (10, 10)).tolist() == [[0, 1, 0, 0, 1, 0]]
    assert HeatmapCodec(sigma=2.0).weights(torch.tensor([[[-5.9, 4, 2]]]), (10, 10)).tolist() == [[1]]


@pytest.mark.parametrize("kind", ["heatmap", "l1", "smooth_l1", "wing"])
def test_weight_0_gives_no_gradient_and_half_the_weight_half_of_it(kind: str) -> None:
    weights = torch.tensor([[1.0, 0.0, 0.5]])
    shape = (1, 3, 8, 8) if kind == "heatmap" else (1, 3, 2)
    given, wanted = torch.full(shape, 0.3, requires_grad=True), torch.zeros(shape)
    wanted[0, 1] = torch.nan  # nobody knows
    loss = heatmap_loss(given, wanted, weights) if kind == "heatmap" else coordinate_loss(given, wanted, weights, kind)
    loss.backward()
    assert given.grad is not None and bool(torch.isfinite(loss))
    whole, none, half = given.grad[0]
    assert bool((none == 0).all()) and bool((whole != 0).all())
    assert torch.allclose(half, whole / 2)


def test_wing_is_steep_near_zero_and_goes_on_without_a_jump() -> None:
    assert float(wing(torch.tensor(2.0))) == pytest.approx(10 * math.log(2))
    assert float(wing(torch.tensor(-10.0))) == pytest.approx(float(wing(torch.tensor(9.9999))), abs=1e-3)
    assert float(wing(torch.tensor(25.0)) - wing(torch.tensor(20.0))) == pytest.approx(5)


def test_settings_that_make_no_sense_are_refused() -> None:
    for options in ({"decoder": "guess"}, {"sigma": 0.0}, {"blur": 4}, {"colour": 1}):
        with pytest.raises(ConfigError):
            HeatmapCodec.from_config(options)
    assert HeatmapCodec.from_config(HeatmapCodec(sigma=1.0).to_config()) == HeatmapCodec(sigma=1.0)
