"""The columns of ``segments``: parallel lists with an entry per instance. Frozen, as all published schemas are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from tasks.output.tables import column

PLAIN, MEASURED = "segments.v1", "segments_measured.v1"

SEGMENTS = [
    column("labels", pa.list_(pa.int32()), "class id per instance"),
    column("names", pa.list_(pa.string()), "class name per instance"),
    column("scores", pa.list_(pa.float32()), "confidence per instance", unit="[0, 1]"),
    column(
        "boxes_xyxy",
        pa.list_(pa.list_(pa.float32())),
        "x0, y0, x1, y1 per instance; origin at the top-left corner of the source image",
        unit="px",
    ),
    column("areas", pa.list_(pa.int64()), "mask area per instance (box area for models without masks)", unit="px"),
    column("rles", pa.list_(pa.binary()), "COCO compressed RLE counts per instance, size is [height, width]"),
    column("is_thing", pa.list_(pa.bool_()), "false for stuff, per instance"),
    column(
        "track_ids",
        pa.list_(pa.int64()),
        "identity across frames per instance, within one uri; null for stuff, stills and models that don't track",
    ),
]

QUALITIES = [
    column("q_stability", pa.list_(pa.float32()), "IoU of the masks at logit +1 and -1 per instance", unit="[0, 1]"),
    column(
        "q_tta",
        pa.list_(pa.float32()),
        "mean over augmented views of the best IoU with an instance of the same class there, per instance;"
        " null without such views",
        unit="[0, 1]",
    ),
]
"""Measured qualities of masks, which a job has on top when its predictor measures them (a teacher of the loop does)."""


def schemas() -> Mapping[str, Sequence[pa.Field]]:
    """Id -> columns beside the common ones."""
    return {PLAIN: SEGMENTS, MEASURED: SEGMENTS + QUALITIES}
