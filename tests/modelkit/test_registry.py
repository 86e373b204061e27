"""Names to builders: duplicates, unknown names, completed configs, the list of models."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from modelkit import ConfigError, DuplicateNameError, UnknownNameError, create_model, list_models, load, registry
from modelkit.records import shipped_records
from modelkit.registry import (
    build,
    complete,
    find_model,
    model_names,
    register,
    register_model,
    register_variant,
    temporary_registrations,
)
from tests.modelkit.builders import small_mask_rcnn, small_panoptic


def test_a_second_registration_is_refused_and_changes_nothing() -> None:
    with temporary_registrations():
        with pytest.raises(DuplicateNameError, match="mask_rcnn"):
            register_model("mask_rcnn", architecture="Other", kind="instance")(lambda: None)
        with pytest.raises(DuplicateNameError, match="resnet"):
            register("backbone", "resnet")(lambda: None)
    assert create_model("mask_rcnn", **small_mask_rcnn()).config["num_classes"] == 4


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"'mask_rcn'.*mask_rcnn"):
        create_model("mask_rcn")
    with pytest.raises(UnknownNameError, match=r"unknown backbone 'inception'; known: darknet53, efficientnet_lite0"):
        build("backbone", {"name": "inception"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"depth": 50}, "no option 'depth'.*num_classes"),
        ({"backbone": {"name": "resnet", "deepness": 3}}, "deepness"),
        ({"backbone": "resnet"}, "mapping"),
        ({"backbone": {"name": "resnet", "depth": 51}}, "51"),
        ({"num_classes": {1, 2}}, "plain JSON"),
        ({"num_classes": float("nan")}, "plain JSON"),
    ],
)
def test_wrong_configs_say_what_is_wrong(config: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        create_model("mask_rcnn", **config)


def test_configs_are_completed_all_the_way_down_and_are_plain_json() -> None:
    config = create_model("mask_rcnn", **small_mask_rcnn()).config
    assert json.loads(json.dumps(config)) == config
    assert config["name"] == "mask_rcnn"
    assert config["backbone"]["stem_width"] is None
    assert config["heads"]["mask"]["resolution"] == 14
    assert config["rpn"]["nms_iou"] == 0.7
    assert config["sampler"] == {"iou_threshold": 0.5, "per_image": 32, "positive_fraction": 0.25}
    assert config["transform"]["std"] == [0.229, 0.224, 0.225]


def test_nested_options_are_merged_into_the_default_part_and_a_name_replaces_it() -> None:
    merged = create_model("mask_rcnn", **small_mask_rcnn(heads={"box": {"nms_iou": 0.4}, "mask": None})).config
    assert merged["heads"]["box"]["nms_iou"] == 0.4
    assert merged["heads"]["box"]["fc_channels"] == [1024, 1024]
    assert merged["heads"]["mask"] is None
    replaced = create_model("mask_rcnn", **small_mask_rcnn(neck={"name": "fpn", "channels": 16})).config
    assert replaced["neck"] == {"name": "fpn", "channels": 16, "extra": "pool", "norm": None}


def test_a_variant_shares_the_builder_and_changes_defaults_only() -> None:
    with temporary_registrations():
        register_variant("tiny_rcnn", "mask_rcnn", **small_mask_rcnn(), weights=("W",))
        register_variant("tinier_rcnn", "tiny_rcnn", neck={"channels": 8})
        model = create_model("tinier_rcnn", num_classes=7)
        assert model.config["name"] == "tinier_rcnn"
        assert model.config["neck"]["channels"] == 8
        assert model.config["neck"]["extra"] == "pool"
        assert model.config["backbone"]["widths"] == [16, 24, 32, 48]
        assert model.config["num_classes"] == 7
        assert create_model("tiny_rcnn").config["neck"]["channels"] == 32
        with pytest.raises(DuplicateNameError):
            register_variant("tiny_rcnn", "mask_rcnn")


def test_completing_copies_and_is_idempotent() -> None:
    given = {"name": "slim_resnet", "widths": [8, 16], "depths": [1, 1]}
    completed = complete("backbone", given)
    assert complete("backbone", completed) == completed
    completed["widths"].append(3)
    assert given["widths"] == [8, 16]


def test_a_new_model_of_a_new_part_needs_two_decorators() -> None:
    with temporary_registrations():

        @register("neck", "doubling")
        def doubling(backbone: object, *, factor: int = 2) -> int:
            return factor

        class Tiny:
            def __init__(self, neck: int) -> None:
                self.neck = neck

        @register_model("tiny", architecture="Tiny", kind="semantic", parts={"neck": "neck"})
        def tiny(*, neck: dict[str, Any] | None = None) -> Any:
            return Tiny(build("neck", neck or {"name": "doubling"}, None))

        model: Any = create_model("tiny", neck={"name": "doubling", "factor": 5})
        assert model.neck == 5
        assert model.config == {"name": "tiny", "neck": {"name": "doubling", "factor": 5}}
        assert "tiny" in model_names()
    assert "tiny" not in model_names()


class _Point:
    """An entry point as an installed package would have it."""

    value = "somebody.models"

    def __init__(self, load: Callable[[], Any]) -> None:
        self.load = load


def _install(monkeypatch: pytest.MonkeyPatch, load: Callable[[], Any]) -> None:
    def points(*, group: str) -> list[_Point]:
        return [_Point(load)] if group == "visionmill.models" else []

    monkeypatch.setattr(registry, "entry_points", points)
    registry.import_installed.cache_clear()


def test_models_of_an_installed_package_are_known_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs() -> None:
        register_variant("somebodys_rcnn", "mask_rcnn", **small_mask_rcnn())

    with temporary_registrations():
        _install(monkeypatch, theirs)
        assert "somebodys_rcnn" in model_names()
        assert {info.name: info.kind for info in list_models()}["somebodys_rcnn"] == "instance"
    assert "somebodys_rcnn" not in model_names()


def test_an_installed_package_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("no module named abacus")

    with temporary_registrations():
        _install(monkeypatch, broken)
        with pytest.raises(ConfigError, match=r"somebody\.models.*abacus"):
            model_names()
    monkeypatch.undo()
    registry.import_installed.cache_clear()


def test_a_kind_is_any_word_and_a_name_may_say_who_loads_it() -> None:
    with temporary_registrations():
        register_model("gazer", architecture="Gazer", kind="gaze", listed=False)(lambda: None)
        assert find_model("gazer").kind == "gaze"
        assert "gazer" not in model_names(), "it exists only with somebody else's weights"
        asked: list[str] = []

        def loads(name: str) -> Any:
            asked.append(name)
            return create_model("mask_rcnn", **small_mask_rcnn()), shipped_records()[0]

        registry.register_source("elsewhere", loads)
        assert load("elsewhere:some/where").weights == shipped_records()[0]
        assert asked == ["elsewhere:some/where"]
        with pytest.raises(ConfigError, match="brings its own weights"):
            load("elsewhere:some/where", weights="COCO_V1")
        with pytest.raises(DuplicateNameError, match="elsewhere"):
            registry.register_source("elsewhere", loads)


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("mask_rcnn", small_mask_rcnn(), [(1, True), (2, True), (3, True)]),
        ("lraspp_mobilenet_v3_large", {"num_classes": 3}, [(1, False), (2, False)]),
        ("lraspp_mobilenet_v3_large", {"num_classes": 3, "background": None}, [(0, False), (1, False), (2, False)]),
        ("unet", {"num_classes": 1, "backbone": {"widths": [4, 4, 8]}}, [(1, False)]),
        ("panoptic_fpn", small_panoptic(), [(1, True), (2, True), (3, True), (4, False), (5, False)]),
    ],
)
def test_a_model_says_which_class_ids_it_has(name: str, config: dict[str, Any], expected: list[Any]) -> None:
    classes = create_model(name, **config).anonymous_classes()
    assert [(each.id, each.is_thing) for each in classes] == expected


def test_the_list_names_every_model_and_every_shipped_set_of_weights() -> None:
    infos = {info.name: info for info in list_models()}
    assert set(infos) == set(model_names()) | {record.name for record in shipped_records()}
    assert infos["maskrcnn_resnet50_fpn"].weights == ("COCO_V1",)
    assert infos["maskrcnn_resnet50_fpn"].num_parameters == 44_454_513
    assert infos["mask_rcnn"].kind == "instance"
    assert infos["faster_rcnn"].kind == "detection"
    assert {info.name for info in infos.values() if info.embedded} == {record.name for record in shipped_records()}
    assert list(infos) == sorted(infos)
