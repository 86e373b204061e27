"""The SQL views of ``segments`` beside the common ones."""

from __future__ import annotations

INSTANCES = """
SELECT uri, etag, media, frame, pts_s, CAST(i - 1 AS INTEGER) AS instance,
       labels[i] AS label, names[i] AS name, scores[i] AS score,
       boxes_xyxy[i][1] AS x0, boxes_xyxy[i][2] AS y0, boxes_xyxy[i][3] AS x1, boxes_xyxy[i][4] AS y1,
       areas[i] AS area, rles[i] AS rle, is_thing[i] AS is_thing, track_ids[i] AS track_id,
       q_stability[i] AS q_stability, q_tta[i] AS q_tta,
       width, height, model, version
FROM (SELECT *, unnest(range(1, len(labels) + 1)) AS i FROM items WHERE status = 'ok')
"""  # unnest over the lists themselves would read all of them, also the masks: indexing prunes

_LISTS = ("labels", "names", "scores", "boxes_xyxy", "areas", "rles", "is_thing", "track_ids", "q_stability", "q_tta")
SCORED = f"""
SELECT * EXCLUDE (kept) REPLACE ({", ".join(f"list_select({name}, kept) AS {name}" for name in _LISTS)})
FROM (SELECT *, list_filter(range(1, len(labels) + 1), lambda i: scores[i] >= {{min_score}} OR NOT is_thing[i]) AS kept
      FROM {{items}})
"""
"""Stuff stays whatever its score: every pixel has one class, and a region left out would be a hole in the map."""
