"""Average precision of objects with dense points, as DensePose defines it: matched by GPS instead of IoU.

pycocotools matches and counts, by COCO's rules for keypoints, on similarities that are computed here. Published figures
take the way along the mesh of a body between two points of it; there is no mesh here, so the way is the straight one on
the chart of a part, whose sides are 1, and figures are not comparable with published ones.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from modelkit.carriers.landmarks import Surface


def surface_at(surface: Surface, places_xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parts (P,) and coordinates (P, 2) in [0, 1] that a surface has at places of the image; part 0 outside of it.

    Args:
        places_xy: (P, 2) source pixels, as ``modelkit.carriers`` counts them.
    """
    columns, rows = (np.floor(places_xy).astype(np.int64) - surface.origin_xy).T
    height, width = surface.parts.shape
    inside = (columns >= 0) & (rows >= 0) & (columns < width) & (rows < height)
    columns, rows = np.where(inside, columns, 0), np.where(inside, rows, 0)
    return np.where(inside, surface.parts[rows, columns], 0), surface.uv[:, rows, columns].T / 255


def chart_distances(surface: Surface, points: np.ndarray) -> np.ndarray:
    """(P,) how far labelled points of a surface are from where it was found, in sides of a part's chart.

    Args:
        surface: what was found of the object.
        points: (P, 5) x, y (source pixels), part, u and v, as labelled.

    Returns:
        Infinite where another part or nothing was found; NaN of points that are labelled as background.
    """
    parts, uv = surface_at(surface, points[:, :2])
    apart = np.hypot(*(uv - points[:, 3:]).T)
    return np.where(points[:, 2] > 0, np.where(parts == points[:, 2], apart, np.inf), np.nan)


class _BySimilarity(COCOeval):
    """pycocotools' evaluation of keypoints with given similarities; see :func:`similarity_evaluator`."""

    def __init__(self, truth: COCO, found: COCO, similarities: Mapping[int, np.ndarray]) -> None:
        super().__init__(truth, found, "keypoints")
        self._similarities = similarities

    def computeOks(self, imgId: int, catId: int) -> np.ndarray | list[Any]:  # noqa: N802, N803  # pycocotools' names
        """(d, g) of the surest detections of a class and its objects."""
        objects, found = self._gts[imgId, catId], self._dts[imgId, catId]
        if not objects or not found:
            return []
        order = np.argsort([-each["score"] for each in found], kind="mergesort")[: self.params.maxDets[-1]]
        rows = [found[k]["place"] for k in order]
        return np.asarray(self._similarities[imgId][np.ix_(rows, [each["place"] for each in objects])])


def similarity_evaluator(
    truth: dict[str, Any], found: Sequence[dict[str, Any]], similarities: Mapping[int, np.ndarray]
) -> COCOeval | None:
    """pycocotools' evaluator after ``evaluate()``; None when nothing was found.

    Objects without labelled points (``num_keypoints`` 0) and crowds count neither way.

    Args:
        truth: ``images, annotations, categories`` as in COCO's files; ``num_keypoints`` are labelled points of the
            surface, ``place`` is which column of ``similarities`` an object is.
        found: result entries with boxes, and ``place``, their row there.
        similarities: (d, g) of each image, by its id: of what was found and of the labelled objects.
    """
    if not found:
        return None
    with contextlib.redirect_stdout(io.StringIO()):  # it prints tables
        dataset = COCO()
        dataset.dataset = truth | {"annotations": [dict(each) for each in truth["annotations"]]}
        dataset.createIndex()
        evaluator = _BySimilarity(dataset, dataset.loadRes([dict(each) for each in found]), similarities)
        evaluator.evaluate()
        return evaluator
