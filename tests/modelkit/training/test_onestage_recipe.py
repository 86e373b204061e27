"""The one-stage recipe: it starts from the shipped backbone, learns, resumes exactly, and its result is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from modelkit import load_weights
from modelkit.training import onestage
from modelkit.weights import shipped_folder


def small(steps: int) -> onestage.OneStageRecipe:
    recipe = onestage.digitscape_yolact(steps)
    loop = replace(recipe.loop, checkpoint_every=2, warmup_steps=1)
    return replace(recipe, loop=loop, batch_size=2, size_hw=(96, 96), num_test_scenes=2)


def test_the_backbone_is_the_shipped_detectors() -> None:
    model = onestage.build(small(4))
    shipped = load_weights(shipped_folder() / "digitscape_mask_rcnn.json")[0]
    theirs = shipped.state_dict()
    assert all(torch.equal(value, theirs[f"backbone.{name}"]) for name, value in model.backbone.state_dict().items())


def test_stopped_and_resumed_training_ends_with_the_same_weights_and_a_record_with_its_precision(
    tmp_path: Path,
) -> None:
    recipe = small(4)
    whole = onestage.train(recipe, None)
    onestage.train(recipe, tmp_path / "checkpoints", until=2)
    resumed = onestage.train(recipe, tmp_path / "checkpoints")
    assert resumed.step == whole.step == 4
    states = (trainer.ema.model.state_dict() for trainer in (whole, resumed))
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))
    metrics = onestage.judge(recipe, resumed)
    assert -1 <= metrics["mask"]["ap"] <= 1
    assert metrics["seconds_per_image"] > 0
    path = onestage.keep(recipe, resumed, metrics, tmp_path / "out")
    model, record = load_weights(path)
    assert record.metrics["digitscape-test"] == metrics
    assert record.lineage["recipe_fingerprint"] == recipe.fingerprint
    assert model.config["name"] == "yolact"
