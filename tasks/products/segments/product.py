"""The product: everything that generic code asks of ``segments``."""

from __future__ import annotations

from infra.by_name import lazily
from tasks.product import Demo, Exporter, Product
from tasks.products.segments.parameters import SegmentParameters
from tasks.products.segments.views import INSTANCES, THINGS

_HERE = "tasks.products.segments"

PRODUCT = Product(
    name="segments",
    verb="segment",
    doing="segmenting",
    unit="instances",
    schema="segments.v1",
    schemas=lazily(f"{_HERE}.schema:schemas"),
    parameters=SegmentParameters,
    options=lazily(f"{_HERE}.parameters:model_options"),
    kinds={name: f"{_HERE}.{name}" for name in ("instance", "semantic", "panoptic", "detection")},
    columns=lazily(f"{_HERE}.rows:columns"),
    check=lazily(f"{_HERE}.checks:check"),
    categories=("labels.list.element", "names.list.element"),
    encodings={
        "scores.list.element": "BYTE_STREAM_SPLIT",
        "boxes_xyxy.list.element.list.element": "BYTE_STREAM_SPLIT",
        "q_stability.list.element": "BYTE_STREAM_SPLIT",
        "q_tta.list.element": "BYTE_STREAM_SPLIT",
    },
    views={"instances": INSTANCES},
    things=THINGS,
    functions=lazily(f"{_HERE}.masks_sql:register_mask_functions"),
    function_words=(
        "mask_area(rle)",
        "mask_iou(rle_a, rle_b, height, width)",
        "mask_polygon(rle, height, width)",
    ),
    query="SELECT name, count(*) AS n FROM instances GROUP BY name ORDER BY n DESC",
    exporters={
        "coco": Exporter(
            "COCO's instance JSON, with masks and scores",
            lazily(f"{_HERE}.export_coco:write_coco"),
            "instances.json",
        ),
        "yolo": Exporter(
            "a text file of outlines per image", lazily(f"{_HERE}.export_yolo:write_yolo"), takes_images=True
        ),
        "png": Exporter(
            "maps of classes and of instances, two PNGs per image",
            lazily(f"{_HERE}.export_png:write_png"),
            takes_images=True,
        ),
        "flat": Exporter(
            "a row per instance, Parquet in a folder per class", lazily(f"{_HERE}.export_flat:write_flat")
        ),
        "csv": Exporter("a row per instance, without masks", lazily(f"{_HERE}.export_csv:write_csv"), "instances.csv"),
        "images": Exporter(
            "pictures with what was found drawn upon them", lazily(f"{_HERE}.export_annotated:write_images")
        ),
        "video": Exporter(
            "an MP4 per video with what was found drawn upon it", lazily(f"{_HERE}.export_annotated:write_videos")
        ),
    },
    overlay=lazily(f"{_HERE}.overlay:overlay"),
    panels=lazily(f"{_HERE}.panels:panels"),
    demo=Demo(
        {"model": "digitscape_mask_rcnn"},
        "SELECT name, count(*) AS instances, round(avg(score), 3) AS mean_score,\n"
        "       round(avg(mask_area(rle))) AS mean_area_px\n"
        "FROM instances WHERE score >= 0.5 GROUP BY name ORDER BY name",
    ),
)
