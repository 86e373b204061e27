"""How far found points are from true ones, over the size of the object: NME, failures, AUC, PCK.

A *normaliser* says what distances are divided by, for each object. It is always named beside a figure, since figures of
different normalisers do not compare. Points that nobody labelled (v = 0) count nowhere; one that is labelled and was
not found counts as infinitely far away where shares are counted, and leaves its object without an NME.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Normaliser = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""True points (n, K, 3) and boxes (n, 4) xyxy -> (n,) pixels; NaN where an object has no such distance."""


def box_diagonal(true_xyv: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
    """Of the labelled boxes."""
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    return _positive(np.hypot(sides[:, 0], sides[:, 1]))


def object_diagonal(true_xyv: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
    """Of the tight boxes around the labelled points."""
    places = np.where(true_xyv[..., 2:] > 0, true_xyv[..., :2], np.nan)
    known = np.isfinite(places[..., 0]).any(1)
    spans = np.zeros((len(places), 2))
    spans[known] = np.nanmax(places[known], 1) - np.nanmin(places[known], 1)
    return _positive(np.hypot(spans[:, 0], spans[:, 1]))


def between(first: Sequence[int], second: Sequence[int]) -> Normaliser:
    """Between the means of two groups of points, all of which must be labelled.

    The outer corners of the eyes ("inter-ocular"), a shoulder and the hip across ("torso"), neck and top of the head.
    """

    def distance(true_xyv: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
        start, end = (true_xyv[:, list(group)] for group in (first, second))
        known = (start[..., 2] > 0).all(1) & (end[..., 2] > 0).all(1)
        apart = start[..., :2].mean(1) - end[..., :2].mean(1)
        return _positive(np.where(known, np.hypot(apart[:, 0], apart[:, 1]), np.nan))

    return distance


def _positive(lengths: np.ndarray) -> np.ndarray:
    return np.where(lengths > 0, lengths, np.nan)


def point_errors(found_xy: np.ndarray, true_xyv: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Distance of each found point to the true one, over the length of its object.

    Args:
        found_xy: (n, K, 2) of the same objects; NaN where a point was not found.
        true_xyv: (n, K, 3), v > 0 where a point is labelled.
        lengths: (n,) of a normaliser.

    Returns:
        (n, K), infinite where a labelled point was not found, NaN where nobody labelled it or the object has no length.
    """
    apart = np.asarray(found_xy, np.float64) - true_xyv[..., :2]
    errors = np.hypot(apart[..., 0], apart[..., 1])
    missing = ~np.isfinite(errors)
    counts = (true_xyv[..., 2] > 0) & np.isfinite(lengths)[:, None]
    return np.where(counts, np.where(missing, np.inf, errors) / lengths[:, None], np.nan)


def point_offsets(found_xy: np.ndarray, true_xyv: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Where each found point lies from the true one, over the length of its object: to the right and down is positive.

    Args as of :func:`point_errors`.

    Returns:
        (n, K, 2) dx and dy; NaN where a point was not found, nobody labelled it or the object has no length.
    """
    apart = np.asarray(found_xy, np.float64) - true_xyv[..., :2]
    offsets: np.ndarray = np.where(true_xyv[..., 2:] > 0, apart, np.nan) / lengths[:, None, None]
    return offsets


def mean_errors(errors: np.ndarray) -> np.ndarray:
    """NME of each object: the mean of its errors (n, K) over the points that count; NaN where none does."""
    counts = ~np.isnan(errors)
    total = np.where(counts, errors, 0.0).sum(1)
    return np.where(counts.any(1), total / np.maximum(counts.sum(1), 1), np.nan)


def pck(errors: np.ndarray, threshold: float) -> float:
    """Share of the errors that are at most ``threshold``: PCK of points, 1 - failure rate of objects.

    NaN where nothing counts.
    """
    known = errors[~np.isnan(errors)]
    return float((known <= threshold).mean()) if known.size else float("nan")


def failure_rate(errors: np.ndarray, threshold: float) -> float:
    """Share of the errors above ``threshold``; of objects by their NME, usually at .08 or .1 of the inter-ocular."""
    return 1.0 - pck(errors, threshold)


def area_under_curve(errors: np.ndarray, limit: float) -> float:
    """Area under the share of errors that are at most t, for t from 0 to ``limit``, over ``limit``: in [0, 1].

    The curve is a step for each error, so the area is the mean of max(0, 1 - error / limit), without steps of our own.
    NaN where nothing counts.
    """
    known = errors[~np.isnan(errors)]
    return float(np.maximum(0.0, 1.0 - known / limit).mean()) if known.size else float("nan")


def geodesic_point_similarity(distances: np.ndarray, kappa: float | np.ndarray = 0.255) -> np.ndarray:
    """GPS of objects with dense points (Güler et al. 2018): the mean of exp(-g^2 / (2 kappa^2)).

    Args:
        distances: (n, P) on the surface between where each labelled point is and where it was found; infinite where it
            was found on another part or not at all, NaN where there is no such point.
        kappa: in the unit of the distances: .255 m on the body's model, at which a similarity is .61; or (n, P) as the
            later evaluation has it, by the part that each point is on.

    Returns:
        (n,) in [0, 1], NaN for an object without points.
    """
    counts = ~np.isnan(distances)
    near = np.where(counts, np.exp(-(np.nan_to_num(distances, nan=0.0, posinf=np.inf) ** 2) / (2 * kappa**2)), 0.0)
    return np.where(counts.any(1), near.sum(1) / np.maximum(counts.sum(1), 1), np.nan)


def masked_point_similarity(gps: np.ndarray, mask_ious: np.ndarray) -> np.ndarray:
    """GPSm: the geometric mean of GPS and the IoU of the masks, both (n,)."""
    return np.sqrt(gps * mask_ious)
