"""From corners to boxes: pairs that belong together, centres that confirm them, and soft suppression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from modelkit.points.gaussians import find_peaks

_SMALL_AREA = 150.0**2  # pixels; larger boxes have a smaller central region


@dataclass(frozen=True, slots=True)
class Peaks:
    """Points of one kind in an image, best first.

    Args:
        xy: (k, 2), cells.
        scores: (k,).
        labels: (k,) long, from 0.
        tags: (k,); zeros where the kind has none.
    """

    xy: Tensor
    scores: Tensor
    labels: Tensor
    tags: Tensor


def read_peaks(raw: Mapping[str, Tensor], kind: str, count: int) -> Peaks:
    """The peaks of one kind of an image's raw maps, moved by their offsets."""
    score, channel, row, column = find_peaks(raw[f"{kind}_maps"].sigmoid(), count)
    real = score > 0
    score, channel, row, column = score[real], channel[real], row[real], column[real]
    xy = torch.stack([column, row], 1) + raw[f"{kind}_offsets"][:, row, column].T
    tags = raw[f"{kind}_tags"][0, row, column] if f"{kind}_tags" in raw else torch.zeros_like(score)
    return Peaks(xy, score, channel, tags)


def group_corners(first: Peaks, last: Peaks, max_distance: float, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes of all pairs of a class whose tags are near and whose corners are on their right sides.

    Args:
        first, last: top left and bottom right corners.
        max_distance: between tags.
        count: so many pairs of the best mean score.

    Returns:
        Boxes (n, 4) in the corners' unit, scores (n,) and labels (n,) from 0, best first.
    """
    fits = (first.labels[:, None] == last.labels) & ((first.tags[:, None] - last.tags).abs() <= max_distance)
    fits &= (last.xy[None] >= first.xy[:, None]).all(2)
    a, b = torch.nonzero(fits, as_tuple=True)
    scores = (first.scores[a] + last.scores[b]) / 2
    scores, best = scores.topk(min(count, len(scores)))
    a, b = a[best], b[best]
    return torch.cat([first.xy[a], last.xy[b]], 1), scores, first.labels[a]


def central_regions(boxes: Tensor) -> Tensor:
    """The middle third of each side of boxes (n, 4) in pixels, or the middle fifth of boxes larger than 150 x 150."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    parts = torch.where(area <= _SMALL_AREA, 3.0, 5.0)[:, None]
    near, far = (parts + 1) / (2 * parts), (parts - 1) / (2 * parts)
    return torch.cat([boxes[:, :2] * near + boxes[:, 2:] * far, boxes[:, :2] * far + boxes[:, 2:] * near], 1)


def confirm_by_centers(boxes: Tensor, scores: Tensor, labels: Tensor, centers: Peaks) -> tuple[Tensor, Tensor, Tensor]:
    """Only boxes with a centre of their class inside of their central region; the best such centre joins the score.

    Args:
        boxes: (n, 4), pixels, as ``centers.xy``.
        scores, labels: (n,).
        centers: best first.

    Returns:
        The boxes that stay, their scores (two thirds of their own, one third of the centre's) and labels.
    """
    if len(centers.scores) == 0:
        return boxes[:0], scores[:0], labels[:0]
    regions = central_regions(boxes)
    inside = ((centers.xy > regions[:, None, :2]) & (centers.xy < regions[:, None, 2:])).all(2)
    inside &= labels[:, None] == centers.labels
    kept, best = inside.any(1), inside.float().argmax(1)
    joined = (2 * scores + centers.scores[best]) / 3
    return boxes[kept], joined[kept], labels[kept]


def soft_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, sigma: float = 0.5, min_score: float = 0.001, count: int = 100
) -> tuple[Tensor, Tensor]:
    """Gaussian soft suppression within each class (Bodla et al. 2017): who overlaps a better box loses score.

    Args:
        boxes: (n, 4).
        scores, labels: (n,).
        sigma: a score is multiplied by exp(-IoU^2 / sigma).
        min_score: boxes that fall below are dropped.
        count: so many come out. They come out by falling score, so the rest need not be looked at.

    Returns:
        (index, score), best first.
    """
    scores, picked, final = scores.clone(), [], []
    for _ in range(min(count, len(scores))):
        best = int(scores.argmax())
        if float(scores[best]) < min_score:
            break
        picked.append(best)
        final.append(float(scores[best]))
        overlap = box_iou(boxes[best : best + 1], boxes)[0] * (labels == labels[best])
        scores *= torch.exp(-(overlap**2) / sigma)
        scores[best] = -1
    return torch.tensor(picked, dtype=torch.int64, device=boxes.device), scores.new_tensor(final)
