"""The columns of ``landmarks``: parallel lists with an entry per object. Frozen, as all published schemas are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from tasks.output.tables import column

PLAIN, MEASURED = "landmarks.v1", "landmarks_measured.v1"

_PAIRS = pa.list_(pa.list_(pa.int32()))
KEYPOINT_SET = pa.struct(
    [
        pa.field("names", pa.list_(pa.string())),
        pa.field("flip_pairs", _PAIRS),
        pa.field("skeleton", _PAIRS),
        pa.field("sigmas", pa.list_(pa.float64())),
    ]
)

LANDMARKS = [
    column("labels", pa.list_(pa.int32()), "class id per object"),
    column("names", pa.list_(pa.string()), "class name per object"),
    column("scores", pa.list_(pa.float32()), "confidence per object", unit="[0, 1]"),
    column(
        "boxes_xyxy",
        pa.list_(pa.list_(pa.float32())),
        "x0, y0, x1, y1 per object; origin at the top-left corner of the source image",
        unit="px",
    ),
    column(
        "keypoints_xy",
        pa.list_(pa.list_(pa.list_(pa.float32()))),
        "x, y of each keypoint per object, in the order of keypoint_set.names; null where the keypoint is absent;"
        " origin at the top-left corner of the source image, and a keypoint may lie outside of it",
        unit="px",
    ),
    column(
        "keypoint_scores",
        pa.list_(pa.list_(pa.float32())),
        "confidence of each keypoint per object; 0 where it is absent",
        unit="[0, 1]",
    ),
    column(
        "visibility",
        pa.list_(pa.list_(pa.uint8())),
        "COCO's v of each keypoint per object: 0 absent, 1 hidden by something, 2 visible",
    ),
    column(
        "surfaces",
        pa.list_(pa.binary()),
        "dense correspondence per object, a lossless PNG: red is the part of the surface (0: not of the object), green"
        " and blue are 255 times the coordinates U and V on it; null for models without",
    ),
    column(
        "surface_origins_xy",
        pa.list_(pa.list_(pa.int32())),
        "column and row of the source image where the PNG of surfaces begins, per object; null for models without",
        unit="px",
    ),
    column(
        "track_ids",
        pa.list_(pa.int64()),
        "identity across frames per object, within one uri; null for stills and models that don't track",
    ),
    column(
        "keypoint_set",
        KEYPOINT_SET,
        "what the keypoints of every object are, from the weights' record: names, pairs (left, right) that a mirror"
        " exchanges, pairs (from, to) that are joined by a line, sigmas of COCO's OKS (none if nobody measured them);"
        " pairs count from 0; null for models without keypoints",
    ),
]

QUALITIES = [
    column(
        "q_views",
        pa.list_(pa.list_(pa.float32())),
        "how near each keypoint was found in other views of the image, per object; 0 where it is absent, null without"
        " such views",
        unit="[0, 1]",
    ),
]
"""Measured qualities of keypoints, which a job has on top when its predictor measures them (a teacher of the loop may).
"""


def schemas() -> Mapping[str, Sequence[pa.Field]]:
    """Id -> columns beside the common ones."""
    return {PLAIN: LANDMARKS, MEASURED: LANDMARKS + QUALITIES}
