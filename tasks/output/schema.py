"""The frozen Arrow schemas of what we write. Changing one without a new version fails ``tests/contracts``.

One row per item, also for items that failed: the columns that all products have, then those of the product. What was
found sits in parallel list columns of equal length, so that a query reads only the columns it names, and
``UNNEST``/``explode``/``arrays_zip`` zip them back.
"""

from __future__ import annotations

import pyarrow as pa

from infra.errors import StoreError
from tasks.output.tables import column, required
from tasks.product import find_product

COMMON = [
    required("uri", pa.string(), "what the item is called: object URI, or container!/member"),
    required("etag", pa.string(), "identity of the bytes that were read, as listed"),
    required("media", pa.string(), "image or video"),
    required("frame", pa.int32(), "frame index in presentation order; 0 for an image"),
    column("pts_s", pa.float64(), "presentation time of the frame; null for an image", unit="s"),
    column("width", pa.int32(), "columns of the source image after EXIF rotation; null if unknown", unit="px"),
    column("height", pa.int32(), "rows of the source image after EXIF rotation; null if unknown", unit="px"),
    required("status", pa.string(), "ok, failed or quarantined"),
    column("stage", pa.string(), "leg that failed: inventory, fetch, decode, infer, encode; null if ok"),
    column("error_type", pa.string(), "kind of the failure; null if ok"),
    column("error", pa.string(), "the failure in one line; null if ok"),
    column("notes", pa.list_(pa.string()), "what decoding had to do, e.g. 'animated: first of 12 frames'"),
    required("model", pa.string(), "name@digest of the weights"),
    required("run_id", pa.string(), "the run that made this row"),
    required("shard_id", pa.string(), "the shard that holds this row"),
    required("processed_at", pa.timestamp("us", tz="UTC"), "when the row was made"),
]


def schema_named(product: str, schema_id: str) -> pa.Schema:
    """The Arrow schema that a version of a product names.

    Raises:
        UsageError: there is no such product.
        StoreError: the product has no such schema.
    """
    known = find_product(product).schemas()
    if schema_id not in known:
        raise StoreError(
            f"rows of {schema_id!r} are not known here; of {product} there is {', '.join(known)}",
            hint="A newer visionmill wrote them: read them with that one.",
        )
    return pa.schema([*COMMON, *known[schema_id]])


def widest_schema(product: str) -> pa.Schema:
    """Every column that rows of a product may have: what views show, null where a version has no such column."""
    fields = {each.name: each for own in find_product(product).schemas().values() for each in own}
    return pa.schema([*COMMON, *fields.values()])
