"""The code in which a prior speaks about points, and the loss on it (RetinaFace, Deng et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modelkit.onestage.priors import CENTRE_VARIANCE


def encode_points(points: Tensor, priors_cxcywh: Tensor) -> Tensor:
    """Points (n, K, 2 or 3) seen from their priors (n, 4): from the centre, in tenths of the prior's size.

    A third coordinate, depth, is taken from the plane of the picture, in tenths of the prior's width.
    """
    origin, unit = _frame(priors_cxcywh, points.shape[-1])
    return (points - origin) / unit


def decode_points(codes: Tensor, priors_cxcywh: Tensor) -> Tensor:
    """The inverse of ``encode_points``."""
    origin, unit = _frame(priors_cxcywh, codes.shape[-1])
    return origin + codes * unit


def _frame(priors: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(n, 1, width) each: where codes are counted from, and how long one of them is."""
    depth = width - 2
    origin = F.pad(priors[:, :2], (0, depth))
    unit = torch.cat([priors[:, 2:], priors[:, 2:3].expand(-1, depth)], 1) * CENTRE_VARIANCE
    return origin[:, None], unit[:, None]


def point_loss(
    codes: Tensor,
    key: str,
    labels: Tensor,
    matched: Tensor,
    targets: Sequence[Mapping[str, Any]],
    priors_cxcywh: Tensor,
    weights: Tensor | None,
) -> Tensor:
    """Smooth L1 (beta 1), summed over labelled points, over the number of priors whose object has any.

    Args:
        codes: (N, P, K * D), D = 2 or 3.
        key: of the targets' points, (n, K, D + 1), whose last number is 0 where a point is not labelled; a target
            without the key has no labelled points.
        labels, matched: (N, P) of ``FaceMatcher``.
        targets: in resized pixels.
        priors_cxcywh: (P, 4).
        weights: (N, P) of the priors; None: 1 everywhere.
    """
    total, count = codes.sum() * 0, torch.zeros((), device=codes.device)
    for image, target in enumerate(targets):
        positive = torch.nonzero(labels[image] > 0)[:, 0]
        if key not in target or len(positive) == 0:
            continue
        wanted = target[key].to(codes)[matched[image, positive]]
        labelled = wanted[..., -1] > 0
        given = codes[image, positive].view(*labelled.shape, wanted.shape[-1] - 1)
        code = encode_points(wanted[..., :-1], priors_cxcywh[positive])
        # what is not labelled may lie anywhere, even at NaN: it must not be computed with
        loss = F.smooth_l1_loss(given, torch.where(labelled[..., None], code, given.detach()), reduction="none")
        weight = labelled if weights is None else labelled * weights[image, positive, None]
        total = total + (loss * weight[..., None]).sum()
        count = count + labelled.any(1).sum()
    return total / count.clamp(min=1)
