"""The panoptic recipe: batches are functions of the step, every system learns a scene, weights say what they are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from modelkit import describe, load
from modelkit.carriers import Instances
from modelkit.digitscape import Digitscape, SceneStyle
from modelkit.evaluation_panoptic import THINGS, evaluate_clips, evaluate_panoptic
from modelkit.metrics import PanopticQuality, panoptic_array
from modelkit.metrics.panoptic import DIVISOR
from modelkit.panoptic import PanopticSegmentor, VPSNet
from modelkit.rle import encode
from modelkit.training import panoptic
from modelkit.training.loop import LoopConfig, Trainer
from modelkit.training.panoptic import (
    PanopticRecipe,
    build,
    classes,
    rate_scales,
    recipe_of,
    scene_targets,
    train,
    training_batch,
)

# large digits: of a thin one, what two CPUs round differently decides whether it is found
SOURCE = Digitscape(
    "train", (96, 96), seed=5, style=SceneStyle(digits=(2, 3), size_px=(40.0, 60.0), empty_share=0.0), dense=False
)


def small(name: str, steps: int) -> PanopticRecipe:
    recipe = recipe_of(name, steps)
    model = {**recipe.model, "transform": {"min_size": 96, "max_size": 192}}
    return dataclasses.replace(
        recipe, model=model, size_hw=(96, 96), batch_size=2, style=SOURCE.style, tested_transform={},
        num_test_scenes=2, num_test_clips=1, clip_frames=3,
    )  # fmt: skip


def overfitted(name: str, steps: int) -> PanopticSegmentor:
    """A model after some steps on one scene, or on the second frame of one clip."""
    recipe = dataclasses.replace(small(name, steps), batch_size=1, fresh_rate=8.0)
    model = build(recipe)
    images, targets = training_batch(recipe, SOURCE, 0, pairs=isinstance(model, VPSNet))

    def losses(step: int) -> dict[str, torch.Tensor]:
        return {key: model.loss_weights[key] * value for key, value in model(images, targets).items()}

    loop = LoopConfig(steps=steps, learning_rate=4e-4, warmup_steps=4, ema_decay=0.9)
    Trainer(model, losses, loop, rate_scales=rate_scales(recipe, model)).run()
    return model.eval()


@pytest.mark.parametrize("name", ["panoptic_fpn", "upsnet"])
def test_it_learns_one_scene_by_heart(name: str) -> None:
    model = overfitted(name, 35)
    scene = SOURCE.scene(0)
    images, _ = scene_targets([scene])
    quality = PanopticQuality(THINGS)
    quality.add(scene.panoptic_array(DIVISOR), panoptic_array(model.predict(images)[0].finish()))
    scores = quality.scores()
    assert scores.all.rq == 1, scores
    assert scores.all.pq > 0.8, scores


def test_vpsnet_learns_one_clip_by_heart_and_keeps_its_identities() -> None:
    model = overfitted("vpsnet", 40)
    assert isinstance(model, VPSNet)
    images, _ = scene_targets(SOURCE.clip(0, 2))
    found = [each.finish() for each in model.predict_video(images)[0]]
    scores = evaluate_clips(lambda frames: found, SOURCE, 1, 2, windows=(1, 2))
    assert scores.windows[1].all.rq == scores.windows[2].all.rq == 1, scores
    assert scores.windows[2].all.pq > 0.8, scores
    assert scores.id_switches == 0
    assert scores.num_tracks == 2


def test_batches_are_functions_of_the_step_and_pairs_hold_the_frame_before() -> None:
    recipe = small("vpsnet", 5)
    (images, targets), (again, _) = (training_batch(recipe, SOURCE, 3, pairs=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(images, again, strict=True))
    assert len(images) == 2
    for target in targets:
        assert set(target["semantic"].unique().tolist()) <= set(range(1, 16))
        assert target["track_ids"].shape == target["labels"].shape
        assert target["reference_boxes"].shape == (len(target["reference_track_ids"]), 4)
        assert not torch.equal(target["reference_image"], images[0])


@pytest.mark.parametrize("name", ["panoptic_fpn", "upsnet", "vpsnet"])
def test_training_that_stops_goes_on_where_it_was(name: str, tmp_path: Path) -> None:
    recipe = small(name, 2)
    whole = train(recipe, None)
    train(recipe, tmp_path, until=1)
    resumed = train(recipe, tmp_path)
    assert resumed.step == 2
    state = whole.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in resumed.model.state_dict().items())


def test_the_fingerprint_tells_recipes_apart() -> None:
    found = {recipe_of(name, steps).fingerprint for name in ("panoptic_fpn", "upsnet", "vpsnet") for steps in (5, 6)}
    assert len(found) == 6


@pytest.mark.parametrize("name", ["panoptic_fpn", "upsnet", "vpsnet"])
def test_the_real_recipes_start_from_the_shipped_detector_and_fresh_parts_learn_faster(name: str) -> None:
    recipe = recipe_of(name)
    model = build(recipe)
    shipped = load(recipe.start).model.state_dict()
    own = model.detector.state_dict()
    assert all(torch.equal(own[key], value) for key, value in shipped.items())
    scales = rate_scales(recipe, model)
    assert scales["semantic."] == recipe.fresh_rate > 1
    offsets = [prefix for prefix in scales if prefix.endswith(".offset.")]
    assert len(offsets) == (0 if name == "panoptic_fpn" else 2)
    assert all(any(key.startswith(prefix) for key, _ in model.named_parameters()) for prefix in offsets)


def test_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="panoptic model"):
        build(dataclasses.replace(small("upsnet", 1), model={"name": "faster_rcnn"}))


@pytest.mark.parametrize(("name", "measure"), [("upsnet", "pq"), ("vpsnet", "vpq")])
def test_the_command_leaves_weights_with_what_they_reached(
    name: str, measure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(panoptic, "recipe_of", small)
    arguments = ["--model", name, "--steps", "2", "--folder", str(tmp_path), "--test-scenes", "2", "--test-clips", "1"]
    assert panoptic.main([*arguments, "--until", "1"]) == 0
    assert capsys.readouterr().out == ""
    assert panoptic.main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    record = describe(tmp_path / "weights")
    reached = record.metrics["digitscape-test"]
    assert 0 <= printed[measure] == reached[measure] <= 1
    assert 0 <= reached["pq_stuff_seen"] <= 1
    assert (reached["scenes"], record.lineage["steps"]) == (2, 2)
    assert [each.name for each in record.classes][:10] == list("0123456789")
    assert load(tmp_path / "weights").model.config["name"] == name


def test_digits_are_things_and_backgrounds_are_stuff() -> None:
    assert [each.is_thing for each in classes()] == [True] * 10 + [False] * 5
    assert [each.id for each in classes()] == list(range(1, 16))


def truth(images: list[np.ndarray]) -> list[Instances]:
    """The scenes' own segments, found by whoever knows them."""
    found = []
    for index in range(len(images)):
        scene = SOURCE.scene(index)
        array = scene.panoptic_array(DIVISOR)
        values = [int(value) for value in torch.from_numpy(array).unique()]
        found.append(
            Instances(
                size_hw=scene.size_hw,
                boxes_xyxy=torch.zeros(len(values), 4).numpy(),
                scores=torch.ones(len(values)).numpy(),
                labels=torch.tensor([value // DIVISOR for value in values], dtype=torch.int32).numpy(),
                rles=[encode(array == value) for value in values],
                is_thing=torch.tensor([value % DIVISOR > 0 for value in values]).numpy(),
            )
        )
    return found


def test_whoever_knows_the_truth_scores_one() -> None:
    scores = evaluate_panoptic(truth, SOURCE, 3, batch_size=3)
    assert scores.all.pq == scores.things.pq == scores.stuff.pq == 1
