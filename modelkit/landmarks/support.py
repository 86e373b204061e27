"""How much a top-down model sees of points at places that somebody else states, wherever it would put them itself.

A point may be at either of two places to a model; it names one, and its map says that the other was nearly as good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from modelkit.base import Prediction
from modelkit.landmarks.crops import CropGeometry, to_windows
from modelkit.landmarks.landmarker import TopDownModel
from modelkit.predictor import Predictor, Prepared
from modelkit.transform import Geometry

REACH = 2
"""Cells around a place whose largest value counts."""


@dataclass(frozen=True, slots=True)
class AimedGeometry(CropGeometry):
    """A crop with the places that are asked about.

    Args:
        points_xy: one of each point, source pixels.
    """

    points_xy: tuple[tuple[float, float], ...]


def gives_support(predictor: Predictor) -> bool:
    """Whether a model can be asked about places: a top-down model whose network gives maps."""
    return isinstance(predictor.model, TopDownModel) and predictor.model.gives_maps


def aimed(crop: Prepared, points_xy: np.ndarray) -> Prepared:
    """A crop of ``prepare_objects`` with the places (K, 2) that are asked about, source pixels."""
    assert isinstance(crop.geometry, CropGeometry)
    known = {each.name: getattr(crop.geometry, each.name) for each in fields(CropGeometry)}
    places = tuple((float(x), float(y)) for x, y in points_xy)
    return replace(crop, geometry=AimedGeometry(**known, points_xy=places))


@torch.inference_mode()
def found_with_support(predictor: Predictor, crops: Sequence[Prepared]) -> list[tuple[Prediction, np.ndarray]]:
    """Of crops that :func:`aimed` made what ``predictor.infer`` gives, and what the maps say near the places.

    Args:
        predictor: one that :func:`gives_support`.
        crops: at least one.

    Returns:
        For each crop its raw result on the host, and (K,) float32 in [0, 1].
    """
    model, geometries = predictor.model, [crop.geometry for crop in crops]
    assert isinstance(model, TopDownModel)
    raw = predictor.forward_fn(predictor.batch(crops))
    maps = model.maps(raw).float()
    values = near(maps, torch.stack([_on_map(geometry, maps) for geometry in geometries])).cpu().numpy()
    return [(found.cpu(), support) for found, support in zip(predictor.decode(raw, geometries), values, strict=True)]


def _on_map(geometry: Geometry, maps: Tensor) -> Tensor:
    assert isinstance(geometry, AimedGeometry)
    points, window = maps.new_tensor(geometry.points_xy), maps.new_tensor(geometry.window_xyxy)
    return to_windows(points[None], window[None], (maps.shape[-2], maps.shape[-1]))[0]


def near(maps: Tensor, places_xy: Tensor, reach: int = REACH) -> Tensor:
    """(N, K) the largest value of maps (N, K, h, w) within ``reach`` cells of places (N, K, 2), clamped to [0, 1].

    Places further beyond the map than that, and NaN, have 0.
    """
    height, width = (side + 2 * reach for side in maps.shape[-2:])
    around = F.max_pool2d(F.pad(maps.clamp(0, 1), (reach,) * 4), 2 * reach + 1, stride=1, padding=reach)
    cells = places_xy.nan_to_num(nan=-1e6).floor() + reach
    limit = cells.new_tensor((width, height))
    column, row = cells.clamp(min=0).minimum(limit - 1).long().unbind(-1)
    values = around.flatten(2).gather(2, (row * width + column)[..., None])[..., 0]
    return torch.where(((cells >= 0) & (cells < limit)).all(-1), values, 0.0)
