"""Published checkpoints: translated by a table, checked tensor by tensor, never unpickled into code."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from modelkit import (
    ClassInfo,
    UnknownNameError,
    WeightsError,
    WeightsUnavailableError,
    create_model,
    describe,
    import_weights,
    load,
    load_weights,
)
from modelkit.downloads import TRANSLATION, fetch
from modelkit.importing import TABLES, KeyTable, read_checkpoint, translation
from modelkit.importing.classes import read_classes
from modelkit.published import PUBLISHED, Published, find_published
from modelkit.registry import find_model, model_names
from tests.modelkit.builders import small_vpsnet


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A torchvision LR-ASPP with 6 classes, saved the way torchvision's training script does, from many processes."""
    torch.manual_seed(2)
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=6
    )
    path = tmp_path / "model_3.pth"
    torch.save({"model": {f"module.{k}": v for k, v in model.state_dict().items()}, "epoch": 3}, path)
    return path


def test_a_checkpoint_becomes_weights_with_a_record(checkpoint: Path, tmp_path: Path) -> None:
    record = import_weights("lraspp_mobilenet_v3_large", checkpoint, tmp_path / "out")
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert record.name == f"lraspp_mobilenet_v3_large-{digest[:8]}"
    assert record.config["num_classes"] == 6
    assert [each.id for each in record.classes] == [1, 2, 3, 4, 5]
    assert record.lineage == {"kind": "imported", "file": "model_3.pth", "file_sha256": digest}
    assert record.licence == "unknown"
    model, again = load_weights(tmp_path / "out")
    assert again == record == describe(tmp_path / "out")
    theirs = torch.load(checkpoint, weights_only=True)["model"]
    own = model.state_dict()
    assert len(own) == len(theirs)
    for name, value in theirs.items():
        assert torch.equal(own[f"network.{name.removeprefix('module.')}"], value)


def test_names_and_classes_can_be_given(checkpoint: Path, tmp_path: Path) -> None:
    classes = (ClassInfo(1, "road", False),)
    options = {"weights_name": "roads", "classes": classes, "config": {"background": None}}
    record = import_weights("lraspp_mobilenet_v3_large", checkpoint, tmp_path, **options)
    assert (record.name, record.classes, record.config["background"]) == ("roads", classes, None)
    assert (tmp_path / "roads.safetensors").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("names.json", '{"1": "road", "3": "sky"}'),
        ("list.json", '[{"id": 3, "name": "sky"}, {"id": 1, "name": "road", "is_thing": false}]'),
        (
            "coco.json",
            '{"images": [], "categories": [{"id": 1, "name": "road", "isthing": 0}, {"id": 3, "name": "sky"}]}',
        ),
    ],
)
def test_classes_are_read_from_a_file(checkpoint: Path, tmp_path: Path, file: str, content: str) -> None:
    (tmp_path / file).write_text(content)
    record = import_weights("lraspp_mobilenet_v3_large", checkpoint, tmp_path / "out", classes=tmp_path / file)
    assert record.classes == (ClassInfo(1, "road", False), ClassInfo(3, "sky", False))


def test_classes_may_be_one_name_a_line_or_a_well_known_set(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("road\nsky\n")
    record = import_weights("lraspp_mobilenet_v3_large", checkpoint, tmp_path / "out", classes=tmp_path / "names.txt")
    assert record.class_names() == {1: "road", 2: "sky"}
    in_a_row, with_gaps = (read_classes(name, many(count)) for name, count in (("coco80", 80), ("coco91", 90)))
    assert (in_a_row[0], in_a_row[79]) == (ClassInfo(1, "person"), ClassInfo(80, "toothbrush"))
    assert (with_gaps[0], with_gaps[-1], len(with_gaps)) == (ClassInfo(1, "person"), ClassInfo(90, "toothbrush"), 80)
    assert read_classes("voc", many(20))[19].name == "tvmonitor"


def many(count: int) -> list[ClassInfo]:
    return [ClassInfo(k, f"class {k}") for k in range(1, count + 1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"9": "sky"}', r"\[9\]; the model has ids 1 \.\. 5"),
        ("{", "which class is which"),
        ('{"a": "b"}', "which class"),
    ],
)
def test_classes_that_do_not_fit_are_refused(checkpoint: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "names.json").write_text(content)
    with pytest.raises(WeightsError, match=message):
        import_weights("lraspp_mobilenet_v3_large", checkpoint, tmp_path / "out", classes=tmp_path / "names.json")
    with pytest.raises(WeightsError, match="neither coco91, coco80, voc nor"):
        import_weights("lraspp_mobilenet_v3_large", checkpoint, tmp_path / "out", classes=str(tmp_path / "absent"))


SAID: list[tuple[str, dict[str, Any]]] = [
    ("maskrcnn_resnet50_fpn", {"min_size": 800, "max_size": 1333, "padding": "none", "size_divisible": 32}),
    ("retinanet_resnet50_fpn", {"min_size": 800, "max_size": 1333, "padding": "none", "size_divisible": 32}),
    ("fcos_resnet50_fpn", {"min_size": 800, "padding": "none"}),
    ("ssd300_vgg16", {"min_size": 300, "padding": "square"}),
    ("deeplabv3_resnet50", {"min_size": 520, "padding": "none", "size_divisible": 1, "antialias": True}),
    ("fcn8s", {"scale": 1.0, "padding": "none", "size_divisible": 1, "std": [1 / 255] * 3}),
    ("deeplabv3plus_resnet50", {"scale": 1.0, "padding": "none", "size_divisible": 1}),
    ("unet", {"scale": 0.5, "padding": "none", "mean": [0.0] * 3}),
    ("yolact", {"min_size": 550, "padding": "square"}),
]


@pytest.mark.parametrize(("name", "rule"), SAID, ids=[name for name, _ in SAID])
def test_imported_weights_are_shown_images_by_the_rule_of_their_own_system(name: str, rule: dict[str, Any]) -> None:
    with torch.device("meta"):
        transform = create_model(name, **TABLES[name].config).transform.to_config()
    assert {key: transform[key] for key in rule} == rule


def test_a_further_file_fills_one_module(tmp_path: Path) -> None:
    base = create_model("vpsnet", **small_vpsnet())
    torch.save(base.state_dict(), tmp_path / "vpsnet.pth")
    flow = torchvision.models.optical_flow.raft_small(weights=None)
    torch.save(flow.state_dict(), tmp_path / "raft.pth")
    config = small_vpsnet(flow={"name": "raft"})
    with pytest.raises(WeightsError, match=r"missing \(flow\.network"):
        import_weights("vpsnet", tmp_path / "vpsnet.pth", tmp_path / "out", config=config)
    parts = {"flow.network": tmp_path / "raft.pth"}
    record = import_weights("vpsnet", tmp_path / "vpsnet.pth", tmp_path / "out", config=config, parts=parts)
    assert record.lineage["parts"]["flow.network"]["file"] == "raft.pth"
    own = load_weights(tmp_path / "out")[0].state_dict()
    for name, value in flow.state_dict().items():
        assert torch.equal(own[f"flow.network.{name}"], value), name


def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    torch.save({"weight": Bomb()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="plain tensors"):
        import_weights("fcn_resnet50", tmp_path / "evil.pth", tmp_path / "out")
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"not a checkpoint", "plain tensors"), (b"", "plain tensors"), (None, "cannot read")],
)
def test_unreadable_files_are_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        import_weights("fcn_resnet50", path, tmp_path / "out")


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, [torch.zeros(1)], {"a": {"b": 1}}])
def test_files_without_a_state_dict_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match="state dict"):
        import_weights("fcn_resnet50", tmp_path / "odd.pth", tmp_path / "out")


def test_a_checkpoint_of_another_model_names_what_does_not_fit(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"missing .*surplus"):
        import_weights("deeplabv3_mobilenet_v3_large", checkpoint, tmp_path / "out")
    with pytest.raises(UnknownNameError, match="lraspp"):
        import_weights("lraspp", checkpoint, tmp_path / "out")


def test_key_tables_use_the_first_rule_drop_and_refuse_collisions() -> None:
    table = KeyTable(rules=((r"^a\.(\d)\.", r"x.\1."), (r"^a\.", "y.")), drop=(r"count$",))
    one = torch.zeros(1)
    assert set(table.rename({"a.1.w": one, "a.w": one, "a.count": one, "b": one})) == {"x.1.w", "y.w", "b"}
    with pytest.raises(WeightsError, match=r"'y.w'"):
        table.rename({"a.w": one, "y.w": one})


def test_a_detector_without_batch_counts_is_taken_for_one_with_frozen_norms() -> None:
    with torch.device("meta"):
        state = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    frozen = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    table = TABLES["maskrcnn_resnet50_fpn"]
    assert table.infer(dict(state)) == {"num_classes": 91}
    assert table.infer(frozen) == {"num_classes": 91, "backbone": {"norm": "frozen_batch"}}
    with torch.device("meta"):
        model = create_model("maskrcnn_resnet50_fpn", **table.infer(frozen))
    assert table.rename(frozen).keys() == model.state_dict().keys()


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: f"{entry.model}:{entry.weights}")
def test_every_published_entry_agrees_with_torchvision(entry: Published) -> None:
    meta = torchvision.models.get_weight(entry.entry).meta
    assert entry.model in TABLES
    assert entry.weights in find_model(entry.model).weights
    assert len(entry.file.digest_prefix) == 8
    int(entry.file.digest_prefix, 16)
    assert entry.url.startswith("https://download.pytorch.org/models/")
    with torch.device("meta"):
        model = create_model(entry.model, **entry.config)
    published = int(meta["num_params"])
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == published
    assert max(each.id for each in entry.classes) < model.config["num_classes"]
    assert entry.metrics


def test_every_weights_name_of_the_registry_is_published() -> None:
    for name in model_names():
        for weights in find_model(name).weights:
            assert find_published(name, weights).model == name


def test_weights_that_cannot_be_downloaded_say_so_and_name_what_comes_along(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_network(url: str, timeout: float) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsUnavailableError, match="no route to host") as error:
        load("maskrcnn_resnet50_fpn:COCO_V1")
    message = str(error.value)
    assert "digitscape_mask_rcnn, which finds only 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; nuclei, which finds only nu" in message
    assert str(tmp_path / "checkpoints" / "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth") in message
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with pytest.raises(WeightsUnavailableError, match=r"fc266e95\.pth; .*digitscape_heatmap, which finds only 0, 1"):
        load("keypointrcnn_resnet50_fpn:COCO_V1")


def test_a_download_that_arrives_damaged_is_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "damaged"
    source.write_bytes(b"half of it")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(Published, "url", property(lambda self: f"{source.as_uri()}/../damaged?x-bf2d0c1e.pth"))
    with pytest.raises(WeightsUnavailableError):
        fetch(find_published("maskrcnn_resnet50_fpn", "COCO_V1").file)
    assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file()]


def test_published_weights_are_fetched_once_translated_once_and_then_used_by_name(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The real path from a URL to a predictor, with a file of our own standing in for the published one."""
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    published = tmp_path / f"lraspp-{digest[:8]}.pth"
    checkpoint.rename(published)
    monkeypatch.setattr(Published, "url", property(lambda self: published.as_uri()))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    name = "lraspp_mobilenet_v3_large:COCO_WITH_VOC_LABELS_V1"
    first = load(name)
    assert first.weights.name == "lraspp_mobilenet_v3_large-COCO_WITH_VOC_LABELS_V1"
    assert first.weights.classes[0] == ClassInfo(1, "aeroplane", is_thing=False)
    assert first.weights.lineage["kind"] == "published"
    assert first.weights.metrics["COCO-val2017-VOC-labels"]["miou"] == 57.9
    published.unlink()
    monkeypatch.setattr(translation, "read_checkpoint", lambda *_: pytest.fail("translated twice"))
    assert load(name).weights == first.weights
    assert describe(name) == first.weights
    assert load("lraspp_mobilenet_v3_large").weights == first.weights


def test_who_changes_the_rules_of_published_weights_raises_the_number_of_the_translation() -> None:
    """Else machines that translated them before go on showing images by the old rules."""
    rules = {}
    for entry in PUBLISHED:
        with torch.device("meta"):
            model = create_model(entry.model, **{**TABLES[entry.model].config, **entry.config})
        rules[f"{entry.model}:{entry.weights}"] = model.transform.to_config()
    said = json.dumps(rules, sort_keys=True).encode()
    assert (TRANSLATION, hashlib.sha256(said).hexdigest()[:12]) == (2, "da227450477f")


def test_what_trainers_store_beside_the_tensors_is_left_behind(tmp_path: Path) -> None:
    weight = {"module.weight": torch.ones(1), "module.weight_names": ["a", "b"]}
    content = {"model_state": weight, "best_score": np.float64(0.7), "best_loss": np.float32(0.1), "optimizer": {}}
    torch.save(content, tmp_path / "it.pth")
    assert set(read_checkpoint(tmp_path / "it.pth", KeyTable(drop=("names$",)))) == {"weight"}
    with pytest.raises(WeightsError, match="weight_names"):
        read_checkpoint(tmp_path / "it.pth")


def test_a_first_convolution_that_saw_bgr_is_turned_to_rgb() -> None:
    weight = torch.arange(6.0).reshape(2, 3, 1, 1)
    table = KeyTable(rules=((r"^first", "stem"),), reverse_channels=(r"^first\.weight$",))
    renamed = table.rename({"first.weight": weight, "second.weight": weight})
    assert renamed["stem.weight"].flatten().tolist() == [2, 1, 0, 5, 4, 3]
    assert torch.equal(renamed["second.weight"], weight)
