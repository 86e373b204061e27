"""Records and tensor files: round trips, halved numbers, and everything that can be wrong with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from modelkit import (
    ClassInfo,
    Tolerates,
    VisionModel,
    Weights,
    WeightsError,
    create_model,
    load,
    load_weights,
    save_weights,
)
from modelkit.records import find_files, read_record, shipped_folder, with_metrics, write_record
from modelkit.weights import load_state, random_weights, serialise
from tests.modelkit.builders import as_tensor, picture, small_mask_rcnn

CLASSES = [ClassInfo(1, "one"), ClassInfo(2, "zwei"), ClassInfo(3, "sky", is_thing=False)]


@pytest.fixture(scope="module")
def model() -> VisionModel:
    return random_weights("mask_rcnn", 3, small_mask_rcnn())[0]


def saved(model: VisionModel, folder: Path) -> Weights:
    return save_weights(
        model,
        folder,
        name="squares",
        classes=CLASSES,
        lineage={"recipe": "r", "seed": 3},
        metrics={"test": {"AP": 0.5}},
        licence="CC0-1.0",
        tolerates=Tolerates(bf16=True, compile=False),
    )


def test_the_record_comes_back_as_it_was(model: VisionModel, tmp_path: Path) -> None:
    record = saved(model, tmp_path)
    loaded, again = load_weights(tmp_path)
    assert again == record
    assert again.classes == tuple(CLASSES)
    assert again.class_names() == {1: "one", 2: "zwei", 3: "sky"}
    assert again.tolerates == Tolerates(channels_last=True, bf16=True, compile=False)
    assert again.num_parameters == sum(p.numel() for p in model.parameters())
    assert again.preprocessing["min_size"] == 64
    assert again.preprocessing["value_range"] == [0.0, 1.0]
    assert again.reference == f"squares@{record.digest[:12]}"
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_the_kind_stands_in_the_file_under_the_name_it_has_had_from_the_first() -> None:
    shipped = shipped_folder() / "digitscape_mask_rcnn.json"
    written = json.loads(shipped.read_text())
    record = read_record(shipped)
    assert record.kind == written["task"] == "instance"
    assert list(record.to_json()) == list(written)
    assert record.to_json()["task"] == "instance" and "kind" not in record.to_json()


def test_what_changes_rows_changes_the_digest_that_versions_are_named_after(model: VisionModel, tmp_path: Path) -> None:
    record = saved(model, tmp_path)
    renamed = replace(record, classes=(ClassInfo(1, "uno"), *record.classes[1:]))
    higher = replace(record, config={**record.config, "heads": {**record.config["heads"], "mask": None}})
    assert len({each.rows_digest for each in (record, renamed, higher)}) == 3
    assert record.digest == renamed.digest == higher.digest
    for same in (with_metrics(record, {"AP": 1.0}), replace(record, licence="MIT", created="yesterday")):
        assert same.rows_digest == record.rows_digest
    write_record(tmp_path / "squares.json", renamed)
    assert load_weights(tmp_path)[1].rows_digest == renamed.rows_digest
    assert load(tmp_path).rows_digest == renamed.rows_digest


def test_weights_of_before_keep_their_versions_and_a_shipped_record_that_was_changed_does_not() -> None:
    shipped = read_record(shipped_folder() / "digitscape_mask_rcnn.json")
    assert shipped.to_json()["format"] == "visionmill.weights.v1"
    assert shipped.rows_digest == shipped.digest
    renamed = replace(shipped, classes=(ClassInfo(1, "zero"), *shipped.classes[1:]))
    assert renamed.classes != shipped.classes
    assert renamed.rows_digest != shipped.digest
    assert Weights.from_json(renamed.to_json()) == renamed
    untrained = random_weights("mask_rcnn", 3, small_mask_rcnn())[1]
    assert untrained.rows_digest == untrained.digest


@pytest.mark.parametrize("given", ["", "squares.safetensors", "squares.json"])
def test_folder_tensors_or_record_all_name_the_pair(model: VisionModel, tmp_path: Path, given: str) -> None:
    saved(model, tmp_path)
    assert find_files(tmp_path / given) == (tmp_path / "squares.safetensors", tmp_path / "squares.json")


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path: Path) -> None:
    changes = {"backbone": {"name": "slim_resnet", "widths": [16, 24, 32, 48], "depths": [1, 1, 1, 1]}}
    model = random_weights("mask_rcnn", 3, small_mask_rcnn(**changes))[0]
    save_weights(model, tmp_path / "full", name="w", classes=CLASSES)
    save_weights(model, tmp_path / "half", name="w", classes=CLASSES, stored="float16")
    sizes = [(tmp_path / kind / "w.safetensors").stat().st_size for kind in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    stored = safetensors.torch.load_file(tmp_path / "half" / "w.safetensors")
    kinds = {name.rsplit(".", 1)[-1]: value.dtype for name, value in stored.items() if "backbone" in name}
    assert kinds["weight"] == torch.float16
    assert kinds["running_var"] == torch.float32
    loaded, _ = load_weights(tmp_path / "half")
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    batch, _ = model.transform.batch([as_tensor(picture(60, 70))])
    with torch.inference_mode():
        a, b = model.dense(batch)["p3"], loaded.dense(batch)["p3"]
    assert (a - b).norm() / a.norm() < 5e-3


def test_the_same_tensors_always_give_the_same_bytes(model: VisionModel) -> None:
    state = model.state_dict()
    backwards = dict(reversed(list(state.items())))
    assert serialise(state) == serialise(backwards)


def test_a_damaged_file_is_noticed(model: VisionModel, tmp_path: Path) -> None:
    saved(model, tmp_path)
    path = tmp_path / "squares.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="SHA-256"):
        load_weights(tmp_path)


def test_missing_surplus_and_misshapen_tensors_are_named_and_nothing_is_copied(model: VisionModel) -> None:
    target = create_model("mask_rcnn", **small_mask_rcnn())
    before = {name: value.clone() for name, value in target.state_dict().items()}
    state = dict(model.state_dict())
    state["extra.weight"] = torch.zeros(1)
    del state["rpn.head.cls_logits.bias"]
    state["rpn.head.bbox_pred.bias"] = torch.zeros(7)
    with pytest.raises(
        WeightsError, match=r"1 missing \(rpn.head.cls_logits.bias\); 1 surplus \(extra.weight\)"
    ) as error:
        load_state(target, state, "somewhere.safetensors")
    assert "somewhere.safetensors" in str(error.value)
    assert "rpn.head.bbox_pred.bias (7,) instead of (12,)" in str(error.value)
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())


def test_records_that_are_missing_or_wrong_are_refused(model: VisionModel, tmp_path: Path) -> None:
    saved(model, tmp_path)
    path = tmp_path / "squares.json"
    value = json.loads(path.read_text())
    for change, message in (
        ({"format": "other.v9"}, "format"),
        ({"colour": 1}, "unknown.*colour"),
        ({"preprocessing": {**value["preprocessing"], "min_size": 65}}, "preprocessing"),
        ({"classes": [{"id": 1, "title": "x"}]}, "title"),
    ):
        path.write_text(json.dumps({**value, **change}))
        with pytest.raises(WeightsError, match=message):
            load_weights(tmp_path)
    path.write_text(json.dumps({key: each for key, each in value.items() if key != "digest"}))
    with pytest.raises(WeightsError, match=r"missing.*digest"):
        load_weights(tmp_path)
    path.write_text("{")
    with pytest.raises(WeightsError, match="readable"):
        load_weights(tmp_path)
    path.unlink()
    with pytest.raises(WeightsError, match="record"):
        load_weights(tmp_path)


def test_folders_without_exactly_one_tensor_file_are_refused(model: VisionModel, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="found none"):
        load_weights(tmp_path)
    saved(model, tmp_path)
    (tmp_path / "other.safetensors").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"other.safetensors, squares.safetensors"):
        load_weights(tmp_path)
    with pytest.raises(WeightsError, match="import"):
        load_weights(tmp_path / "model.pth")


def test_names_that_would_leave_the_folder_are_refused(model: VisionModel, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="name"):
        save_weights(model, tmp_path, name="../up", classes=CLASSES)
    assert not list(tmp_path.iterdir())


def test_random_weights_depend_on_the_seed_alone_and_say_so() -> None:
    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    a, first = random_weights("mask_rcnn", 5, small_mask_rcnn())
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    b, second = random_weights("mask_rcnn", 5, small_mask_rcnn())
    c, third = random_weights("mask_rcnn", 6, small_mask_rcnn())
    assert first == second
    assert first.digest != third.digest
    assert first.lineage == {"kind": "random", "seed": 5, "trained": False}
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))
