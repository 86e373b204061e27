"""Label sets as one Parquet object: the rows of ``labels.v2``, and in the footer what they are and their classes.

The footer holds ``visionmill.schema`` (``labels.v2``; ``labels.v1``, whose areas were whole numbers, is read, too) and
``visionmill.classes``, JSON [[id, name, is_thing], ...]. Where objects have points the rows are ``labels.v3``, and
``visionmill.points`` says what the points are, as ``KeypointSet.to_json`` does; where their surfaces have points the
rows are ``labels.v4``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import DatasetError
from infra.store import Store, open_store, split_uri
from modelkit import ClassInfo
from modelkit.carriers.landmarks import KeypointSet
from tasks.labels.class_map import FileClass, as_file_classes, map_classes
from tasks.labels.label_sets import LabelSet, relabelled
from tasks.labels.schema import LABELS, LABELS_WITH_POINTS, LABELS_WITH_SURFACES
from tasks.labels.shapes import BoxError, box_xyxy
from tasks.output.tables import SCHEMA_KEY, checked

CLASSES_KEY = b"visionmill.classes"
POINTS_KEY = b"visionmill.points"


_READABLE = {"labels.v1": LABELS} | {
    each.schema_id: each for each in (LABELS, LABELS_WITH_POINTS, LABELS_WITH_SURFACES)
}


def write_stored(labels: LabelSet, store: Store, key: str) -> None:
    """A label set as one Parquet object; equal label sets give equal bytes."""
    classes = json.dumps([[each.id, each.name, each.is_thing] for each in labels.classes])
    [schema] = [each for each in _READABLE.values() if each.schema.names == labels.table.schema.names][:1]
    metadata = {SCHEMA_KEY.decode(): schema.schema_id, CLASSES_KEY.decode(): classes}
    if labels.points is not None:
        metadata[POINTS_KEY.decode()] = json.dumps(labels.points.to_json())
    sink = pa.BufferOutputStream()
    pq.write_table(labels.table.replace_schema_metadata(metadata), sink)
    store.put(key, sink.getvalue().to_pybytes())


def read_stored(uri: str, *, classes: Sequence[FileClass] | None = None) -> LabelSet:
    """The label set in a Parquet object.

    Args:
        uri: the object.
        classes: use these, by name.

    Raises:
        DatasetError: it is none, as a job's own rows are; or a box in it is none.
    """
    root, key = split_uri(uri)
    try:
        table = pq.read_table(pa.BufferReader(open_store(root).get(key)))
        metadata = table.schema.metadata or {}
        schema = _READABLE.get(metadata.get(SCHEMA_KEY, b"").decode())
        if schema is None:
            raise ValueError(f"it holds {metadata.get(SCHEMA_KEY, b'no schema of ours').decode()}")
        found = [ClassInfo(*each) for each in json.loads(metadata[CLASSES_KEY])]
        points = KeypointSet.from_json(json.loads(metadata[POINTS_KEY])) if POINTS_KEY in metadata else None
        if schema is LABELS_WITH_POINTS and points is None:
            raise KeyError(POINTS_KEY.decode())
        labels = LabelSet(checked(schema, table.replace_schema_metadata(None)), tuple(found), points=points)
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{uri} is no stored label set: {error}") from error
    _check_boxes(labels, uri)
    known = map_classes(as_file_classes(found), classes)
    ids = {each.id: known.ids[str(each.id)] for each in found}
    return relabelled(labels, ids, known.classes, known.file_ids)


def _check_boxes(labels: LabelSet, uri: str) -> None:
    for row in labels.table.select(["image_id", "boxes_xyxy", "origin_ids"]).to_pylist():
        for (x0, y0, x1, y1), name in zip(row["boxes_xyxy"], row["origin_ids"], strict=True):
            try:
                box_xyxy(x0, y0, x1 - x0, y1 - y0)
            except BoxError as error:
                raise DatasetError(f"{uri}: object {name!r} of {row['image_id']}: {error}") from None
