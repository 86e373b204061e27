"""Every registered model does what every model must do; see ``model_tester``."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelkit.registry import model_names
from tests.modelkit.model_tester import CASES, ModelTester


def test_every_registered_model_has_a_case() -> None:
    assert set(CASES) == set(model_names())


@pytest.fixture(scope="module", params=sorted(CASES))
def tester(request: pytest.FixtureRequest) -> ModelTester:
    return ModelTester(CASES[request.param])


def test_losses_are_named_finite_and_reach_every_trainable_parameter(tester: ModelTester) -> None:
    tester.losses_are_named_finite_and_reach_every_trainable_parameter()


def test_ignored_regions_and_weights_count_as_promised(tester: ModelTester) -> None:
    tester.ignored_regions_and_weights_count_as_promised()


def test_images_without_objects_give_finite_losses(tester: ModelTester) -> None:
    tester.images_without_objects_give_finite_losses()


def test_predictions_are_in_source_pixels_for_any_size(tester: ModelTester) -> None:
    tester.predictions_are_in_source_pixels_for_any_size()


def test_finishing_with_a_score_leaves_what_reaches_it(tester: ModelTester) -> None:
    tester.finishing_with_a_score_leaves_what_reaches_it()


def test_a_batch_equals_its_images_alone(tester: ModelTester) -> None:
    tester.a_batch_equals_its_images_alone()


def test_the_dense_part_has_flat_fixed_outputs(tester: ModelTester) -> None:
    tester.the_dense_part_has_flat_fixed_outputs_that_depend_on_nothing_else()


def test_bfloat16_stays_near_float32(tester: ModelTester) -> None:
    tester.bfloat16_stays_near_float32()


def test_predicting_changes_no_weights(tester: ModelTester) -> None:
    tester.predicting_changes_no_weights()


def test_the_config_alone_builds_the_model_again(tester: ModelTester) -> None:
    tester.config_alone_builds_it_again()


def test_saved_and_loaded_it_computes_the_same(tester: ModelTester, tmp_path: Path) -> None:
    tester.saved_and_loaded_it_computes_the_same(tmp_path)


def test_the_output_is_the_stored_one(tester: ModelTester) -> None:
    tester.stored_output()
