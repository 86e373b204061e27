"""Where an image of any size lies inside a graph whose network has one fixed shape, and how maps get back to it.

A graph is traced once and must hold for every image, so nothing here branches on values: sizes that depend on the image
are tensors, and everything is arithmetic with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modelkit.carriers import SizeHW


@dataclass(frozen=True, slots=True)
class Canvas:
    """The counterpart of ``modelkit.transform.Geometry`` while a graph is traced.

    Args:
        source_hw: rows and columns of the image as given; symbols while tracing.
        content_hw: (2,) float64: rows and columns of its content inside the network's input.
        padded_hw: of the network's input, fixed.
    """

    source_hw: SizeHW
    content_hw: Tensor
    padded_hw: SizeHW

    @property
    def source(self) -> Tensor:
        """(2,) float64: ``source_hw`` as a tensor."""
        return torch.stack([torch.scalar_tensor(side, dtype=torch.float64) for side in self.source_hw])

    @property
    def limits(self) -> Tensor:
        """(4,) float32: largest x, y, x, y of a box on the content."""
        return self.content_hw.flip(0).repeat(2).float()

    def cells(self, grid_hw: Sequence[int]) -> Tensor:
        """(2,) float64: rows and columns of a grid over the network's input that lie on the content; at least one."""
        share = self.content_hw / torch.tensor(self.padded_hw, dtype=torch.float64)
        return (share * torch.tensor(list(grid_hw), dtype=torch.float64)).round().clamp(min=1)

    def boxes_to_source(self, boxes_xyxy: Tensor) -> Tensor:
        """Boxes (n, 4) in pixels of the network's input to source pixels, in the arithmetic of ``scale_boxes``."""
        ratio = self.source.float() / self.content_hw.float()
        return boxes_xyxy * ratio.flip(0).repeat(2)

    def clipped_to_source(self, boxes_xyxy: Tensor) -> Tensor:
        """Boxes (n, 4) to source pixels, cut off at the image's borders."""
        limits = self.source.flip(0).repeat(2).float()
        return torch.minimum(self.boxes_to_source(boxes_xyxy).clamp(min=0), limits)

    def points_to_source(self, points_xy: Tensor) -> Tensor:
        """Points (..., 2) in pixels of the network's input to source pixels."""
        return points_xy * (self.source.float() / self.content_hw.float()).flip(0)


def bilinear_weights(wanted: int, have: Tensor, cells: int) -> Tensor:
    """(wanted, cells) float32: how much each cell counts for each pixel when the first ``have`` of the cells are
    stretched over ``wanted`` pixels: bilinear between centres, torch's ``interpolate`` without ``align_corners``.

    Args:
        wanted: pixels; may be a symbol.
        have: () cells in use, whole.
        cells: of the map, in use or not.
    """
    pixels = torch.scalar_tensor(wanted, dtype=torch.float32)
    place = (torch.arange(wanted) + 0.5) * (have.float() / pixels) - 0.5
    place = torch.minimum(place.clamp(min=0), have.float() - 1)
    return (1 - (place[:, None] - torch.arange(cells)).abs()).clamp(min=0)


def stretched(maps: Tensor, canvas: Canvas) -> Tensor:
    """Maps (n, h, w) over the network's input to (n, H, W) source pixels, bilinear; padding is cut off before."""
    rows, columns = canvas.cells(maps.shape[-2:]).unbind()
    down = bilinear_weights(canvas.source_hw[0], rows, maps.shape[-2])
    across = bilinear_weights(canvas.source_hw[1], columns, maps.shape[-1])
    return down @ maps.float() @ across.T


def classes_at_source(label_map: Tensor, have_hw: Tensor, canvas: Canvas) -> Tensor:
    """A map of classes, of which the first ``have_hw`` rows and columns are the content, as (H, W): each source pixel
    takes the cell that its centre lies in.
    """
    rows, columns = (_nearest(side, have) for side, have in zip(canvas.source_hw, have_hw.unbind(), strict=True))
    return label_map[rows[:, None], columns]


def _nearest(wanted: int, have: Tensor) -> Tensor:
    pixels = torch.scalar_tensor(wanted, dtype=torch.int64)
    return (2 * torch.arange(wanted) + 1) * have.to(torch.int64) // (2 * pixels)


def boxes_on(size_hw: Sequence[int], boxes_xyxy: Tensor, masks: Tensor) -> Tensor:
    """Probabilities (n, M, M) of boxes (n, 4) on a canvas (n, H, W), by torchvision's rule for pasting.

    The mask gets a ring of zeros, the box is widened accordingly and truncated to whole pixels. What lies outside of
    the box is 0.
    """
    knots = masks.shape[-1] + 2
    half = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) * 0.5 * (knots / (knots - 2))
    centre = (boxes_xyxy[:, 2:] + boxes_xyxy[:, :2]) * 0.5
    first, last = (centre - half).to(torch.int64), (centre + half).to(torch.int64)
    sides = (last - first + 1).clamp(min=1)
    across, down = (_knots_of(side, first[:, k], sides[:, k], knots) for k, side in enumerate(reversed(size_hw)))
    return down @ torch.nn.functional.pad(masks, (1, 1, 1, 1)) @ across.transpose(1, 2)


def _knots_of(pixels: int, first: Tensor, count: Tensor, knots: int) -> Tensor:
    """(n, pixels, knots): how much each knot counts for each pixel of an axis; pixels outside of the box see none."""
    inside = torch.arange(pixels)[None] - first[:, None]
    place = (inside + 0.5) * (knots / count.float())[:, None] - 0.5
    place = place.clamp(min=0, max=knots - 1)
    weights = (1 - (place[:, :, None] - torch.arange(knots)).abs()).clamp(min=0)
    return weights * ((inside >= 0) & (inside < count[:, None]))[:, :, None]
