"""Three bands on their way from a selection into a training set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from modelkit import rle
from tasks.products.segments.loop_candidates import examples_of_objects, object_candidates
from tasks.products.segments.loop_pixels import examples_of_pixels
from tasks.products.segments.loop_segments import examples_of_segments
from tasks.products.segments.panoptic import panoptic_target
from tasks.products.segments.semantic import semantic_target

MASK = rle.encode(np.pad(np.ones((4, 6), np.uint8), ((3, 13), (2, 12))))


def row(image: str, decision: str, **changes: Any) -> dict[str, Any]:
    return {
        "image_id": image,
        "uri": image,
        "media": "image",
        "frame": 0,
        "width": 20,
        "height": 20,
        "label": 3,
        "box_xyxy": [2.0, 3.0, 8.0, 7.0],
        "rle": MASK,
        "decision": decision,
        "accept_box": False,
        "accept_mask": decision == "accept",
        "weight": 0.8,
        "weight_geometry": 0.6,
        **changes,
    }


def test_accepted_rows_teach_what_was_accepted_ignored_ones_make_regions_and_rejected_ones_nothing() -> None:
    table = pa.Table.from_pylist(
        [
            row("b.png", "accept"),
            row("b.png", "ignore", box_xyxy=[10.0, 10.0, 14.0, 14.0]),
            row("b.png", "reject"),
            row("a.png", "reject"),
            row("c.png", "ignore"),
        ]
    )
    b, c = examples_of_objects(table)
    assert (b.image_id, c.image_id) == ("b.png", "c.png"), (
        "an image in which nothing is believed or doubted is left out"
    )
    [taught] = b.objects
    assert (taught.label, taught.box_xyxy) == (3, (2.0, 3.0, 8.0, 7.0))
    assert (taught.class_weight, taught.box_weight, taught.mask_weight) == (0.8, 0.0, 0.6)
    assert b.ignore_boxes == ((10.0, 10.0, 14.0, 14.0),)
    assert b.origin == "pseudo"
    assert not c.objects and len(c.ignore_boxes) == 1


def test_frames_of_videos_stay_frames() -> None:
    [example] = examples_of_objects(
        pa.Table.from_pylist([row("v.mp4#7", "accept", uri="v.mp4", media="video", frame=7)])
    )
    assert (example.uri, example.frame, example.image_id) == ("v.mp4", 7, "v.mp4#7")


def test_accepted_segments_teach_and_all_other_pixels_are_void() -> None:
    ground = rle.encode(np.pad(np.ones((10, 20), np.uint8), ((10, 0), (0, 0))))
    table = pa.Table.from_pylist(
        [
            row("a.png", "accept"),
            row("a.png", "accept", label=7, rle=ground, box_xyxy=[0.0, 10.0, 20.0, 20.0]),
            row("a.png", "ignore", label=2, box_xyxy=[12.0, 0.0, 17.0, 5.0]),
            row("a.png", "ignore", label=8, box_xyxy=[0.0, 0.0, 20.0, 10.0]),
            row("b.png", "ignore"),
        ]
    )
    [example] = examples_of_segments(table, things={2, 3})
    assert example.image_id == "a.png", "an image of which nothing is believed teaches nothing"
    assert [each.label for each in example.objects] == [3, 7]
    assert example.ignore_boxes == ((12.0, 0.0, 17.0, 5.0),), "where a thing may be; doubted stuff hides no thing"
    target = panoptic_target(example, num_things=3)
    semantic = target["semantic"].numpy()
    assert (semantic[10:] == 7).all() and (semantic[3:7, 2:8] == 3).all()
    assert (semantic == 255).sum() == 200 - 24
    assert target["labels"].tolist() == [3]


def test_accepted_pixels_teach_accepted_background_is_bare_and_all_others_are_unsure() -> None:
    left, right, corner = (
        rle.encode(np.pad(np.ones(size, np.uint8), place))
        for size, place in (
            ((20, 8), ((0, 0), (0, 12))),
            ((20, 8), ((0, 0), (12, 0))),
            ((4, 4), ((16, 0), (8, 8))),
        )
    )
    table = pa.Table.from_pylist(
        [
            row("a.png", "accept", rle=left, weight=1.0),
            row("a.png", "accept", rle=right, label=0),
            row("a.png", "ignore", rle=corner),
            row("b.png", "ignore", rle=left),
        ]
    )
    [example] = examples_of_pixels(table, background=0, classes=[0, 3, 5])
    assert example.abstaining == (5,), "a class of which nothing was accepted is neither taught nor untaught"
    assert example.image_id == "a.png", "an image of which nothing is believed teaches nothing"
    target = semantic_target(example, 0)
    semantic, weights = target["semantic"].numpy(), target["semantic_weights"].numpy()
    assert (semantic[:, :8] == 3).all() and (semantic[:, 12:] == 0).all()
    assert (weights[:, :8] == 1).all() and (weights[:, 12:] == 1).all() and (weights[:, 8:12] == 0).all()
    assert example.origin == "pseudo" and example.void_rle is None


def test_every_object_from_the_floor_on_is_a_candidate_also_beyond_a_hundred() -> None:
    found = 130  # what is no candidate would be taught to be background
    lists = {"labels": 3, "names": "3", "boxes_xyxy": [2.0, 3.0, 8.0, 7.0], "rles": MASK, "areas": 24.0}
    seen = {name: [value] * found for name, value in lists.items()}
    candidates = object_candidates({**seen, "scores": [0.9] * 125 + [0.01] * 5}, 0.05)
    assert [each["seq"] for each in candidates] == list(range(125))
