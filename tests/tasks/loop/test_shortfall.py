"""A class that abstains says what it reached, what it needs, and about how many more labels would do."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.loop.certified import fewest, lower_bound
from tasks.loop.methods import CalibratedFor
from tasks.loop.shortfall import candidates_needed, images_needed, in_words
from tasks.loop.thresholds import Promise, certify_thresholds
from tasks.products.segments.pixel_thresholds import PixelPromise, certify_pixel_thresholds
from tests.tasks.loop.rows import joined, matches_of
from tests.tasks.loop.scenes import CLASSES
from tests.tasks.loop.test_thresholds import FACTS, perfect
from tests.tasks.products.test_pixels import FACTS as PIXEL_FACTS
from tests.tasks.products.test_pixels import RISING, counts_of, on_few_images


@pytest.mark.parametrize("reached", [0.82, 0.9, 0.97, 1.0])
def test_the_estimate_is_the_fewest_that_the_bound_certifies(reached: float) -> None:
    n = candidates_needed(reached, 0.8)
    assert n is not None and lower_bound(reached * n, n) >= 0.8
    assert n == fewest(0.8) or lower_bound(reached * (n - 1), n - 1) < 0.8
    assert candidates_needed(0.8, 0.8) is None, "no number of labels proves what is not so"


def test_images_shrink_the_gap_of_a_bound_by_their_root() -> None:
    assert images_needed(0.9, 0.7, 0.8, images=10, least=14) == 40
    assert images_needed(0.99, 0.98, 0.8, images=20, least=29) == 29
    assert images_needed(0.79, 0.7, 0.8, images=20, least=14) is None


def test_labels_that_nobody_could_make_are_not_asked_for() -> None:
    assert in_words(1634, 2703, 0.603, 2500, 26, "images").endswith("about 2,500 more images to calibrate by would do")
    assert "the model has to become better" in in_words(1634, 2703, 0.603, 165_832, 26, "images")


def test_the_note_of_an_object_class_tells_how_far_it_is(  # and labels of about so many more would do
) -> None:
    right = np.ones(20, bool)
    right[5] = False
    few = matches_of(np.linspace(1, 0.3, 20), right, label=1)
    [found, *_] = certify_thresholds(joined(few, perfect(2, 3)), CLASSES, **FACTS).classes  # type: ignore[arg-type]
    assert found.basis == "abstain"
    assert "reached 0.950 (19 of 20), needs 0.800 for sure: about 9 more true objects" in found.note
    bad = matches_of(np.linspace(1, 0.3, 450), np.arange(450) % 2 == 0, label=1, truth=450)
    [found, *_] = certify_thresholds(bad, CLASSES, **FACTS).classes  # type: ignore[arg-type]
    assert "the model has to become better" in found.note
    nothing = certify_thresholds(perfect(2, 3), CLASSES, **FACTS).of(1)  # type: ignore[arg-type]
    assert "nothing was found, 14 more true objects are needed at least" in nothing.note


def test_the_note_of_a_pixel_class_tells_how_far_it_is() -> None:
    counts = on_few_images(counts_of({1: np.ones(len(RISING)), 2: RISING / 2}, {1: 100, 2: 100}), {1: range(10)})
    found = certify_pixel_thresholds(counts, CLASSES[:2], **PIXEL_FACTS)  # type: ignore[arg-type]
    assert [each.basis for each in found.classes] == ["abstain", "abstain"]
    assert "reached 1.000" in found.of(1).note and "about 4 more labelled images with the class" in found.of(1).note
    assert "the model has to become better" in found.of(2).note


def test_a_class_may_be_promised_another_precision() -> None:
    weak = matches_of(np.linspace(1, 0.3, 450), np.arange(450) % 5 != 0, label=2)  # .80 are right
    by = CalibratedFor("m", 1, "s", seed=0, precision=0.9, by_name={"box": 0.7})
    found = certify_thresholds(
        joined(perfect(1, 450), weak), CLASSES, promises=by.promises(CLASSES, Promise.of), **FACTS  # type: ignore[arg-type]
    )  # fmt: skip
    assert [(each.basis, each.target_precision) for each in found.classes[:2]] == [("class", 0.9), ("class", 0.7)]
    assert certify_thresholds(joined(perfect(1, 450), weak), CLASSES, **FACTS).of(2).basis == "abstain"  # type: ignore[arg-type]
    flat = np.full(len(RISING), 0.85)
    counts = counts_of({1: flat, 2: flat, 3: np.ones(len(RISING))}, {1: 10, 2: 10, 3: 1000})
    promises = by.promises(CLASSES, PixelPromise.of)
    pixels = certify_pixel_thresholds(counts, CLASSES, promises=promises, **PIXEL_FACTS)  # type: ignore[arg-type]
    assert pixels.of(2).target_precision == pytest.approx(0.7, abs=0.01) and pixels.of(2).t_hi is not None
    assert pixels.of(1).target_precision == pytest.approx(0.8, abs=0.01)
