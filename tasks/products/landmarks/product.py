"""The product: everything that generic code asks of ``landmarks``."""

from __future__ import annotations

from infra.by_name import lazily
from tasks.product import Demo, Exporter, Product
from tasks.products.landmarks.parameters import LandmarkParameters
from tasks.products.landmarks.views import KEYPOINTS, OBJECTS, THINGS

_HERE = "tasks.products.landmarks"

PRODUCT = Product(
    name="landmarks",
    verb="landmark",
    doing="landmarking",
    unit="objects",
    schema="landmarks.v1",
    schemas=lazily(f"{_HERE}.schema:schemas"),
    parameters=LandmarkParameters,
    options=lazily(f"{_HERE}.parameters:model_options"),
    predictor=lazily(f"{_HERE}.predictors:predictor_of"),
    kinds={"keypoints": f"{_HERE}.keypoints"},
    columns=lazily(f"{_HERE}.rows:columns"),
    check=lazily(f"{_HERE}.checks:check"),
    categories=(
        "labels.list.element",
        "names.list.element",
        "visibility.list.element.list.element",
        "keypoint_set.names.list.element",
        "keypoint_set.flip_pairs.list.element.list.element",
        "keypoint_set.skeleton.list.element.list.element",
        "keypoint_set.sigmas.list.element",
    ),
    encodings={
        "scores.list.element": "BYTE_STREAM_SPLIT",
        "boxes_xyxy.list.element.list.element": "BYTE_STREAM_SPLIT",
        "keypoints_xy.list.element.list.element.list.element": "BYTE_STREAM_SPLIT",
        "keypoint_scores.list.element.list.element": "BYTE_STREAM_SPLIT",
        "q_views.list.element.list.element": "BYTE_STREAM_SPLIT",
    },
    views={"objects": OBJECTS, "keypoints": KEYPOINTS},
    things=THINGS,
    functions=lazily(f"{_HERE}.points_sql:register_point_functions"),
    function_words=(
        "keypoint_distance(point, other)",
        "keypoint_angle(point, vertex, other)",
        "keypoint_oks(points, true_points, area, sigmas)",
    ),
    query="SELECT name, count(*) AS n, avg(score) AS score FROM keypoints WHERE visible GROUP BY name ORDER BY score",
    exporters={
        "coco": Exporter(
            "COCO's keypoint JSON, with scores", lazily(f"{_HERE}.export_coco:write_coco"), "person_keypoints.json"
        ),
        "csv": Exporter("a row per keypoint", lazily(f"{_HERE}.export_csv:write_csv"), "keypoints.csv"),
        "label_studio": Exporter(
            "tasks for Label Studio, with rectangles and keypoints as predictions",
            lazily(f"{_HERE}.export_label_studio:write_label_studio"),
            "label_studio.json",
        ),
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
        {"model": "digitscape_heatmap", "boxes": "{default}"},
        "SELECT object_name AS digit, count(*) AS points, round(avg(score), 3) AS mean_score\n"
        "FROM keypoints WHERE object_score >= 0.5 GROUP BY digit ORDER BY digit",
    ),
)
