"""The adapter for transformers: equal logits, all tasks, helpful refusals. Most need the extra ``hf``."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modelkit import ConfigError, WeightsUnavailableError, describe, load
from modelkit.huggingface import transform_of
from modelkit.registry import model_names, temporary_registrations
from modelkit.transform import ImageTransform
from modelkit.weights import save_weights
from tests.modelkit.builders import as_tensor, picture
from tests.modelkit.huggingface.transformers_models import saved


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    with temporary_registrations():
        yield


def test_without_transformers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "transformers":
            raise ImportError("No module named 'transformers'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r"pip install 'visionmill\[hf\]'"):
        load("hf:nowhere")


@pytest.mark.parametrize(
    ("processor", "sizes"),
    [
        ({"size": 512}, (512, 512)),
        ({"size": {"height": 512, "width": 512}}, (512, 512)),
        ({"size": {"height": 384, "width": 512}}, (384, 512)),
        ({"size": {"shortest_edge": 800, "longest_edge": 1333}}, (750, 1333)),
        ({"size": 800, "max_size": 1333}, (750, 1333)),
        ({"size": {"shortest_edge": 800, "longest_edge": 1333}, "size_divisor": 32}, (768, 1344)),
        ({"size": {"shortest_edge": 540}}, (540, 960)),
        ({"do_resize": False}, (1080, 1920)),
    ],
)
def test_every_way_to_say_a_size_gives_the_size_that_transformers_gives(
    processor: dict[str, Any], sizes: tuple[int, int]
) -> None:
    transform = transform_of(processor)
    assert ImageTransform.from_config(transform).bucket((1080, 1920)) == sizes
    assert transform["mean"] == [0.485, 0.456, 0.406]
    assert transform_of({**processor, "resample": 3})["resizing"] == "bicubic"
    assert transform_of({**processor, "do_normalize": False})["std"] == [1.0, 1.0, 1.0]


def test_a_limit_on_the_longer_side_gives_the_sizes_that_transformers_gives() -> None:
    transforms = pytest.importorskip("transformers.image_transforms")
    transform = ImageTransform.from_config(transform_of({"size": {"shortest_edge": 80, "longest_edge": 133}}))
    sizes = np.random.default_rng(1).integers(1, 300, (2000, 2)).tolist()
    for size_hw in [*map(tuple, sizes), (80, 134), (134, 80), (79, 134), (80, 400)]:
        wanted = transforms.get_size_with_aspect_ratio(size_hw, 80, 133)
        assert transform.resized_hw(size_hw) == tuple(max(1, side) for side in wanted), size_hw


@pytest.mark.parametrize(
    "processor",
    [
        {"resample": 1},
        {"do_center_crop": True},
        {"pad_size": {"height": 64, "width": 64}},
        {"rescale_factor": 1.0},
        {"size": {"longest_edge": 9}},
    ],
)
def test_images_are_never_shown_otherwise_than_the_processor_says(processor: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(processor))):
        transform_of(processor)


def test_segformer_gives_its_own_logits_and_a_semantic_map(tmp_path: Path) -> None:
    location, theirs = saved(tmp_path, "SegformerForSemanticSegmentation")
    predictor = load(f"hf:{location}")
    image = picture(64, 64)
    with torch.inference_mode():
        batch, _ = predictor.model.transform.batch([as_tensor(image)])
        assert torch.allclose(batch, (as_tensor(image)[None] - 0.5) / 0.25)
        assert (predictor.model.dense(batch)["logits"] - theirs(pixel_values=batch).logits).abs().max() <= 1e-5
    found = predictor([image])[0]
    assert found.size_hw == (64, 64)
    assert set(found.labels.tolist()) <= {0, 1, 2}
    record = predictor.weights
    assert (record.kind, [each.id for each in record.classes]) == ("semantic", [0, 1, 2])
    assert record.config["num_classes"] == 3
    assert describe(f"hf:{location}").digest == record.digest


def test_saved_as_our_own_weights_it_loads_in_a_process_that_never_heard_of_it(tmp_path: Path) -> None:
    location, _ = saved(tmp_path, "SegformerForSemanticSegmentation")
    with temporary_registrations():
        first = load(f"hf:{location}")
        record, image = first.weights, picture(64, 96)
        save_weights(
            first.model, tmp_path / "ours", name="own", classes=record.classes, lineage={}, licence=record.licence
        )
    assert record.architecture not in model_names()
    again = load(tmp_path / "ours")
    assert again.weights.digest == record.digest
    assert again([image])[0].rles == first([image])[0].rles


def named(folder: Path, architecture: str, names: list[str], **config: Any) -> str:
    """A saved model whose config says the names of its classes, and more."""
    location, _ = saved(folder, architecture, len(names))
    path = folder / "config.json"
    said = {"id2label": {str(k): name for k, name in enumerate(names)}, "label2id": {n: k for k, n in enumerate(names)}}
    path.write_text(json.dumps(json.loads(path.read_text()) | said | config))
    return location


ADE = ["wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", *(f"class {k}" for k in range(8, 150))]


@pytest.mark.parametrize(
    ("folder", "names", "config", "kind", "things"),
    [
        ("mask2former-tiny-ade-semantic", ADE, {}, "semantic", 0),
        ("mask2former-tiny-ade-panoptic", ADE, {}, "panoptic", 100),
        ("own", ["Bird", *(f"class {k}" for k in range(1, 65))], {"task": "panoptic"}, "panoptic", 37),
        ("own", ["person", *(f"class {k}" for k in range(1, 133))], {}, "panoptic", 80),
        ("own", ["person", *(f"class {k}" for k in range(1, 80))], {}, "instance", 80),
        ("own", ["cat", "dog", "grass"], {"task": "instance"}, "instance", 3),
        ("own", ["cat", "dog", "grass"], {"task": "panoptic", "label_ids_to_fuse": [2]}, "panoptic", 2),
    ],
)
def test_what_a_checkpoint_does_and_which_classes_are_things_is_read_from_it(
    tmp_path: Path, folder: str, names: list[str], config: dict[str, Any], kind: str, things: int
) -> None:
    location = named(tmp_path / folder, "Mask2FormerForUniversalSegmentation", names, **config)
    record = describe(f"hf:{location}")
    assert record.kind == kind
    assert [each.name for each in record.classes] == names
    assert sum(each.is_thing for each in record.classes) == things
    if names is ADE and kind == "panoptic":
        assert next(each.name for each in record.classes if each.is_thing) == "bed"


def test_a_checkpoint_that_does_not_say_what_it_does_has_to_be_asked(tmp_path: Path) -> None:
    location, _ = saved(tmp_path / "own", "MaskFormerForInstanceSegmentation", 3)
    with pytest.raises(ConfigError, match="hf:panoptic:"):
        load(f"hf:{location}")
    assert {load(f"hf:{kind}:{location}").weights.kind for kind in ("semantic", "instance", "panoptic")} == {
        "semantic",
        "instance",
        "panoptic",
    }


def test_what_it_cannot_load_is_refused_by_name(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    location, _ = saved(tmp_path / "segformer", "SegformerForSemanticSegmentation")
    with pytest.raises(ConfigError, match="gives semantic, not panoptic"):
        load(f"hf:panoptic:{location}")
    (tmp_path / "bert").mkdir()
    transformers.BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match="BertModel"):
        load(f"hf:{tmp_path / 'bert'}")
    with pytest.raises(WeightsUnavailableError):
        load(f"hf:{tmp_path / 'absent'}")
