"""The product: everything that generic code asks of ``landmarks``."""

from __future__ import annotations

from infra.by_name import lazily
from tasks.product import Product
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
    kinds={"keypoints": None},
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
)
