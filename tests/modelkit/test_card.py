"""A model card says what the record says, in the form the hub reads, and nothing that nobody recorded."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from modelkit import ClassInfo, Weights
from modelkit.card import model_card
from modelkit.records import shipped_records

LOOKS = [{"step": 5, "main": 0.5, "by_class": {"road": 0.7, "pole": -1.0}}, {"step": 10, "main": 0.4, "by_class": {}}]


def record(**changes: object) -> Weights:
    given = {
        "name": "streets", "architecture": "fcn", "config": {}, "kind": "semantic",
        "classes": (ClassInfo(1, "road | lane", False),), "preprocessing": {"min_size": 64}, "digest": "0" * 64,
        "num_parameters": 1234567,
    }  # fmt: skip
    return Weights(**{**given, **changes})  # type: ignore[arg-type]


def head_of(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


def test_what_is_recorded_stands_in_head_and_text() -> None:
    lineage = {
        "kind": "transferred", "labelled_set": "abc", "steps": 10, "recipe": {"name": "x"},
        "notes": ["Blind at night."], "initial": {"weights": "imagenet", "matched": 12}, "dataset": "camvid: \"free\"",
        "validation": {"images": 4, "every": 5, "best": 5, "looks": LOOKS},
    }  # fmt: skip
    metrics = {"test": {"mean IoU": 0.61234, "images": 20, "by_class": {"road": 0.9}, "size": {"large": -1.0}}}
    card = model_card(record(lineage=lineage, metrics=metrics, licence="CC-BY-4.0"))
    head = head_of(card)
    assert head["license"] == "cc-by-4.0" and head["pipeline_tag"] == "image-segmentation"
    assert head["tags"] == ["visionmill", "semantic", "fcn"] and head["datasets"] == ['camvid: "free"']
    assert head["metrics"] == ["mean IoU", "main"]
    [index] = head["model-index"]  # type: ignore[misc]
    assert [each["metrics"] for each in index["results"]] == [
        [{"type": "mean IoU", "value": 0.61234}], [{"type": "main", "value": 0.5}]
    ]  # fmt: skip
    for said in ("| test | by_class/road | 0.9 |", "| labels held out of training | by_class/road | 0.7 |",
                 "labelled set: `abc`", "every 5 steps: 4 images", "began from: imagenet, 12 tensors",
                 "Blind at night.", "| 1 | road \\| lane | stuff |", "1,234,567 parameters"):  # fmt: skip
        assert said in card, said
    assert "pole" not in card and "large" not in card, "what could not be measured is no figure"


def test_what_is_not_recorded_is_called_so() -> None:
    card = model_card(record(classes=(), kind="colours"))
    assert card.count("Not recorded.") == 5 and "Nothing further is recorded about what it is meant for." in card
    head = head_of(card)
    assert head["license"] == "unknown" and not {"datasets", "metrics", "model-index", "pipeline_tag"} & head.keys()


@pytest.mark.parametrize("shipped", shipped_records(), ids=lambda each: each.name)
def test_the_shipped_model_has_a_card_whose_figures_are_its_records(shipped: Weights) -> None:
    card = model_card(shipped)
    assert shipped.licence in card and f"{shipped.num_parameters:,}" in card
    head = head_of(card)
    assert head["license"] in ("other", "apache-2.0", "cc0-1.0") and head["model-index"]
    bare = head_of(model_card(dataclasses.replace(shipped, metrics={}, lineage={})))
    assert "model-index" not in bare
