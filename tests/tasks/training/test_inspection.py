"""What is seen of a label set before training, and the recipes that follow from it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.errors import DatasetError, UsageError
from modelkit import ClassInfo, create_model
from modelkit.registry import count_parameters
from modelkit.training.transfer import adopt, freeze, imagenet_state, untaught
from tasks.labels.label_sets import LabelledItem, LabelledObject, LabelSet, make_label_set
from tasks.product import find_kind
from tasks.products.segments.photographs import anchors_of, factor_of, may_be_mirrored
from tasks.products.segments.remarks import anchor_fit, thing_boxes
from tasks.training.inspection import Inspection, inspect_labels
from tasks.training.presets import kind_of_labels, kind_of_preset, make_recipe, numbered
from tests.tasks.loop.scenes import rectangle

SIZE_HW = (240, 320)


def an_object(label: int, x: int, y: int, width: int, height: int, **more: Any) -> LabelledObject:
    return LabelledObject(label, rectangle(x, y, x + width, y + height, SIZE_HW), **more)


def labelled(classes: dict[int, tuple[str, bool]], *images: list[LabelledObject]) -> LabelSet:
    items = [LabelledItem(f"/{number}.png", SIZE_HW, tuple(objects)) for number, objects in enumerate(images)]
    return make_label_set(
        items, [ClassInfo(k, name, thing) for k, (name, thing) in classes.items()], origin_format="test"
    )


NUCLEI = labelled(
    {1: ("nucleus", True)},
    [an_object(1, 10 * k, 8, 8, 12, origin_id=str(k)) for k in range(20)],
    [an_object(1, 100, 100, 40, 40, origin_id="big")],
    [],
)
STREETS = labelled(
    {1: ("road", False), 2: ("pole", False), 3: ("sky", False)},
    [an_object(1, 0, 120, 320, 120), an_object(2, 10, 20, 4, 60), an_object(3, 0, 0, 320, 20)],
    [an_object(1, 0, 100, 320, 140), an_object(3, 0, 0, 320, 100)],
)
MIXED = labelled(
    {3: ("tree", False), 7: ("car", True), 9: ("sky", False), 12: ("bus", True)},
    [
        an_object(3, 0, 0, 100, 200),
        an_object(7, 200, 100, 30, 20),
        an_object(9, 0, 200, 320, 40),
        an_object(12, 220, 10, 60, 40),
    ],
)


def test_sizes_classes_and_counts_are_those_of_the_labels() -> None:
    seen = inspect_labels(NUCLEI).to_json()
    assert (seen["images"], seen["objects"], seen["images_without_objects"]) == (3, 21, 1)
    assert seen["image_sides_px"] == {
        "short": dict.fromkeys(("least", "p10", "median", "p90", "most"), 240.0),
        "long": dict.fromkeys(("least", "p10", "median", "p90", "most"), 320.0),
    }
    assert seen["objects_per_image"]["most"] == 20 and seen["object_sides_px"]["median"] == pytest.approx(
        96**0.5, abs=0.01
    )
    [nucleus] = seen["classes"]
    assert (nucleus["images"], nucleus["objects"]) == (2, 21)
    assert nucleus["pixels"] == pytest.approx((20 * 96 + 1600) / (3 * 240 * 320), abs=1e-6)
    assert seen["suspicious_labels"] == [] and seen["height_to_width"]["median"] == 1.5


def test_crowds_count_as_no_object_and_void_is_told() -> None:
    crowd = labelled({1: ("car", True)}, [an_object(1, 0, 0, 50, 50, is_crowd=True), an_object(1, 60, 0, 10, 10)])
    seen = inspect_labels(crowd)
    assert len(seen.areas) == 1 and seen.per_image.tolist() == [1]
    void = make_label_set(
        [LabelledItem("/a.png", SIZE_HW, (), void_rle=rectangle(0, 0, 320, 60, SIZE_HW))],
        [ClassInfo(1, "car", True)], origin_format="test",
    )  # fmt: skip
    assert inspect_labels(void).void == 0.25
    with pytest.raises(DatasetError, match="no labelled image"):
        inspect_labels(void.only([]))


@pytest.mark.parametrize(
    ("objects", "why"),
    [
        ([an_object(1, 5, 5, 1, 2, origin_id="bad")], "covers 2 pixels"),
        ([an_object(1, 0, 0, 320, 240, origin_id="bad")], "covers the whole image"),
        (
            [an_object(1, 9, 9, 30, 30), an_object(1, 9, 9, 30, 31, origin_id="bad")],
            "of the same class has the same box",
        ),
        (
            [an_object(2, 9, 9, 30, 30), an_object(1, 9, 9, 30, 31, origin_id="bad")],
            "of another class has the same box",
        ),
        ([LabelledObject(1, None, (-9.0, 5.0, 20.0, 30.0), origin_id="bad")], "reaches beyond the image of 320 x 240"),
    ],
)
def test_labels_that_nobody_would_draw_on_purpose_are_named_with_their_reason(
    objects: list[LabelledObject], why: str
) -> None:
    [found] = inspect_labels(labelled({1: ("car", True), 2: ("bus", True)}, objects)).suspicions
    assert (found.image_id, found.origin_id, found.name) == ("/0.png", "bad", "car") and why in found.why


@pytest.mark.parametrize(
    ("labels", "kind"), [(NUCLEI, "instance"), (STREETS, "semantic"), (MIXED, "panoptic")]
)  # fmt: skip
def test_labels_choose_the_kind_of_model_that_learns_from_them(labels: LabelSet, kind: str) -> None:
    assert kind_of_labels(inspect_labels(labels)) == kind


def test_objects_with_boxes_alone_choose_detection_and_nothing_at_all_is_refused() -> None:
    boxes = labelled({1: ("car", True)}, [LabelledObject(1, None, (5.0, 5.0, 50.0, 40.0))])
    assert kind_of_labels(inspect_labels(boxes)) == "detection"
    with pytest.raises(UsageError, match="no kind of model"):
        kind_of_labels(inspect_labels(labelled({1: ("car", True)}, [])))


@pytest.mark.parametrize("labels", [NUCLEI, STREETS, MIXED], ids=["objects", "maps", "both"])
def test_a_derived_recipe_builds_its_model_and_survives_json(labels: LabelSet) -> None:
    kind = kind_of_labels(inspect_labels(labels))
    labels = numbered(labels, kind)
    seen = inspect_labels(labels)
    recipe = make_recipe(kind, labels.classes, steps=10, seed=1, seen=seen)
    assert type(recipe).from_json(recipe.to_json()) == recipe and recipe.kind == kind == kind_of_preset(kind)
    assert recipe.initial == "imagenet" and recipe.name == f"photographs_{kind}"
    model = create_model(recipe.architecture, **recipe.config)
    assert model.transform.mean == [127 / 255] * 3
    on_human, on_pseudo = (list(noise.augmentation) for noise in (recipe.labelled, recipe.unlabelled))
    assert on_pseudo[: len(on_human)] == on_human, "pseudo-labels get no weaker noise"
    assert (on_pseudo == on_human) == (kind == "semantic"), "pixels learn better with all of it from people, too"


@pytest.mark.parametrize("kind", ["instance", "detection", "panoptic", "semantic"])
def test_small_models_learn_on_early_layers_that_stay_as_imagenet_taught_them(kind: str) -> None:
    labels = numbered(MIXED, kind)
    recipe = make_recipe(kind, labels.classes, steps=10, seed=1, seen=inspect_labels(labels))
    model = create_model(recipe.architecture, **recipe.config)
    held = freeze(model, list(recipe.frozen))
    assert held and all("backbone." in name for name in held)
    assert not untaught(model, recipe.frozen, adopt(model, imagenet_state(model)))


def test_small_objects_are_enlarged_and_many_are_let_through() -> None:
    seen = inspect_labels(NUCLEI)
    factor = factor_of(seen)
    assert factor == pytest.approx(16 / 96**0.5, rel=1e-3)
    crowded = dataclasses.replace(seen, per_image=np.array([90, 150]))
    config = find_kind("instance").derived(crowded)["config"]  # type: ignore[misc]
    assert config["heads"]["box"]["detections_per_image"] == 200
    assert config["transform"]["min_size"] == round(240 * factor)


def test_large_images_are_reduced_and_windows_are_no_larger_than_a_step_can_bear() -> None:
    seen = inspect_labels(STREETS)
    large = dataclasses.replace(seen, sizes_hw=np.array([[3000.0, 4000.0]]))
    values = find_kind("semantic").derived(large)  # type: ignore[misc]
    assert (values["config"]["transform"]["min_size"], values["config"]["transform"]["max_size"]) == (480, 640)
    [cut] = [each for each in values["labelled"]["augmentation"] if each["name"] == "random_crop"]
    assert (cut["height"], cut["width"]) == (256, 256)


def test_maps_of_the_backbone_are_those_that_the_objects_call_for() -> None:
    seen = inspect_labels(NUCLEI)
    small = find_kind("instance").derived(seen)["config"]  # type: ignore[misc]
    assert small["backbone"]["out"] == ["c2", "c3", "c4"] and len(small["rpn"]["anchor_sizes"]) == 3
    large = dataclasses.replace(seen, boxes_wh=np.full_like(seen.boxes_wh, 200.0))
    config = find_kind("instance").derived(large)["config"]  # type: ignore[misc]
    assert config["backbone"]["out"] == ["c2", "c3", "c4", "c5"] and len(config["rpn"]["anchor_sizes"]) == 4


def test_anchors_fit_the_objects_they_were_derived_from() -> None:
    chance = np.random.default_rng(0)
    sides = np.exp(chance.normal(3.5, 0.6, 500))
    boxes = np.stack([sides, sides * np.exp(chance.normal(0, 0.25, 500))], axis=1)
    seen = dataclasses.replace(inspect_labels(NUCLEI), boxes_wh=boxes, is_thing=np.ones(500, bool))
    sizes, ratios = anchors_of(seen, 1.0)
    assert len(sizes) == 4 and sizes == sorted(sizes) and all(ratio > 0 for ratio in ratios)
    assert all(len(sides) == 2 for sides in sizes), "every map has as many"
    at_half, at_more, _ = anchor_fit(thing_boxes(seen), [side for sides in sizes for side in sides], ratios)
    assert at_half > 0.95 and at_more > 0.9
    assert anchor_fit(boxes, [30.0], [1.0]) == pytest.approx(by_hand(boxes, 30.0))


def by_hand(boxes: np.ndarray, side: float) -> list[float]:
    """Share of boxes that a square of this side overlaps by an IoU of .5, .6 and .7, about the same centre."""
    best = []
    for width, height in boxes.tolist():
        common = min(width, side) * min(height, side)
        best.append(common / (width * height + side * side - common))
    return [sum(each >= iou for each in best) / len(best) for iou in (0.5, 0.6, 0.7)]


def test_inspect_says_how_anchors_fit_at_the_size_that_a_recipe_looks_at() -> None:
    seen = inspect_labels(NUCLEI)
    derived = make_recipe("instance", NUCLEI.classes, seed=0, seen=seen)
    small = make_recipe("digitscape", NUCLEI.classes, seed=0)
    remarks = [find_kind("instance").remarks(seen, recipe) for recipe in (derived, small)]
    assert "an anchor overlaps, looked at as 392 x 522 px: 95% at an IoU of 0.5" in remarks[0][0], remarks[0]
    assert "160 x 213 px: 5% at an IoU of 0.5" in remarks[1][0], "most objects are 8 x 12 px, and images are reduced"
    assert remarks[0][1] == "an image may have 100 objects, the fullest labelled one has 20"
    transform = {"min_size": 392, "max_size": 522, "tile": [98, 24]}
    tiled = dataclasses.replace(derived, config={**derived.config, "transform": transform})
    assert "looked at as 392 x 392 px" in find_kind("instance").remarks(seen, tiled)[0], "a tile is not reduced"


def test_rare_classes_weigh_more_within_bounds() -> None:
    values = find_kind("semantic").derived(inspect_labels(STREETS))  # type: ignore[misc]
    weights = values["config"]["losses"]["class_weights"]
    assert weights[2] == 4.0 and 0.5 <= weights[1] < weights[2] and len(weights) == 4


@pytest.mark.parametrize(
    ("names", "mirrored"), [(("car", "leftover"), True), (("left_hand", "nose"), False), (("7", "8"), False)]
)
def test_pictures_are_not_mirrored_where_that_changes_what_classes_mean(names: tuple[str, ...], mirrored: bool) -> None:
    assert may_be_mirrored(tuple(ClassInfo(k, name, True) for k, name in enumerate(names, 1))) is mirrored


def test_panoptic_classes_in_any_order_are_renumbered_and_the_record_keeps_the_files_ids() -> None:
    labels = numbered(MIXED, "panoptic")
    assert [(each.id, each.name) for each in labels.classes] == [(1, "car"), (2, "bus"), (3, "tree"), (4, "sky")]
    assert labels.file_ids == {1: 7, 2: 12, 3: 3, 4: 9}
    assert labels.table["labels"].to_pylist() == [[3, 1, 4, 2]]
    assert labels.table["names"].to_pylist() == [["tree", "car", "sky", "bus"]]
    assert numbered(labels, "panoptic") is labels and numbered(MIXED, "semantic") is MIXED


def test_a_kind_without_labels_to_derive_from_says_how_to_get_a_recipe() -> None:
    with pytest.raises(UsageError) as refused:
        make_recipe("semantic", STREETS.classes, steps=10, seed=0)
    assert "visionmill inspect" in refused.value.hint
    assert isinstance(inspect_labels(STREETS), Inspection)


@pytest.mark.parametrize(("labels", "kind"), [(NUCLEI, "instance"), (STREETS, "semantic")], ids=["nuclei", "streets"])
def test_windows_are_cut_at_the_size_that_the_network_looks_at_and_not_resized_again(labels: Any, kind: str) -> None:
    recipe = make_recipe(kind, labels.classes, steps=10, seed=0, seen=inspect_labels(labels))
    [cut] = [step for step in recipe.labelled.augmentation if step["name"] == "random_crop"]
    transform = create_model(recipe.architecture, **recipe.config).transform
    assert cut["short_side"] == transform.min_size
    window = torch.rand(3, cut["height"], cut["width"])
    _, [geometry] = transform.batch([window], training=True)
    assert geometry.resized_hw == (cut["height"], cut["width"])


@pytest.mark.parametrize("kind", ["instance", "detection", "panoptic", "semantic"])
def test_a_usual_model_is_a_resnet_and_larger_than_a_small_one(kind: str) -> None:
    labels = numbered(MIXED, kind)
    seen = inspect_labels(labels)
    recipes = [make_recipe(kind, labels.classes, seed=0, seen=seen, size=size) for size in ("small", "usual")]
    small, usual = (count_parameters(each.architecture, **each.config) for each in recipes)
    assert 5e5 < small < 8e6 and 8e6 < usual < 60e6 and usual > 5 * small, (small, usual)
    assert [each.name for each in recipes] == [f"photographs_{kind}"] * 2


def test_few_images_are_looked_at_oftener_and_many_less_often() -> None:
    seen = inspect_labels(STREETS)

    def steps(images: int) -> int:
        many = dataclasses.replace(seen, sizes_hw=np.tile(seen.sizes_hw[:1], (images, 1)))
        return make_recipe("semantic", STREETS.classes, seed=0, seen=many).loop.steps

    assert [steps(images) for images in (20, 200, 100_000)] == [500, 1500, 3000]
    assert make_recipe("semantic", STREETS.classes, steps=7, seed=0, seen=seen).loop.steps == 7


def test_a_recipe_is_read_from_a_file_of_its_own_from_a_run_and_from_the_record_of_weights(tmp_path: Path) -> None:
    seen = inspect_labels(STREETS)
    recipe = make_recipe("semantic", STREETS.classes, seed=0, seen=seen)
    forms = {"own": recipe.to_json(), "run": {"recipe": recipe.to_json(), "sets": []}}
    forms["record"] = {"name": "w", "lineage": {"recipe": recipe.to_json()}}
    for name, content in forms.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        assert make_recipe(str(tmp_path / f"{name}.json"), STREETS.classes, seed=0) == recipe
    other = make_recipe(str(tmp_path / "own.json"), STREETS.classes, steps=7, seed=0)
    assert (other.loop.steps, recipe.loop.steps) == (7, 500), "a file keeps its steps, unless others are asked for"
