"""Resizing, padding, buckets, and the way back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.v2.functional import resize

from modelkit import ConfigError, TargetError
from modelkit.carriers.geometry import scale_boxes
from modelkit.predictor import normalise_u8
from modelkit.transform import Geometry, ImageTransform
from tests.modelkit.builders import as_tensor, picture, rectangles

COCO = ImageTransform()


@pytest.mark.parametrize(
    ("source_hw", "resized_hw"),
    [
        ((480, 640), (800, 1066)),  # shorter side decides
        ((427, 640), (800, 1199)),
        ((300, 900), (444, 1333)),  # longer side limits; 1333 / 900 * 300 = 444.3
        ((1, 1), (800, 800)),
        ((20000, 1), (1333, 1)),  # 0.07 columns become one
        ((1, 20000), (1, 1333)),
    ],
)
def test_resized_sizes(source_hw: tuple[int, int], resized_hw: tuple[int, int]) -> None:
    assert COCO.resized_hw(source_hw) == resized_hw


def test_a_batch_equals_torchvisions_transform() -> None:
    theirs = GeneralizedRCNNTransform(160, 256, list(COCO.mean), list(COCO.std)).eval()
    images = [as_tensor(picture(90, 150)), as_tensor(picture(131, 100)), as_tensor(picture(40, 199))]
    target = rectangles(90, 150, [[10, 20, 60, 80]], [1])
    expected, expected_targets = theirs(images[:1], [dict(target)])
    whole = theirs(images)[0]
    transform = ImageTransform(min_size=160, max_size=256)
    batch, geometries = transform.batch(images)
    assert [geometry.resized_hw for geometry in geometries] == whole.image_sizes
    assert torch.equal(batch, whole.tensors)
    resized = transform.target(target, geometries[0], aligned=False)
    assert torch.equal(resized["boxes"], expected_targets[0]["boxes"])
    assert torch.equal(resized["masks"], expected_targets[0]["masks"])
    assert expected.image_sizes[0] == geometries[0].resized_hw


def test_there_and_back_is_the_identity() -> None:
    boxes = torch.tensor([[0.0, 0, 640, 480], [13.5, 7.25, 100, 200]])
    for resized_hw in ((800, 1066), (111, 79), (1, 1333)):
        geometry = Geometry((480, 640), resized_hw, resized_hw)
        there = scale_boxes(boxes, geometry.source_hw, geometry.resized_hw)
        assert (geometry.boxes_to_source(there) - boxes).abs().max() < 1e-3


@pytest.mark.parametrize("source_hw", [(480, 640), (640, 427), (1, 1), (20000, 1), (1, 20000), (1080, 1920), (7, 11)])
@pytest.mark.parametrize("padding", ["pad", "stretch"])
def test_every_size_has_one_declared_bucket_that_holds_it(source_hw: tuple[int, int], padding: str) -> None:
    transform = ImageTransform(padding=padding)  # type: ignore[arg-type]
    bucket, resized = transform.bucket(source_hw), transform.resized_hw(source_hw)
    assert bucket in transform.buckets()
    assert bucket[0] >= resized[0]
    assert bucket[1] >= resized[1]
    assert all(side % transform.size_divisible == 0 for side in bucket)
    if padding == "stretch":
        assert bucket == resized


def test_buckets_are_few_and_common_photographs_waste_little() -> None:
    assert len(COCO.buckets()) <= 15
    for source_hw in ((480, 640), (640, 480), (427, 640), (1080, 1920), (500, 500), (375, 500)):
        rows, columns = COCO.resized_hw(source_hw)
        bucket = COCO.bucket(source_hw)
        assert bucket[0] * bucket[1] <= 1.05 * rows * columns


@pytest.mark.parametrize("padding", ["pad", "stretch", "none"])
def test_the_bucket_of_any_image_is_also_the_batch_of_that_image(padding: str) -> None:
    transform = ImageTransform(min_size=64, max_size=96, padding=padding)  # type: ignore[arg-type]
    for height in range(1, 140, 9):
        for width in range(1, 140, 11):
            bucket = transform.bucket((height, width))
            batch, _ = transform.batch([torch.zeros(3, height, width)], padded_hw=bucket)
            assert batch.shape[-2:] == bucket


def test_padding_is_zero_after_normalisation() -> None:
    batch, geometries = ImageTransform(min_size=32, max_size=64).batch([torch.ones(3, 20, 30)], padded_hw=(64, 64))
    rows, columns = geometries[0].resized_hw
    assert batch[:, :, rows:].abs().max() == 0
    assert batch[:, :, :, columns:].abs().max() == 0
    assert batch[:, :, :rows, :columns].min() > 0


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalising_bytes_equals_normalising_floats(memory_format: torch.memory_format) -> None:
    pixels = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    from_bytes = normalise_u8(pixels, COCO, memory_format)
    assert torch.allclose(from_bytes, COCO.normalise(pixels.float() / 255), atol=2e-6)
    assert from_bytes.is_contiguous(memory_format=memory_format)


def test_images_may_keep_their_own_size_or_a_share_of_it_within_the_limit() -> None:
    whole, half = (ImageTransform(32, 400, scale=scale, padding="none", size_divisible=1) for scale in (1.0, 0.5))
    assert [whole.resized_hw(size) for size in ((97, 131), (1, 1), (800, 200))] == [(97, 131), (1, 1), (400, 100)]
    assert half.bucket((97, 131)) == (48, 65)
    assert whole.to_config()["scale"] == 1.0
    assert "scale" not in ImageTransform().to_config(), "records of before must still say what the model does"
    assert ImageTransform.from_config(whole.to_config()) == ImageTransform.from_config(
        half.to_config() | {"scale": 1.0}
    )


def test_rules_of_other_systems_for_sizes() -> None:
    """torchvision's presets and transformers make the shorter side exact; torchvision's detectors cut both."""
    short = ImageTransform(520, 4160, fit="short", padding="none", size_divisible=1)
    image = torch.zeros((3, 427, 640), dtype=torch.uint8)
    assert short.resized_hw((427, 640)) == (520, 779) == resize(image, [520]).shape[1:]
    assert ImageTransform(520, 4160, padding="none").resized_hw((427, 640)) == (520, 779)
    assert ImageTransform(50, 400, padding="multiple").bucket((100, 170)) == (64, 96)
    assert ImageTransform(50, 400, padding="multiple").resized_hw((100, 170)) == (64, 96), "stretched, not padded"
    fixed = ImageTransform(50, 70, padding="none", size_divisible=1, fixed_hw=[50, 70])
    assert {fixed.bucket(size) for size in ((1, 1), (400, 30))} == {(50, 70)}
    later = {"scale", "fixed_hw", "fit", "resizing"}
    assert later.isdisjoint(ImageTransform().to_config()), "records of before must still say what the model does"
    assert later - {"scale", "fixed_hw"} <= replace(short, resizing="float").to_config().keys()


def test_training_sizes_are_drawn_from_the_list_and_only_in_training() -> None:
    transform = ImageTransform(min_size=32, max_size=500, train_min_sizes=(40, 50))
    torch.manual_seed(0)
    image = torch.zeros(3, 60, 60)
    drawn = {transform.batch([image], training=True)[1][0].resized_hw for _ in range(20)}
    assert drawn == {(40, 40), (50, 50)}
    assert transform.batch([image])[1][0].resized_hw == (32, 32)


def test_config_round_trip_and_refusals() -> None:
    transform = ImageTransform(min_size=5, max_size=9, padding="stretch", train_min_sizes=[3, 4])
    assert ImageTransform.from_config(transform.to_config()).to_config() == transform.to_config()
    for wrong in (
        {"min_size": 0},
        {"min_size": 10, "max_size": 9},
        {"padding": "mirror"},
        {"size": 3},
        {"scale": 0.0},
        {"scale": 1.0, "padding": "square"},
        {"fit": "long"},
        {"resizing": "int"},
        {"fixed_hw": [5]},
        {"fixed_hw": [5, 5], "padding": "square"},
    ):
        with pytest.raises(ConfigError):
            ImageTransform.from_config(wrong)
    with pytest.raises(TargetError, match="float"):
        transform.batch([torch.zeros(3, 4, 4, dtype=torch.uint8)])
