"""Queries' masks to segments, on hand cases."""

from __future__ import annotations

import pytest
import torch

from modelkit.huggingface import QueryInstances, QueryMasks, QueryPanoptic, QuerySemantic
from modelkit.rle import decode


def queries(
    probabilities: list[list[float]],
    areas: list[tuple[int, int]],
    reading: type[QueryMasks] = QueryPanoptic,
    **changes: object,
) -> QueryMasks:
    """Masks that are columns ``first .. last`` of a 2 x 8 image, sure of themselves."""
    logits = torch.full((len(areas), 2, 8), -9.0)
    for mask, (first, last) in zip(logits, areas, strict=True):
        mask[:, first:last] = 9.0
    options = {"size_hw": (2, 8), "things": frozenset({0}), **changes}
    return reading(probabilities=with_nothing(probabilities), logits=logits, **options)


def with_nothing(probabilities: list[list[float]]) -> torch.Tensor:
    """The last column of each row of probabilities is what is left."""
    known = torch.tensor(probabilities)
    return torch.cat([known, 1 - known.sum(1, keepdim=True)], 1)


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
    found = queries([[0.9, 0.0], [0.0, 0.6], [0.8, 0.0]], [(0, 4), (0, 6), (6, 8)]).finish()
    assert found.labels.tolist() == [0, 0]
    assert found.boxes_xyxy.tolist() == [[0, 0, 4, 2], [6, 0, 8, 2]]


def test_a_pixel_that_no_query_is_sure_of_goes_to_the_least_unsure_as_in_transformers() -> None:
    found = queries([[0.9, 0.0]], [(0, 4)]).finish()
    assert found.boxes_xyxy.tolist() == [[0, 0, 8, 2]]


def test_unsure_queries_own_nothing() -> None:
    assert len(queries([[0.4, 0.1]], [(0, 8)]).finish()) == 0


def test_instances_may_overlap_are_ordered_by_score_and_leave_stuff_out() -> None:
    found = queries([[0.3, 0.0], [0.8, 0.1], [0.0, 0.9]], [(0, 4), (2, 6), (0, 8)], QueryInstances).finish()
    assert found.labels.tolist()[:2] == [0, 0]
    assert found.scores.tolist()[:2] == pytest.approx([0.8, 0.3], abs=1e-3)
    assert found.boxes_xyxy.tolist()[:2] == [[2, 0, 6, 2], [0, 0, 4, 2]]
    assert found.is_thing.all()


def test_a_segment_is_measured_against_its_whole_mask_and_not_against_the_part_it_owns() -> None:
    """Of the second query's six columns two are the first's: four of six are too few, but all four are sure."""
    found = queries([[0.9, 0.0], [0.0, 0.8]], [(0, 4), (2, 8)]).finish()
    assert found.labels.tolist() == [0]
    found = queries([[0.9, 0.0], [0.0, 0.8]], [(0, 4), (3, 8)]).finish()  # four of five
    assert found.labels.tolist() == [0, 1]


def test_a_pixel_belongs_to_the_class_that_all_queries_say_together() -> None:
    found = queries([[0.5, 0.4], [0.0, 0.5]], [(0, 4), (2, 8)], QuerySemantic, things=frozenset()).finish()
    assert found.labels.tolist() == [0, 1]
    assert found.boxes_xyxy.tolist() == [[0, 0, 2, 2], [2, 0, 8, 2]]
    assert found.scores.tolist() == pytest.approx([0.5 / 0.9, (2 * 0.9 / 1.4 + 4) / 6], abs=1e-3)
    assert not found.is_thing.any()


def test_masks_are_stretched_over_the_source() -> None:
    found = queries([[0.9, 0.0], [0.0, 0.9]], [(0, 4), (4, 8)], size_hw=(20, 80)).finish()
    assert found.size_hw == (20, 80)
    assert found.boxes_xyxy.tolist() == [[0, 0, 40, 20], [40, 0, 80, 20]]
