"""The decoding of semantic maps as a graph for one image; see ``modelkit.base.VisionModel.traced``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from modelkit.exporting.canvas import Canvas, bilinear_weights, classes_at_source, stretched

if TYPE_CHECKING:
    from modelkit.semantic.segmentor import SemanticSegmentor


def traced_label_map(model: SemanticSegmentor, raw: Mapping[str, Tensor], canvas: Canvas) -> dict[str, Tensor]:
    """``label_map`` (H, W): the class of every source pixel, by the rule of ``model.upsample``."""
    logits = raw["logits"][0].float()
    if model.upsample == "network":
        found = classes_at_source(raw["label_map"][0], canvas.content_hw, canvas)
    elif model.upsample == "coarse":
        found = classes_at_source(model.argmax(logits), canvas.cells(logits.shape[-2:]), canvas)
    else:
        found = model.argmax(_at_source(model.upsample, logits, canvas))
    return {"label_map": found}


def _at_source(rule: str, logits: Tensor, canvas: Canvas) -> Tensor:
    """Logits (C, h, w) to (C, H, W): from the grid at once, or by way of the network's input."""
    if rule == "grid":
        return stretched(logits, canvas)
    padded = F.interpolate(logits[None], size=canvas.padded_hw, mode="bilinear", align_corners=False)[0]
    down, across = (
        bilinear_weights(side, have, cells)
        for side, have, cells in zip(canvas.source_hw, canvas.content_hw.unbind(), canvas.padded_hw, strict=True)
    )
    return torch.matmul(torch.matmul(down, padded), across.T)
