"""The SQL views of ``segments`` beside the common ones."""

from __future__ import annotations

from tasks.product import Things

INSTANCES = """
SELECT uri, etag, media, frame, pts_s, CAST(i - 1 AS INTEGER) AS instance,
       labels[i] AS label, names[i] AS name, scores[i] AS score,
       boxes_xyxy[i][1] AS x0, boxes_xyxy[i][2] AS y0, boxes_xyxy[i][3] AS x1, boxes_xyxy[i][4] AS y1,
       areas[i] AS area, rles[i] AS rle, is_thing[i] AS is_thing, track_ids[i] AS track_id,
       q_stability[i] AS q_stability, q_tta[i] AS q_tta,
       width, height, model, version
FROM (SELECT *, unnest(range(1, len(labels) + 1)) AS i FROM items WHERE status = 'ok')
"""  # unnest over the lists themselves would read all of them, also the masks: indexing prunes

THINGS = Things(view="instances", place="instance", sure="score >= {min_score} OR NOT is_thing")
"""Stuff is the ground that a picture is made of: without a class of it there would be holes, whatever its score."""
