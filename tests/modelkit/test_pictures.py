"""What people hold in their hands is taken as it is, and what cannot be meant is refused in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from modelkit import ClassInfo, FunctionPredictor, Instances, ModelkitError, load
from modelkit.pictures import as_pixels

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


@pytest.mark.parametrize(
    "picture",
    [
        PIXELS,
        torch.from_numpy(PIXELS),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        Image.fromarray(PIXELS),
        Image.fromarray(PIXELS).convert("RGBA"),
    ],
    ids=["array", "tensor HWC", "tensor CHW", "PIL", "PIL with alpha"],
)
def test_arrays_tensors_and_pil_images_give_the_same(picture: object) -> None:
    assert np.array_equal(as_pixels(picture), PIXELS)


def test_a_predictor_takes_all_of_them_at_once() -> None:
    predictor = load("lraspp_mobilenet_v3_large:random:0")
    pictures = [PIXELS, torch.from_numpy(PIXELS).permute(2, 0, 1), Image.fromarray(PIXELS)]
    first, *others = predictor(pictures)
    assert all(found.rles == first.rles for found in others)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (PIXELS[..., 0], r"got \(48, 64\) uint8"),
        (torch.rand(3, 48, 64), "float32; numbers from 0 to 1 times 255"),
        ("a.jpg", "an array, a torch tensor or a PIL image, got str"),
    ],
)
def test_what_is_no_picture_is_said(picture: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        as_pixels(picture)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_plainly() -> None:
    with pytest.raises(ModelkitError, match=r"device 'cuda': torch \(.*\) sees 0 GPUs here"):
        load("lraspp_mobilenet_v3_large:random:0", device="cuda")
    with pytest.raises(ModelkitError, match="there is no device 'gpu': cpu, cuda"):
        load("lraspp_mobilenet_v3_large:random:0", device="gpu")


def test_masks_come_back_as_they_were_given() -> None:
    masks = np.zeros((2, 5, 7), bool)
    masks[0, 1:3, 2:6] = masks[1, 4, 6] = True
    found = Instances.from_masks(masks, [0.9, 0.2], [1, 3])
    assert np.array_equal(found.masks(), masks)
    assert found.boxes_xyxy.tolist() == [[2, 1, 6, 3], [6, 4, 7, 5]]
    assert Instances.from_masks(masks[:0], [], []).masks().shape == (0, 5, 7)
    with pytest.raises(ValueError, match="boxes without masks"):
        Instances((5, 7), found.boxes_xyxy, found.scores, found.labels, None, found.is_thing).masks()


def test_a_function_is_a_predictor() -> None:
    def whole(image: np.ndarray) -> Instances:
        return Instances.from_masks(np.ones((2, *image.shape[:2]), bool), [0.9, 0.1], [1, 1])

    predictor = FunctionPredictor(whole, [ClassInfo(1, "all")], min_score=0.5)
    (found,) = predictor([Image.fromarray(PIXELS)])
    assert found.scores.tolist() == pytest.approx([0.9]) and predictor.weights.class_names() == {1: "all"}
