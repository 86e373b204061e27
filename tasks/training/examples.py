"""What is trained on: one row per image with its objects, their weights and its ignored regions; content-addressed.

A training set is one immutable Parquet object ``training/sets/<id>.parquet``, named by its rows. Human labels weigh 1;
pseudo-labels bring their own weights and the regions in which their teacher was unsure. Only sets in which objects are
tracked have a column of track ids, so that the others keep the names they always had.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import DatasetError
from infra.store import Store
from tasks.labels.points import NOT_GIVEN, Point
from tasks.labels.surfaces import SurfacePoint
from tasks.output.layout import canonical_json

if TYPE_CHECKING:  # torch: who only writes a set down need not wait for it
    from modelkit.tiling import Window

SETS_FOLDER = "training/sets/"

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class ExampleObject:
    """One object to learn from.

    Args:
        label: class id.
        box_xyxy: source pixels.
        rle: compressed run lengths on the image's canvas; None where only a box is known: then the mask weighs 0.
        class_weight, box_weight, mask_weight: in the losses; 0 = does not teach this.
        track_id: the same in every frame of a video; None where nobody said.
        keypoint_xyv: x, y (source pixels) and v of each of its points; None where none is given.
        surface_points: labelled points of its surface; None where none is given.
    """

    label: int
    box_xyxy: Box
    rle: bytes | None
    class_weight: float = 1.0
    box_weight: float = 1.0
    mask_weight: float = 1.0
    track_id: int | None = None
    keypoint_xyv: tuple[Point, ...] | None = None
    surface_points: tuple[SurfacePoint, ...] | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """One image to learn from.

    Args:
        uri: of the image or video.
        size_hw: of the upright image.
        objects: may be empty: an image of pure background.
        frame: of a video; None for an image.
        origin: "human" or "pseudo".
        ignore_boxes: regions in which nothing is learnt, see ``modelkit.detection.targets``.
        void_rle: pixels that are neither a class nor background.
        unsure_rle: pixels that do not teach but count in the mean of a semantic loss.
        abstaining: class ids of which nothing is said, neither where they are nor where they are not.
        window: of a tile: where it lies in its picture, whose pixels are ``picture_hw``; all else is in the tile's own.
            Training sets hold whole pictures, these two are never stored.
        piece, seen_hw: of a part that a kind cut out (``Kind.pieces_of``): which one of its picture it is, and the size
            that it is reduced to; None: what the model's transform makes of it. Never stored, either.
    """

    uri: str
    size_hw: tuple[int, int]
    objects: tuple[ExampleObject, ...] = ()
    frame: int | None = None
    origin: str = "human"
    ignore_boxes: tuple[Box, ...] = field(default=())
    void_rle: bytes | None = None
    unsure_rle: bytes | None = None
    abstaining: tuple[int, ...] = ()
    window: Window | None = None
    picture_hw: tuple[int, int] | None = None
    piece: int | None = None
    seen_hw: tuple[int, int] | None = None

    @property
    def image_id(self) -> str:
        """The uri, for a frame of a video followed by #<frame>."""
        return self.uri if self.frame is None else f"{self.uri}#{self.frame}"


def _column(name: str, kind: pa.DataType, meaning: str) -> pa.Field:
    return pa.field(name, kind, metadata={"meaning": meaning})


_REALS, _BOXES = pa.list_(pa.float32()), pa.list_(pa.list_(pa.float32()))
SCHEMA = pa.schema(
    [
        _column("image_id", pa.string(), "the uri, for a frame of a video followed by #<frame>"),
        _column("uri", pa.string(), "the object that holds the image"),
        _column("frame", pa.int32(), "frame index of a video; null for an image"),
        _column("height", pa.int32(), "rows of the upright image"),
        _column("width", pa.int32(), "columns of the upright image"),
        _column("origin", pa.string(), "human or pseudo"),
        _column("labels", pa.list_(pa.int32()), "class id per object"),
        _column("boxes_xyxy", _BOXES, "source pixels, per object"),
        _column("rles", pa.list_(pa.binary()), "COCO compressed RLE per object; null: only a box"),
        _column("class_weights", _REALS, "weight in the class losses, per object"),
        _column("box_weights", _REALS, "weight in the box losses, per object"),
        _column("mask_weights", _REALS, "weight in the mask loss, per object"),
        _column("ignore_boxes", _BOXES, "regions in which nothing is learnt"),
        _column("void_rle", pa.binary(), "pixels that are neither a class nor background"),
        _column("unsure_rle", pa.binary(), "pixels that do not teach but count in the mean"),
    ],
    metadata={b"visionmill.schema": b"training_set.v1"},
)
TRACKED_SCHEMA = SCHEMA.append(
    _column("track_ids", pa.list_(pa.int64()), "per object, the same in every frame of a video; null: unknown")
).with_metadata({b"visionmill.schema": b"training_set.v2"})
POINTS_SCHEMA = TRACKED_SCHEMA.append(
    _column(
        "keypoint_xyv",
        pa.list_(pa.list_(pa.list_(pa.float32()))),
        "x, y (source pixels) and v of each point, per object; null: none is given",
    )
).with_metadata({b"visionmill.schema": b"training_set.v3"})

ABSTAINING_SCHEMA = POINTS_SCHEMA.append(
    _column("abstaining", pa.list_(pa.int32()), "class ids of which nothing is said, sorted")
).with_metadata({b"visionmill.schema": b"training_set.v4"})

SURFACES_SCHEMA = ABSTAINING_SCHEMA.append(
    _column(
        "surface_points",
        pa.list_(pa.list_(pa.list_(pa.float32()))),
        "x, y (source pixels), part, u and v of labelled points of each object's surface; null: none is given",
    )
).with_metadata({b"visionmill.schema": b"training_set.v5"})


def save_training_set(store: Store, examples: Iterable[Example]) -> str:
    """Make a training set exist, sorted by image; its id (64 hex digits). Equal examples have equal ids.

    Raises:
        DatasetError: no examples, or an image twice.
    """
    ordered = sorted(examples, key=lambda example: example.image_id)
    if not ordered:
        raise DatasetError("a training set needs at least one image")
    objects = [each for example in ordered for each in example.objects]
    schema = TRACKED_SCHEMA if any(each.track_id is not None for each in objects) else SCHEMA
    if any(each.keypoint_xyv is not None for each in objects):
        schema = POINTS_SCHEMA
    if any(example.abstaining for example in ordered):
        schema = ABSTAINING_SCHEMA
    if any(each.surface_points is not None for each in objects):
        schema = SURFACES_SCHEMA
    rows = [_row(example) for example in ordered]
    for one, other in itertools.pairwise(rows):
        if one["image_id"] == other["image_id"]:
            raise DatasetError(f"{one['image_id']} is in the training set twice", hint="Merge its labels.")
    table = pa.Table.from_pylist(rows, schema=schema)  # which drops what it does not name
    # Digested after Arrow has rounded to float32, so that what is read back has the same id.
    set_id = hashlib.sha256(b"\n".join(canonical_json(_plain(row)) for row in table.to_pylist())).hexdigest()
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=3, write_page_checksum=True)
    store.put_if_absent(key_of(set_id), sink.getvalue().to_pybytes())
    return set_id


def key_of(set_id: str) -> str:
    """Where a training set lies."""
    return f"{SETS_FOLDER}{set_id}.parquet"


def load_training_set(store: Store, set_id: str) -> list[Example]:
    """The examples of a training set, sorted by image; raises StoreError when there is none of this id."""
    table = pq.read_table(pa.BufferReader(store.get(key_of(set_id))), page_checksum_verification=True)
    return [_example(row) for row in table.to_pylist()]


def _row(example: Example) -> dict[str, Any]:
    return {
        "image_id": example.image_id,
        "uri": example.uri,
        "frame": example.frame,
        "height": example.size_hw[0],
        "width": example.size_hw[1],
        "origin": example.origin,
        "labels": [each.label for each in example.objects],
        "boxes_xyxy": [list(each.box_xyxy) for each in example.objects],
        "rles": [each.rle for each in example.objects],
        "class_weights": [each.class_weight for each in example.objects],
        "box_weights": [each.box_weight for each in example.objects],
        "mask_weights": [each.mask_weight if each.rle is not None else 0.0 for each in example.objects],
        "ignore_boxes": [list(box) for box in example.ignore_boxes],
        "void_rle": example.void_rle,
        "unsure_rle": example.unsure_rle,
        "track_ids": [each.track_id for each in example.objects],
        "keypoint_xyv": [each.keypoint_xyv for each in example.objects],
        "abstaining": list(example.abstaining),
        "surface_points": [each.surface_points for each in example.objects],
    }


def _example(row: dict[str, Any]) -> Example:
    columns = [row[name] for name in ("labels", "boxes_xyxy", "rles", "class_weights", "box_weights", "mask_weights")]
    optional = ("track_ids", "keypoint_xyv", "surface_points")
    columns += [row.get(name) or [None] * len(row["labels"]) for name in optional]
    return Example(
        uri=row["uri"],
        size_hw=(row["height"], row["width"]),
        objects=tuple(
            ExampleObject(
                label, _box(box), rle, for_class, for_box, for_mask, track, _points(points), _surface(surface)
            )
            for label, box, rle, for_class, for_box, for_mask, track, points, surface in zip(*columns, strict=True)
        ),
        frame=row["frame"],
        origin=row["origin"],
        ignore_boxes=tuple(_box(box) for box in row["ignore_boxes"]),
        void_rle=row["void_rle"],
        unsure_rle=row["unsure_rle"],
        abstaining=tuple(row.get("abstaining") or ()),
    )


def _box(values: Sequence[float]) -> Box:
    x1, y1, x2, y2 = values
    return x1, y1, x2, y2


def _points(values: Sequence[Sequence[float]] | None) -> tuple[Point, ...] | None:
    return None if values is None else tuple((x, y, v) for x, y, v in values)


def _surface(values: Sequence[Sequence[float]] | None) -> tuple[SurfacePoint, ...] | None:
    return None if values is None else tuple((x, y, part, u, v) for x, y, part, u, v in values)


def moved_surface(points: tuple[SurfacePoint, ...] | None, window: Window) -> tuple[SurfacePoint, ...] | None:
    """Points of a surface in pixels of a window of their picture, without those outside of it."""
    if points is None:
        return None
    rows, columns = window.size_hw
    moved = [(x - window.left, y - window.top, *rest) for x, y, *rest in points]
    return _surface([each for each in moved if 0 <= each[0] < columns and 0 <= each[1] < rows])


def moved_points(points: tuple[Point, ...] | None, window: Window) -> tuple[Point, ...] | None:
    """Points in pixels of a window of their picture; those outside of it are not given any more."""
    if points is None:
        return None
    rows, columns = window.size_hw
    moved = [(x - window.left, y - window.top, v) for x, y, v in points]
    return tuple(each if 0 <= each[0] < columns and 0 <= each[1] < rows else NOT_GIVEN for each in moved)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value.hex() if isinstance(value, bytes) else value


def examples_of_labels(rows: Iterable[dict[str, Any]]) -> list[Example]:
    """Rows of a label set as examples: crowds become ignored regions, everything else weighs 1.

    Tracks count in frames of videos; an image has no earlier frame.
    """
    return [_of_label_row(row) for row in rows]


def _of_label_row(row: dict[str, Any]) -> Example:
    objects, ignored = [], []
    is_frame = row["media"] == "video"
    placed, surfaces = (row.get(name) or [None] * len(row["labels"]) for name in ("keypoint_xyv", "surface_points"))
    columns = (row["labels"], row["boxes_xyxy"], row["rles"], row["is_crowd"], row["track_ids"], placed, surfaces)
    for label, box, rle, crowd, track, points, surface in zip(*columns, strict=True):
        if crowd:
            ignored.append(_box(box))
        else:
            weight, track_id = float(rle is not None), track if is_frame else None
            objects.append(
                ExampleObject(
                    label,
                    _box(box),
                    rle,
                    mask_weight=weight,
                    track_id=track_id,
                    keypoint_xyv=_points(points),
                    surface_points=_surface(surface),
                )
            )
    return Example(
        uri=row["uri"],
        size_hw=(row["height"], row["width"]),
        objects=tuple(objects),
        frame=row["frame"] if is_frame else None,
        ignore_boxes=tuple(ignored),
        void_rle=row["void_rle"],
    )
