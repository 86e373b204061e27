"""Training sets: named by content, read back as written, turned into the targets that each task wants."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.errors import DatasetError, UsageError
from infra.store import open_store
from modelkit import create_model, rle
from modelkit.training.processes import Rank
from modelkit.training.student import UnlabelledSchedule
from tasks.products.segments.objects import mask_target
from tasks.products.segments.panoptic import panoptic_target
from tasks.products.segments.semantic import semantic_target
from tasks.training.examples import (
    Example,
    ExampleObject,
    examples_of_labels,
    key_of,
    load_training_set,
    save_training_set,
)
from tasks.training.loading import Batches, ExampleReader
from tasks.training.recipe import Noise, TrainingRecipe
from tests.tasks.training.scenes import pseudo, put_examples, recipe


def square(x1: int, y1: int, x2: int, y2: int, size: int = 20) -> bytes:
    mask = np.zeros((size, size), np.uint8)
    mask[y1:y2, x1:x2] = 1
    return rle.encode(mask)


EXAMPLE = Example(
    "s3://b/a.png",
    (20, 20),
    (
        ExampleObject(1, (2.0, 2.0, 8.0, 8.0), square(2, 2, 8, 8), class_weight=0.5),
        ExampleObject(2, (10.0, 10.0, 18.0, 18.0), None),
        ExampleObject(3, (5.0, 5.0, 5.4, 9.0), square(5, 5, 6, 9)),
    ),
    ignore_boxes=((0.0, 15.0, 5.0, 20.0),),
    void_rle=square(0, 0, 3, 3),
    unsure_rle=square(0, 18, 20, 20),
)


def test_a_set_is_named_by_its_content_and_comes_back_as_it_was(store_uri: str) -> None:
    store = open_store(store_uri)
    examples = [EXAMPLE, dataclasses.replace(EXAMPLE, uri="s3://b/v.mp4", frame=7, objects=()), *pseudo([EXAMPLE])[:0]]
    name = save_training_set(store, reversed(examples))
    assert save_training_set(store, examples) == name
    assert [info.key for info in store.list("training/")] == [key_of(name)]
    back = load_training_set(store, name)
    assert [each.image_id for each in back] == ["s3://b/a.png", "s3://b/v.mp4#7"]
    assert save_training_set(store, back) == name
    assert back[0].objects[1].mask_weight == 0, "where only a box is known the mask teaches nothing"
    lighter = dataclasses.replace(EXAMPLE, objects=pseudo([EXAMPLE], 0.25)[0].objects)
    assert save_training_set(store, [lighter, examples[1]]) != name


def test_classes_of_which_an_example_says_nothing_come_back(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    silent = dataclasses.replace(EXAMPLE, abstaining=(2, 7))
    name = save_training_set(store, [silent])
    assert load_training_set(store, name)[0].abstaining == (2, 7) and name != save_training_set(store, [EXAMPLE])
    assert semantic_target(silent, 0)["abstaining"].tolist() == [2, 7]


def test_an_empty_set_and_an_image_twice_are_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with pytest.raises(DatasetError, match="at least one"):
        save_training_set(store, [])
    with pytest.raises(DatasetError, match="twice"):
        save_training_set(store, [EXAMPLE, EXAMPLE])


def test_instances_bring_weights_and_ignored_regions_along() -> None:
    target = mask_target(EXAMPLE)
    assert target["labels"].tolist() == [1, 2]
    assert target["class_weights"].tolist() == [0.5, 1.0]
    assert target["mask_weights"].tolist() == [1.0, 0.0]
    assert target["masks"].sum((1, 2)).tolist() == [36, 64]
    assert target["ignore_boxes"].tolist()[0] == [0, 15, 5, 20]
    assert len(target["ignore_boxes"]) == 2, "an object thinner than a pixel is no background"


def test_semantic_maps_know_void_unsure_and_background() -> None:
    target = semantic_target(EXAMPLE, 0)
    semantic, weights = target["semantic"], target["semantic_weights"]
    assert semantic[1, 1] == 255 and semantic[4, 4] == 1 and semantic[2, 12] == 0
    assert semantic[12, 12] == semantic[16, 1] == 255, "in a box without a mask and in a crowd nothing is background"
    assert weights[4, 4] == 0.5 and weights[19, 19] == 0 and weights[12, 12] == 1
    assert semantic_target(EXAMPLE, None)["semantic"][2, 12] == 255, "a model without background is taught none"


def test_panoptic_targets_have_things_as_objects_and_a_class_for_every_labelled_pixel() -> None:
    stuff = ExampleObject(4, (0.0, 0.0, 20.0, 20.0), square(0, 0, 20, 12))
    target = panoptic_target(dataclasses.replace(EXAMPLE, objects=(*EXAMPLE.objects, stuff)), num_things=3)
    assert target["labels"].tolist() == [1, 2], "stuff is no object"
    assert target["class_weights"].tolist() == [0.5, 1.0] and len(target["masks"]) == 2
    semantic = target["semantic"]
    assert semantic[4, 4] == 1 and semantic[10, 10] == 4, "things lie upon stuff"
    assert semantic[1, 1] == 255 and semantic[15, 15] == 255, "void, and of no segment"


def test_label_rows_become_examples_and_crowds_ignored_regions() -> None:
    row = {
        "uri": "a.png",
        "media": "image",
        "frame": 0,
        "height": 20,
        "width": 20,
        "labels": [1, 2],
        "boxes_xyxy": [[2.0, 2.0, 8.0, 8.0], [0.0, 0.0, 20.0, 10.0]],
        "rles": [square(2, 2, 8, 8), None],
        "is_crowd": [False, True],
        "track_ids": [5, None],
        "void_rle": None,
    }
    [example] = examples_of_labels([row])
    assert [each.label for each in example.objects] == [1]
    assert example.ignore_boxes == ((0.0, 0.0, 20.0, 10.0),)
    assert example.frame is None
    [frame] = examples_of_labels([{**row, "media": "video", "frame": 4}])
    assert frame.image_id == "a.png#4"
    assert (frame.objects[0].track_id, example.objects[0].track_id) == (5, None), "an image has no earlier frame"


def test_batches_depend_on_step_and_process_only(store_uri: str) -> None:
    store = open_store(store_uri)
    labelled, unlabelled = put_examples(store, 3), pseudo(put_examples(store, 4, first=10))
    plan = recipe(batch_size=1, labelled_share=0.25)
    reader = ExampleReader(create_model(plan.architecture, **plan.config), "instance", cache_bytes=1 << 20)
    one, other = (Batches(reader, labelled, unlabelled, plan, Rank(0, 2)) for _ in range(2))
    in_order = [one.batch(step, lambda step: step % 2 == 1) for step in range(4)]
    for step in (3, 1, 2, 0):
        again, expected = other.batch(step, lambda step: step % 2 == 1), in_order[step]
        assert len(expected.labelled[0]) == 1
        assert len(expected.unlabelled[0]) == (3 if step % 2 else 0)
        for (images, targets), (same_images, same_targets) in zip(
            (expected.labelled, expected.unlabelled), (again.labelled, again.unlabelled), strict=True
        ):
            assert all(torch.equal(a, b) for a, b in zip(images, same_images, strict=True))
            for a, b in zip(targets, same_targets, strict=True):
                assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    second = Batches(reader, labelled, unlabelled, plan, Rank(1, 2))
    assert not torch.equal(second.batch(1, lambda _: True).unlabelled[0][0], in_order[1].unlabelled[0][0])
    for each in (one, other, second):
        each.close()


def test_an_image_that_is_not_what_its_labels_are_for_is_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    [example] = put_examples(store, 1)
    plan = recipe()
    reader = ExampleReader(create_model(plan.architecture, **plan.config), "instance")
    with pytest.raises(DatasetError, match=r"is \(64, 64\), its labels are for \(64, 32\)"):
        reader.read(dataclasses.replace(example, size_hw=(64, 32)))
    store.put("broken.png", b"no picture")
    with pytest.raises(DatasetError, match=r"broken\.png cannot be read"):
        reader.read(dataclasses.replace(example, uri=store.uri_of("broken.png")))
    with pytest.raises(DatasetError, match="cannot be read"):
        reader.read(dataclasses.replace(example, uri=store.uri_of("absent.png")))


def test_a_recipe_is_plain_json_and_its_fingerprint_names_what_counts() -> None:
    plan = recipe()
    assert TrainingRecipe.from_json(plan.to_json()).to_json() == plan.to_json()
    name = plan.fingerprint("a", None, 1)
    for change in (
        {"batch_size": 3},
        {"schedule": UnlabelledSchedule(max_weight=2.0)},
        {"unlabelled": Noise()},
        {"frozen": ["backbone"]},
        {"initial_digest": "abc"},
    ):
        assert dataclasses.replace(plan, **change).fingerprint("a", None, 1) != name
    assert dataclasses.replace(plan, initial="elsewhere").fingerprint("a", None, 1) == name, "only the digest counts"
    assert {plan.fingerprint("b", None, 1), plan.fingerprint("a", "u", 1), plan.fingerprint("a", None, 2)} & {
        name
    } == set()
    with pytest.raises(UsageError, match="makes no sense"):
        TrainingRecipe.from_json({**plan.to_json(), "unlabelled": {"augmentation": [{"name": "twirl"}]}})
    with pytest.raises(UsageError, match="max_weight"):
        TrainingRecipe.from_json({**plan.to_json(), "schedule": {"max_weight": 100.0}})
