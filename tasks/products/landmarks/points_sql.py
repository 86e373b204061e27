"""Functions on points for SQL, made of SQL.

| function | gives |
|---|---|
| ``keypoint_distance(point, other)`` | DOUBLE: pixels between two points |
| ``keypoint_angle(point, vertex, other)`` | DOUBLE: degrees in [0, 180] between the lines from ``vertex`` |
| ``keypoint_oks(points, true_points, area, sigmas)`` | DOUBLE: COCO's object keypoint similarity, in [0, 1] |

A point is ``[x, y]`` as in ``keypoints_xy``; ``points['left_hip']`` of the view ``objects`` is one. NULL in, NULL out:
an absent point has no distance. An angle whose ``vertex`` lies upon one of the others is NULL, too.

OKS is the mean of exp(-d^2 / (2 area (2 sigma)^2)) over the true points that are not NULL; one that was not found
counts as 0. ``area`` is the true object's, in square pixels, ``sigmas`` are those of ``keypoint_set``.
"""

from __future__ import annotations

import duckdb

_MACROS = {
    "_keypoint_square(a, b)": "(a[1]::DOUBLE - b[1]) ** 2 + (a[2]::DOUBLE - b[2]) ** 2",
    "keypoint_distance(point, other)": "sqrt(_keypoint_square(point, other))",
    "_keypoint_dot(a, o, b)": "(a[1]::DOUBLE - o[1]) * (b[1]::DOUBLE - o[1])"
    " + (a[2]::DOUBLE - o[2]) * (b[2]::DOUBLE - o[2])",
    "_keypoint_cross(a, o, b)": "(a[1]::DOUBLE - o[1]) * (b[2]::DOUBLE - o[2])"
    " - (a[2]::DOUBLE - o[2]) * (b[1]::DOUBLE - o[1])",
    "keypoint_angle(point, vertex, other)": "CASE WHEN _keypoint_square(point, vertex) > 0"
    " AND _keypoint_square(other, vertex) > 0"
    " THEN degrees(atan2(abs(_keypoint_cross(point, vertex, other)), _keypoint_dot(point, vertex, other))) END",
    "keypoint_oks(points, true_points, area, sigmas)": "list_avg(list_transform("
    "list_filter(range(1, len(true_points) + 1), lambda k: true_points[k] IS NOT NULL), lambda k: coalesce("
    "exp(-_keypoint_square(points[k], true_points[k]) / (2 * area::DOUBLE * (2 * sigmas[k]::DOUBLE) ** 2)), 0)))",
}


def register_point_functions(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the functions known to a connection."""
    for signature, body in _MACROS.items():
        connection.execute(f"CREATE MACRO {signature} AS {body}")
