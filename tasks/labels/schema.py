"""The frozen schema of a label set; changing it without a new version fails ``tests/contracts``."""

from __future__ import annotations

import pyarrow as pa

from tasks.output.tables import TableSpec, column, required

TEXT, TEXTS, FLAGS = pa.string(), pa.list_(pa.string()), pa.list_(pa.bool_())

ITEM = (
    required("image_id", TEXT, "the item: its uri, for a frame of a video followed by #<frame>"),
    required("uri", TEXT, "the object that holds the item"),
    required("group_id", TEXT, "video, scene or cluster of near-duplicates; all its items lie in one split"),
)
"""Columns of every table that names items."""

LABELS = TableSpec(
    "labels",
    2,
    pa.schema(
        [
            *ITEM,
            required("media", TEXT, "image or video"),
            required("frame", pa.int32(), "frame index in presentation order; 0 for an image"),
            required("width", pa.int32(), "columns of the upright source image", unit="px"),
            required("height", pa.int32(), "rows of the upright source image", unit="px"),
            required("labels", pa.list_(pa.int32()), "class id per object"),
            required("names", TEXTS, "class name per object"),
            required(
                "boxes_xyxy",
                pa.list_(pa.list_(pa.float64())),
                "x0, y0, x1, y1 per object as its origin states them, else of the mask; (0, 0) is the top-left corner",
                unit="px",
            ),
            required(
                "areas",
                pa.list_(pa.float64()),
                "area per object as its origin states it; where it does not, of the mask or else of the box",
                unit="px",
            ),
            required(
                "rles",
                pa.list_(pa.binary()),
                "COCO compressed RLE per object, size is [height, width]; null: only a box",
            ),
            required("is_thing", FLAGS, "false for stuff, per object"),
            required(
                "is_crowd", FLAGS, "a region of many objects: neither to be found nor a mistake to find, per object"
            ),
            required("track_ids", pa.list_(pa.int64()), "identity across frames per object; null where none is known"),
            required("sources", TEXTS, "human, model, model_then_human or human_then_model, per object"),
            required("origin_ids", TEXTS, "the object's id in the file it came from"),
            column("void_rle", pa.binary(), "pixels that nobody labelled: neither truth nor background"),
            required("origin_format", TEXT, "format of the file it came from"),
        ]
    ),
)

LABELS_WITH_POINTS = TableSpec(
    "labels",
    3,
    LABELS.schema.append(
        required(
            "keypoint_xyv",
            pa.list_(pa.list_(pa.list_(pa.float64()))),
            "x, y and v of each point, per object; (0, 0) is the top-left corner; v is 0 not given, 1 covered, 2 seen; "
            "null: none is given",
            unit="px",
        )
    ),
)
"""Of label sets in which an object has points; the others stay as they always were, and keep their ids."""

LABELS_WITH_SURFACES = TableSpec(
    "labels",
    4,
    LABELS_WITH_POINTS.schema.append(
        required(
            "surface_points",
            pa.list_(pa.list_(pa.list_(pa.float64()))),
            "x, y (source pixels), part, u and v of labelled points of each object's surface (DensePose); part 0 is "
            "background, u and v lie in [0, 1]; null: none is given",
        )
    ),
)
"""Of label sets in which an object's surface has labelled points; ``keypoint_xyv`` is null where it has no others."""
