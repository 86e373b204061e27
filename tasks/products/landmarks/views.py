"""The SQL views of ``landmarks`` beside the common ones: a row per object, and a row per keypoint."""

from __future__ import annotations

from tasks.product import Things

_EACH_OBJECT = "SELECT *, unnest(range(1, len(labels) + 1)) AS i FROM items WHERE status = 'ok'"
# unnest over the lists themselves would read all of them, also the surfaces: indexing prunes

OBJECTS = f"""
SELECT uri, etag, media, frame, pts_s, CAST(i - 1 AS INTEGER) AS object,
       labels[i] AS label, names[i] AS name, scores[i] AS score,
       boxes_xyxy[i][1] AS x0, boxes_xyxy[i][2] AS y0, boxes_xyxy[i][3] AS x1, boxes_xyxy[i][4] AS y1,
       map(coalesce(keypoint_set.names, []), keypoints_xy[i]) AS points,
       keypoints_xy[i] AS keypoints_xy, keypoint_scores[i] AS keypoint_scores, visibility[i] AS visibility,
       surfaces[i] AS surface, surface_origins_xy[i] AS surface_origin_xy,
       track_ids[i] AS track_id, keypoint_set, width, height, model, version
FROM ({_EACH_OBJECT})
"""

KEYPOINTS = f"""
SELECT uri, etag, media, frame, pts_s, CAST(i - 1 AS INTEGER) AS object, CAST(k - 1 AS INTEGER) AS keypoint,
       keypoint_set.names[k] AS name, keypoints_xy[i][k][1] AS x, keypoints_xy[i][k][2] AS y,
       keypoint_scores[i][k] AS score, visibility[i][k] AS visibility, visibility[i][k] = 2 AS visible,
       labels[i] AS label, names[i] AS object_name, scores[i] AS object_score, track_ids[i] AS track_id,
       width, height, model, version
FROM (SELECT *, unnest(range(1, len(visibility[i]) + 1)) AS k FROM ({_EACH_OBJECT}))
"""

THINGS = Things(view="objects", place="object", sure="score >= {min_score}")
