"""The adapter for transformers: equal logits, all tasks, helpful refusals. Most need the extra ``hf``."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from modelkit import ConfigError, WeightsUnavailableError, describe, load
from modelkit.huggingface import transform_of
from modelkit.registry import model_names, temporary_registrations
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
        ({"size": {"height": 384, "width": 512}}, (384, 512)),
        ({"size": {"shortest_edge": 800, "longest_edge": 1333}}, (800, 1333)),
        ({"size": 800, "max_size": 1333}, (800, 1333)),
    ],
)
def test_every_way_to_say_a_size_is_understood(processor: dict[str, Any], sizes: tuple[int, int]) -> None:
    transform = transform_of(processor)
    assert (transform["min_size"], transform["max_size"]) == sizes
    assert transform["mean"] == [0.485, 0.456, 0.406]
    assert transform_of({**processor, "do_normalize": False})["std"] == [1.0, 1.0, 1.0]


def test_segformer_gives_its_own_logits_and_a_semantic_map(tmp_path: Path) -> None:
    location, theirs = saved(tmp_path, "SegformerForSemanticSegmentation")
    predictor = load(f"hf:{location}")
    image = picture(64, 96)
    with torch.inference_mode():
        batch, _ = predictor.model.transform.batch([as_tensor(image)])
        assert torch.allclose(batch, (as_tensor(image)[None] - 0.5) / 0.25)
        assert (predictor.model.dense(batch)["logits"] - theirs(pixel_values=batch).logits).abs().max() <= 1e-5
    found = predictor([image])[0]
    assert found.size_hw == (64, 96)
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


@pytest.mark.parametrize(
    "architecture",
    ["Mask2FormerForUniversalSegmentation", "MaskFormerForInstanceSegmentation", "DetrForSegmentation"],
)
@pytest.mark.parametrize(("task", "num_labels"), [("instance", 3), ("panoptic", 133), ("panoptic", 3)])
def test_queries_become_instances_or_panoptic_segments(
    tmp_path: Path, architecture: str, task: str, num_labels: int
) -> None:
    location, theirs = saved(tmp_path, architecture, num_labels)
    asked = f"{task}:" if (task, num_labels) == ("panoptic", 3) else ""
    predictor = load(f"hf:{asked}{location}")
    assert predictor.weights.kind == task
    assert len(predictor.weights.classes) == num_labels
    assert sum(each.is_thing for each in predictor.weights.classes) == (80 if num_labels == 133 else num_labels)
    batch, _ = predictor.model.transform.batch([as_tensor(picture(64, 96))])
    with torch.inference_mode():
        raw, expected = predictor.model.dense(batch), theirs(pixel_values=batch)
    is_detr = architecture.startswith("Detr")
    assert (raw["classes"] - (expected.logits if is_detr else expected.class_queries_logits)).abs().max() <= 1e-5
    assert (raw["masks"] - (expected.pred_masks if is_detr else expected.masks_queries_logits)).abs().max() <= 1e-4
    predictor.model.min_score = 0.0
    found = predictor([picture(40, 90)])[0]
    assert found.size_hw == (40, 90)
    assert len(found) > 0 or task == "panoptic"


def test_what_it_cannot_load_is_refused_by_name(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    location, _ = saved(tmp_path / "segformer", "SegformerForSemanticSegmentation")
    with pytest.raises(ConfigError, match="semantic segmentation, not panoptic"):
        load(f"hf:panoptic:{location}")
    (tmp_path / "bert").mkdir()
    transformers.BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match="BertModel"):
        load(f"hf:{tmp_path / 'bert'}")
    with pytest.raises(WeightsUnavailableError):
        load(f"hf:{tmp_path / 'absent'}")
