"""The semantic recipe: systems learn a scene by heart, resume exactly, and leave weights that say what they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modelkit import describe, load
from modelkit.digitscape import Digitscape, Scene, SceneStyle
from modelkit.evaluation_semantic import label_map, truth
from modelkit.metrics import SemanticQuality
from modelkit.registry import create_model
from modelkit.semantic import SemanticSegmentor
from modelkit.training import semantic
from modelkit.training.checkpoint import load_checkpoint
from modelkit.training.loop import LoopConfig, Trainer
from modelkit.training.semantic import SemanticRecipe, build, losses_of, recipe_of, targets_of, train

TINY: dict[str, dict[str, Any]] = {
    "deeplabv3plus": {
        "backbone": {"name": "slim_resnet", "widths": [32, 64, 64], "depths": [1, 1, 1]},
        "head": {"channels": 64, "low_channels": 32, "dropout": 0.0},
    },
    "fcn": {
        "backbone": {"width": 16, "batch_norm": True, "depth": 11, "out": ["c2", "c3", "c4", "c5"]},
        "head": {"channels": 32, "dropout": 0.0},
    },
    "unet": {"backbone": {"widths": [16, 16, 32]}},
}


def tiny(name: str, **changes: Any) -> SemanticRecipe:
    recipe = recipe_of(name)
    model = {**recipe.model, **TINY[name], "transform": {"min_size": 64, "max_size": 64}}
    loop = LoopConfig(steps=4, warmup_steps=1, checkpoint_every=2)
    return replace(
        recipe, model=model, start=None, size_hw=(64, 64), batch_size=2, loop=loop, num_test_scenes=2, **changes
    )


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Two large digits, whose strokes are wider than the cells that the networks see."""
    style = SceneStyle(digits=(2, 2), empty_share=0.0, size_px=(52, 60), overlap=0.0, noise_std=0.0, blur_share=0.0)
    source = Digitscape("train", (64, 96), style=style, dense=False)
    return next(each for each in map(source.scene, range(50)) if len(each) == 2)


@pytest.mark.parametrize(("name", "side", "steps"), [("deeplabv3plus", 128, 150), ("fcn", 128, 100), ("unet", 64, 80)])
def test_every_system_learns_one_scene_by_heart(name: str, side: int, steps: int, scene: Scene) -> None:
    """Scenes are enlarged where logits lie on a coarse grid."""
    recipe = tiny(name)
    torch.manual_seed(0)
    transform = {"min_size": side, "max_size": 2 * side}
    model = create_model(**{**recipe.model, "upsample": "source", "transform": transform})
    assert isinstance(model, SemanticSegmentor)
    images, targets = targets_of([scene] * 2, recipe)
    loop = LoopConfig(
        steps=steps, learning_rate=4e-3, warmup_steps=5, weight_decay=0.0, decay_from=steps // 2, ema_decay=0.9
    )

    def losses(step: int) -> dict[str, torch.Tensor]:
        return {key: model.loss_weights[key] * value for key, value in model(images, targets).items()}

    Trainer(model, losses, loop).run()
    found = model.eval().predict(images[:1])[0].finish()
    quality = SemanticQuality(11)
    quality.add(truth(scene, "digits"), label_map(found))
    assert quality.scores().miou > 0.95, quality.scores()


def test_stopped_and_resumed_equals_not_stopped(tmp_path: Path) -> None:
    recipe = tiny("deeplabv3plus")
    train(recipe, tmp_path / "whole")
    model = build(recipe)
    first = Trainer(
        model, losses_of(model, recipe), recipe.loop, folder=tmp_path / "parts", fingerprint=recipe.fingerprint
    )
    first.run(until=3)
    train(recipe, tmp_path / "parts")
    whole, parts = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "parts")
    assert whole is not None and parts is not None
    assert whole.tensors.keys() == parts.tensors.keys()
    assert [name for name, tensor in whole.tensors.items() if not torch.equal(tensor, parts.tensors[name])] == []


def test_the_command_leaves_weights_with_what_they_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(semantic, "recipe_of", lambda name, steps, labels: tiny(name))
    assert semantic.main(["--model", "unet", "--folder", str(tmp_path), "--test-scenes", "2"]) == 0
    printed = json.loads(capsys.readouterr().out)
    record = describe(tmp_path / "weights")
    reached = record.metrics["digitscape-test"]
    assert printed["miou"] == reached["miou"] <= 1
    assert reached["scenes"] == 2
    assert reached["seconds_per_image"] > 0
    assert record.lineage["steps"] == 4
    assert [each.name for each in record.classes] == list("0123456789")
    assert not any(each.is_thing for each in record.classes)
    assert load(tmp_path / "weights").model.config["name"] == "unet"


@pytest.mark.parametrize("name", sorted(TINY))
def test_the_real_recipes_build_and_start_where_they_say(name: str) -> None:
    recipe = recipe_of(name, labels="all")
    assert recipe.model["num_classes"] == 16
    assert recipe.fingerprint != recipe_of(name).fingerprint != recipe_of(name, steps=5).fingerprint
    model = build(recipe)
    if recipe.start:
        shipped = load(recipe.start).model.state_dict()
        own = model.state_dict()
        assert torch.equal(own["network.backbone.stem.0.weight"], shipped["backbone.stem.0.weight"])
    assert recipe.start == "digitscape_mask_rcnn"


def test_background_pixels_count_less_where_there_is_a_background(scene: Scene) -> None:
    _, (target,) = targets_of([scene], tiny("unet"))
    background = torch.from_numpy(scene.instance_map) == 0
    assert target["semantic_weights"][background].unique().tolist() == pytest.approx([0.4])
    assert target["semantic_weights"][~background].unique().tolist() == [1]
    _, (target,) = targets_of([scene], tiny("unet", labels="all"))
    assert target["semantic_weights"].unique().tolist() == [1]
    assert int(target["semantic"].min()) >= 1


def test_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="semantic model"):
        build(replace(tiny("unet"), model={"name": "faster_rcnn"}))
