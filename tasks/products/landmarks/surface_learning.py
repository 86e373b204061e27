"""What models of surfaces learn from: objects with masks and labelled points of their surfaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from modelkit import rle
from tasks.training.examples import Example, ExampleObject

Target = dict[str, Any]
_NO_POINT = (0.0, 0.0, -1.0, 0.0, 0.0)


def surface_fields(example: Example, objects: Sequence[ExampleObject]) -> Target:
    """``masks`` (n, H, W) uint8, ``mask_weights`` (n,) and ``surface_points`` (n, P, 5) of the objects of a picture.

    P is the largest number of points of an object, 1 at least; where there are fewer, parts are -1. An object without
    a mask weighs nothing, one without points teaches its mask alone.
    """
    masks = np.zeros((len(objects), *example.size_hw), np.uint8)
    for mask, each in zip(masks, objects, strict=True):
        if each.rle is not None:
            mask[:] = rle.decode(each.rle, example.size_hw)
    points = [list(each.surface_points or ()) for each in objects]
    most = max([1, *map(len, points)])
    filled = [[*each, *[_NO_POINT] * (most - len(each))] for each in points]
    weights = [each.mask_weight if each.rle is not None else 0.0 for each in objects]
    return {
        "masks": torch.from_numpy(masks),
        "mask_weights": torch.tensor(weights, dtype=torch.float32),
        "surface_points": torch.tensor(filled, dtype=torch.float32).reshape(len(objects), most, 5),
    }


def with_parts(config: Mapping[str, Any], most: int) -> dict[str, Any]:
    """A config of DensePose R-CNN whose surface has ``most`` parts, or as many as it says where these suffice."""
    heads: Mapping[str, Any] = config.get("heads", {})
    surface: Mapping[str, Any] = heads.get("surface", {"name": "surface_head"})
    stated = int(surface.get("num_parts", DENSEPOSE_PARTS))
    return {**config, "heads": {**heads, "surface": {**surface, "num_parts": max(stated, most)}}}


DENSEPOSE_PARTS = 24
"""Of a body, as DensePose-COCO numbers them; labels of few people lack some of them."""
