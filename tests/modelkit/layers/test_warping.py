"""Warping with flow."""

from __future__ import annotations

import pytest
import torch

from modelkit.layers.warping import warp


def test_no_flow_changes_nothing() -> None:
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    assert (warp(x, torch.zeros(2, 2, 5, 7)) - x).abs().max() < 1e-5


def test_a_cell_shows_what_lies_where_its_flow_points() -> None:
    x = torch.arange(12.0).view(1, 1, 3, 4)
    flow = torch.zeros(1, 2, 3, 4)
    flow[:, 0], flow[:, 1] = 1.0, 0.5
    assert warp(x, flow)[0, 0, 0, :3].tolist() == pytest.approx([3, 4, 5], abs=1e-4)


@pytest.mark.parametrize(("padding", "expected"), [("zeros", 0.0), ("border", 3.0)])
def test_beyond_the_border(padding: str, expected: float) -> None:
    moved = warp(torch.full((1, 1, 4, 4), 3.0), torch.full((1, 2, 4, 4), 9.0), padding)  # type: ignore[arg-type]
    assert float(moved.max()) == pytest.approx(expected)


def test_half_precision_maps_are_moved_as_exactly_as_their_own_digits_allow() -> None:
    x = torch.arange(300.0).view(1, 1, 1, 300).bfloat16()
    flow = torch.zeros(1, 2, 1, 300)
    flow[:, 0] = 1
    assert torch.equal(warp(x, flow)[..., :-1], x[..., 1:])
