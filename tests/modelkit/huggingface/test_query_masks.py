"""Queries' masks to segments, on hand cases."""

from __future__ import annotations

import pytest
import torch

from modelkit.huggingface.query_masks import QueryMasks
from modelkit.rle import decode


def queries(probabilities: list[list[float]], areas: list[tuple[int, int]], **changes: object) -> QueryMasks:
    """Masks that are columns ``first .. last`` of a 2 x 8 image, sure of themselves."""
    logits = torch.full((len(areas), 2, 8), -9.0)
    for mask, (first, last) in zip(logits, areas, strict=True):
        mask[:, first:last] = 9.0
    options = {"size_hw": (2, 8), "things": frozenset({0}), "is_panoptic": True, "min_score": 0.5, **changes}
    return QueryMasks(probabilities=torch.tensor(probabilities), logits=logits, **options)


def test_every_pixel_belongs_to_the_query_that_is_surest_and_stuff_of_one_class_is_one_segment() -> None:
    found = queries(
        [[0.9, 0.0], [0.8, 0.1], [0.0, 0.7], [0.1, 0.6], [0.4, 0.1]], [(0, 2), (2, 4), (4, 6), (6, 8), (0, 8)]
    ).finish()
    assert found.labels.tolist() == [0, 0, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert found.is_thing.tolist() == [True, True, False]
    assert found.boxes_xyxy.tolist() == [[0, 0, 2, 2], [2, 0, 4, 2], [4, 0, 8, 2]]
    assert found.rles is not None
    assert sum(int(decode(rle, (2, 8)).sum()) for rle in found.rles) == 16


def test_a_segment_of_which_little_is_left_is_dropped_with_its_pixels() -> None:
    found = queries([[0.9, 0.0], [0.0, 0.6]], [(0, 4), (0, 6)]).finish()
    assert found.labels.tolist() == [0]
    assert found.boxes_xyxy.tolist() == [[0, 0, 4, 2]]


def test_unsure_queries_own_nothing() -> None:
    assert len(queries([[0.4, 0.1]], [(0, 8)]).finish()) == 0


def test_instances_may_overlap_are_ordered_by_score_and_leave_stuff_out() -> None:
    found = queries([[0.3, 0.0], [0.8, 0.1], [0.0, 0.9]], [(0, 4), (2, 6), (0, 8)], is_panoptic=False).finish()
    assert found.labels.tolist()[:2] == [0, 0]
    assert found.scores.tolist()[:2] == pytest.approx([0.8, 0.3], abs=1e-3)
    assert found.boxes_xyxy.tolist()[:2] == [[2, 0, 6, 2], [0, 0, 4, 2]]
    assert found.is_thing.all()


def test_masks_are_stretched_over_the_source() -> None:
    found = queries([[0.9, 0.0]], [(0, 4)], size_hw=(20, 80)).finish()
    assert found.size_hw == (20, 80)
    assert found.boxes_xyxy.tolist() == [[0, 0, 40, 20]]
