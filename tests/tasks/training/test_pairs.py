"""Models for clips learn from pairs: a labelled frame, and the one before it as its reference."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from infra.store import open_store
from modelkit import VisionModel, create_model
from modelkit.digitscape import Digitscape, SceneStyle, write_label_set
from modelkit.training.processes import Rank
from tasks.labels.reading import read_label_set
from tasks.products.segments.digitscape import panoptic_config
from tasks.training.examples import Example, examples_of_labels, load_training_set, save_training_set
from tasks.training.loading import Batch, Batches, ExampleReader
from tasks.training.recipe import PLAIN, Noise
from tests.tasks.training.scenes import recipe

SOURCE = Digitscape("train", (64, 64), 5, SceneStyle(digits=(2, 2), size_px=(24, 30), empty_share=0.0), dense=False)
NUM_FRAMES = 3


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """Two clips of three frames, as they come back from a training set."""
    folder = tmp_path_factory.mktemp("clips")
    _, panoptic, _ = write_label_set(folder, SOURCE, 2, num_frames=NUM_FRAMES)
    store = open_store(str(folder))
    rows = read_label_set(str(panoptic)).table.to_pylist()
    return load_training_set(store, save_training_set(store, examples_of_labels(rows)))


@pytest.fixture(scope="module")
def vpsnet() -> VisionModel:
    config = {**panoptic_config("vpsnet"), "transform": {"min_size": 64, "max_size": 64}}
    return create_model("vpsnet", num_things=10, num_stuff=5, **config)


def batch_of(model: VisionModel, examples: list[Example], noise: Noise = PLAIN) -> Batch:
    """The first batch of four."""
    plan = recipe(batch_size=4, labelled=noise)
    batches = Batches(ExampleReader(model, "panoptic"), examples, [], plan, Rank())
    try:
        return batches.batch(0, lambda _: False).labelled
    finally:
        batches.close()


def test_every_frame_but_the_first_comes_with_the_one_before_it(examples: list[Example], vpsnet: VisionModel) -> None:
    images, targets = batch_of(vpsnet, examples)
    reader = ExampleReader(vpsnet, "panoptic")
    plain = {(each.uri, each.frame or 0): reader.read(each) for each in examples}
    seen = set()
    for image, target in zip(images, targets, strict=True):
        [(uri, frame)] = [place for place, sample in plain.items() if torch.equal(sample.image, image)]
        before = plain[uri, frame - 1]
        assert torch.equal(target["reference_image"], before.image)
        assert torch.equal(target["reference_boxes"], before.target["boxes"])
        assert torch.equal(target["reference_track_ids"], before.target["track_ids"])
        assert len(target["track_ids"]) == len(target["boxes"])
        seen.add((uri, frame))
    assert {frame for _, frame in seen} == {1, 2} and len(seen) == 4, "an epoch: all but the first frames"


def test_both_frames_of_a_pair_get_the_same_noise_and_pairs_are_not_mixed(
    examples: list[Example], vpsnet: VisionModel
) -> None:
    flipped = Noise(({"name": "horizontal_flip", "probability": 1.0},), cutmix=1.0, copy_paste=1.0)
    plain, mirrored = batch_of(vpsnet, examples), batch_of(vpsnet, examples, flipped)
    for image, other in zip(plain[0], mirrored[0], strict=True):
        assert torch.allclose(image.flip(-1), other, atol=1e-5)
    for target, other in zip(plain[1], mirrored[1], strict=True):
        assert torch.allclose(target["reference_image"].flip(-1), other["reference_image"], atol=1e-5)
        x1, y1, x2, y2 = target["reference_boxes"].unbind(1)
        assert torch.allclose(torch.stack([64 - x2, y1, 64 - x1, y2], 1), other["reference_boxes"], atol=1e-3)


def test_objects_that_nobody_tracked_make_no_pairs_and_models_of_images_want_none(
    examples: list[Example], vpsnet: VisionModel, tmp_path: Path
) -> None:
    untracked = [
        dataclasses.replace(each, objects=tuple(dataclasses.replace(one, track_id=None) for one in each.objects))
        for each in examples
    ]
    assert not any("reference_image" in target for target in batch_of(vpsnet, untracked)[1])
    alone = [each for each in examples if each.frame == 0]
    assert not any("reference_image" in target for target in batch_of(vpsnet, alone)[1]), "no frame is before them"
    config = {**panoptic_config("panoptic_fpn"), "transform": {"min_size": 64, "max_size": 64}}
    of_images = create_model("panoptic_fpn", num_things=10, num_stuff=5, **config)
    assert not any({"reference_image", "track_ids"} & target.keys() for target in batch_of(of_images, examples)[1])
    store = open_store(str(tmp_path))
    assert save_training_set(store, examples) != save_training_set(store, untracked), "tracks are part of a set"
