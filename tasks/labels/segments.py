"""Label sets from our own Parquet: a job's output taken as labels, or a label set that was stored before."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import DatasetError
from infra.store import open_store, split_uri
from modelkit import ClassInfo
from tasks.labels.label_sets import LabelledItem, LabelledObject, LabelSet, make_label_set
from tasks.output.classes import classes_of
from tasks.output.table_schemas import SCHEMAS
from tasks.output.tables import SCHEMA_KEY, checked
from tasks.output.views import views_of

CLASSES_KEY = b"visionmill.classes"
_ROWS = """
SELECT uri, media, frame, width, height, labels, scores, boxes_xyxy, rles, is_thing, track_ids
FROM items WHERE status = 'ok' ORDER BY uri, frame
"""


def read_output(output_uri: str, *, score: float) -> LabelSet:
    """The newest results of a job as labels whose source is "model": for distillation, or as drafts for people.

    Args:
        output_uri: a job's output.
        score: objects below it are left out.
    """
    views = views_of(open_store(output_uri))
    names = classes_of(views)
    things: dict[int, bool] = dict.fromkeys(names, True)
    items = []
    try:
        for batch in views.connection.sql(_ROWS).to_arrow_reader(2_000):
            for row in batch.to_pylist():
                things.update(zip(row["labels"], row["is_thing"], strict=True))
                items.append(_item(row, score))
    finally:
        views.connection.close()
    classes = [ClassInfo(label, names.get(label, f"class {label}"), things[label]) for label in sorted(things)]
    return make_label_set(items, classes, origin_format="visionmill")


def _item(row: dict[str, object], score: float) -> LabelledItem:
    columns = [row[name] for name in ("labels", "scores", "boxes_xyxy")]
    rles = row["rles"] or [None] * len(row["labels"])  # type: ignore[arg-type]
    tracks = row["track_ids"] or [None] * len(row["labels"])  # type: ignore[arg-type]
    objects = tuple(
        LabelledObject(label, mask, tuple(box), track_id=track, source="model", origin_id=str(position))
        for position, (label, confidence, box, mask, track) in enumerate(zip(*columns, rles, tracks, strict=True))  # type: ignore[call-overload]
        if confidence >= score
    )
    frame = int(row["frame"]) if row["media"] == "video" else None  # type: ignore[call-overload]
    return LabelledItem(str(row["uri"]), (int(row["height"]), int(row["width"])), objects, frame)  # type: ignore[call-overload]


def store_label_set(uri: str, labels: LabelSet) -> None:
    """Write a label set as one Parquet object, its classes in the footer; the same labels have the same bytes."""
    root, key = split_uri(uri)
    classes = json.dumps([[each.id, each.name, each.is_thing] for each in labels.classes]).encode()
    metadata = {SCHEMA_KEY: SCHEMAS["labels"][0].encode(), CLASSES_KEY: classes}
    sink = pa.BufferOutputStream()
    table = checked("labels", labels.table).replace_schema_metadata(metadata)
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    open_store(root).put(key, sink.getvalue().to_pybytes())


def read_stored(uri: str) -> LabelSet:
    """The inverse of :func:`store_label_set`. Raises DatasetError when it is no label set."""
    root, key = split_uri(uri)
    try:
        table = pq.read_table(pa.BufferReader(open_store(root).get(key)))
        metadata = table.schema.metadata or {}
        if metadata.get(SCHEMA_KEY, b"").decode() != SCHEMAS["labels"][0]:
            raise ValueError(f"it holds {metadata.get(SCHEMA_KEY, b'no schema of ours').decode()}")
        classes = tuple(ClassInfo(*each) for each in json.loads(metadata[CLASSES_KEY]))
        return LabelSet(checked("labels", table.replace_schema_metadata(None)), classes)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise DatasetError(f"{uri} is no stored label set: {error}") from error
