"""States of clips: as bytes and back; and the predictor that takes a clip in pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import modelkit
from modelkit.errors import ModelkitError, StateError
from modelkit.registry import temporary_registrations
from modelkit.video import VideoState
from modelkit.weights import random_weights
from tests.tasks.engine.video_fakes import SquareTracker, make, picture, video_job


def a_state() -> VideoState:
    features = torch.randn(1, 8, 3, 5, generator=torch.Generator().manual_seed(0))
    return VideoState(
        frame=7,
        tensors={
            "planes": features,
            "pixels": features.to(memory_format=torch.channels_last),
            "half": features[0, 0].to(torch.bfloat16),
            "labels": torch.arange(4),
            "none": torch.zeros(0, 4),
            "view": features[:, :2],
        },
        counters={"next_id": 12, "key_frame": 5},
    )


def test_a_state_comes_back_from_its_bytes_as_it_was_memory_format_included() -> None:
    state = a_state()
    back = VideoState.from_bytes(state.to_bytes())
    assert (back.frame, back.counters) == (state.frame, state.counters)
    assert back.tensors.keys() == state.tensors.keys()
    for name, value in state.tensors.items():
        assert torch.equal(back.tensors[name], value)
        assert back.tensors[name].dtype == value.dtype
    assert back.tensors["pixels"].stride() == state.tensors["pixels"].stride()
    assert back.tensors["planes"].stride() == state.tensors["planes"].stride()
    assert state.to_bytes() == back.to_bytes() == a_state().to_bytes()


@pytest.mark.parametrize("damage", [slice(0, 0), slice(0, 40), slice(0, -3), slice(8, None)])
def test_bytes_that_are_no_state_are_refused(damage: slice) -> None:
    with pytest.raises(StateError, match="no state of a clip"):
        VideoState.from_bytes(a_state().to_bytes()[damage])


def test_a_state_of_another_format_is_refused() -> None:
    with pytest.raises(StateError, match="format"):
        VideoState.from_bytes(a_state().to_bytes().replace(b"visionmill.state.v1", b"visionmill.state.v2"))


def test_a_clip_in_pieces_through_bytes_equals_the_clip_in_one_piece() -> None:
    predictor = make(video_job("/nowhere"))
    frames = [predictor.prepare(picture(0, index)) for index in range(20)]
    whole, state = [], predictor.start()
    for frame in frames:
        found, state = predictor.step(frame, state)
        whole.append(predictor.finish(found))
    pieces, state = [], predictor.start()
    for index, frame in enumerate(frames):
        if index in (1, 7, 8):
            state = VideoState.from_bytes(state.to_bytes())
        found, state = predictor.step(frame, state)
        pieces.append(predictor.finish(found))
    for one, other in zip(whole, pieces, strict=True):
        assert one.rles == other.rles
        assert np.array_equal(one.scores, other.scores)
        assert np.array_equal(one.track_ids, other.track_ids)
    assert max(whole[-1].track_ids) > 3


def test_the_predictor_agrees_with_the_model_and_takes_an_image_as_a_first_frame() -> None:
    predictor = make(video_job("/nowhere"))
    images = [picture(1, index) for index in range(6)]
    expected, _ = predictor.model.predict_video([torch.from_numpy(image).permute(2, 0, 1) / 255 for image in images])
    state = predictor.start()
    for image, one in zip(images, expected, strict=True):
        found, state = predictor.step(predictor.prepare(image), state)
        assert torch.equal(found.ids, one.ids)
        assert found.score == pytest.approx(one.score)
    for image, alone in zip(images, predictor(images), strict=True):
        (fresh,), _ = predictor.model.predict_video([torch.from_numpy(image).permute(2, 0, 1) / 255])
        assert np.array_equal(alone.track_ids, fresh.ids.numpy()), "each image counts from the start"


def test_whether_a_model_has_a_memory_is_known_from_its_record() -> None:
    with temporary_registrations():
        modelkit.register_model("square_tracker", architecture="SquareTracker", kind="panoptic")(SquareTracker)
        _, record = random_weights("square_tracker", 0)
        assert modelkit.is_video_model(record)
    _, record = random_weights("lraspp_mobilenet_v3_large", 0)
    assert not modelkit.is_video_model(record)


def test_a_model_without_a_memory_refuses_clips() -> None:
    predictor = modelkit.load("lraspp_mobilenet_v3_large:random:0")
    assert not predictor.is_video
    with pytest.raises(ModelkitError, match="single images"):
        predictor.start()
    with pytest.raises(ModelkitError, match="single images"):
        predictor.step(predictor.prepare(np.zeros((40, 40, 3), np.uint8)), VideoState(0, {}, {}))
