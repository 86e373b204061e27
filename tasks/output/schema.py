"""The frozen Arrow schemas of what we write. Changing one without a new version fails ``tests/contracts``.

One row per item, also for items that failed. What was found sits in parallel list columns of equal length, so that a
query reads only the columns it names, and ``UNNEST``/``explode``/``arrays_zip`` zip them back.
"""

from __future__ import annotations

import pyarrow as pa

from tasks.records import Product


def _field(name: str, kind: pa.DataType, meaning: str, *, unit: str = "", nullable: bool = True) -> pa.Field:
    metadata = {"meaning": meaning} | ({"unit": unit} if unit else {})
    return pa.field(name, kind, nullable=nullable, metadata=metadata)


COMMON = [
    _field("uri", pa.string(), "what the item is called: object URI, or container!/member", nullable=False),
    _field("etag", pa.string(), "identity of the bytes that were read, as listed", nullable=False),
    _field("media", pa.string(), "image or video", nullable=False),
    _field("frame", pa.int32(), "frame index in presentation order; 0 for an image", nullable=False),
    _field("pts_s", pa.float64(), "presentation time of the frame; null for an image", unit="s"),
    _field("width", pa.int32(), "columns of the source image after EXIF rotation; null if unknown", unit="px"),
    _field("height", pa.int32(), "rows of the source image after EXIF rotation; null if unknown", unit="px"),
    _field("status", pa.string(), "ok, failed or quarantined", nullable=False),
    _field("stage", pa.string(), "leg that failed: inventory, fetch, decode, infer, encode; null if ok"),
    _field("error_type", pa.string(), "kind of the failure; null if ok"),
    _field("error", pa.string(), "the failure in one line; null if ok"),
    _field("notes", pa.list_(pa.string()), "what decoding had to do, e.g. 'animated: first of 12 frames'"),
    _field("model", pa.string(), "name@digest of the weights", nullable=False),
    _field("run_id", pa.string(), "the run that made this row", nullable=False),
    _field("shard_id", pa.string(), "the shard that holds this row", nullable=False),
    _field("processed_at", pa.timestamp("us", tz="UTC"), "when the row was made", nullable=False),
]

SEGMENTS = [
    _field("labels", pa.list_(pa.int32()), "class id per instance"),
    _field("names", pa.list_(pa.string()), "class name per instance"),
    _field("scores", pa.list_(pa.float32()), "confidence per instance", unit="[0, 1]"),
    _field(
        "boxes_xyxy",
        pa.list_(pa.list_(pa.float32())),
        "x0, y0, x1, y1 per instance; origin at the top-left corner of the source image",
        unit="px",
    ),
    _field("areas", pa.list_(pa.int64()), "mask area per instance (box area for models without masks)", unit="px"),
    _field("rles", pa.list_(pa.binary()), "COCO compressed RLE counts per instance, size is [height, width]"),
    _field("is_thing", pa.list_(pa.bool_()), "false for stuff, per instance"),
    _field(
        "track_ids",
        pa.list_(pa.int64()),
        "identity across frames per instance, within one uri; null for stuff, stills and models that don't track",
    ),
]

QUALITIES = [
    _field("q_stability", pa.list_(pa.float32()), "IoU of the masks at logit +1 and -1 per instance", unit="[0, 1]"),
    _field(
        "q_tta",
        pa.list_(pa.float32()),
        "mean over augmented views of the best IoU with an instance of the same class there, per instance;"
        " null without such views",
        unit="[0, 1]",
    ),
]
"""Measured qualities of masks, which a job has on top when its predictor measures them (a teacher of the loop does)."""

SCHEMAS: dict[Product, tuple[str, pa.Schema]] = {
    "segments": ("segments.v1", pa.schema(COMMON + SEGMENTS)),
}

MEASURED_SCHEMAS: dict[Product, tuple[str, pa.Schema]] = {
    "segments": ("segments_measured.v1", pa.schema(COMMON + SEGMENTS + QUALITIES)),
}


def schema_of(product: Product, *, measured: bool = False) -> tuple[str, pa.Schema]:
    """The id (``segments.v1``) and the Arrow schema of a product. Raises KeyError for a product not yet built.

    Args:
        product: whose rows.
        measured: with the qualities of masks.
    """
    return (MEASURED_SCHEMAS if measured else SCHEMAS)[product]


def schema_named(schema_id: str) -> pa.Schema:
    """The Arrow schema that a version names. Raises KeyError for one that is not known here."""
    return dict([*SCHEMAS.values(), *MEASURED_SCHEMAS.values()])[schema_id]
