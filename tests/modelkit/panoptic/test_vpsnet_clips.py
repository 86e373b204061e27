"""VPSNet on clips: identities over time, and a state that can be handed over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from modelkit import ExecutionChoice, Predictor, create_model
from modelkit.panoptic import Regions, VPSNet
from modelkit.video import VideoState
from modelkit.weights import random_weights
from tests.modelkit.builders import as_tensor, picture, small_vpsnet
from tests.modelkit.panoptic.cases import regions

RED, BLUE = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])  # what two kinds of objects look like


def network(**changes: Any) -> VPSNet:
    torch.manual_seed(0)
    model = create_model("vpsnet", **small_vpsnet(**changes)).eval()
    assert isinstance(model, VPSNet)
    return model


def moving_frames(count: int) -> list[Tensor]:
    """A picture that is shifted by three pixels a frame."""
    wide = picture(64, 80 + 3 * count, 5)
    return [as_tensor(np.ascontiguousarray(wide[:, 3 * k : 3 * k + 80])) for k in range(count)]


def outputs(model: VPSNet, frames: list[Tensor], state: VideoState | None = None) -> tuple[list[Any], VideoState]:
    found, state = model.predict_video(frames, state)
    return [each.finish() for each in found], state


def same(first: Any, second: Any) -> bool:
    arrays = ("boxes_xyxy", "scores", "labels", "is_thing", "track_ids")
    return first.rles == second.rles and all(np.array_equal(getattr(first, n), getattr(second, n)) for n in arrays)


def things(found: Any) -> list[int]:
    return found.track_ids[found.is_thing].tolist()


@pytest.mark.parametrize("flow", [{"name": "zero"}, {"name": "raft", "iterations": 1}])
def test_a_clip_in_which_nothing_moves_gives_the_same_in_every_frame(flow: dict[str, Any]) -> None:
    model = network(flow=flow)
    found, state = outputs(model, [as_tensor(picture(64, 80))] * 3)
    assert len(things(found[0])) > 1
    assert sorted(things(found[0])) == list(range(len(things(found[0]))))  # the first frame counts from 0
    assert all(same(each, found[0]) for each in found[1:])
    assert state.frame == 3
    assert state.counters["next_id"] == len(things(found[0]))


def test_without_weights_of_a_flow_network_nothing_is_taken_to_move() -> None:
    with torch.device("meta"):
        assert create_model("vpsnet").config["flow"]["name"] == "zero"


def test_a_clip_in_pieces_equals_the_clip_in_one_piece() -> None:
    model, frames = network(), moving_frames(5)
    whole, end = outputs(model, frames)
    first, state = outputs(model, frames[:2])
    second, state = outputs(model, frames[2:3], state)
    third, state = outputs(model, frames[3:], state)
    assert all(same(a, b) for a, b in zip(whole, first + second + third, strict=True))
    assert (state.frame, state.counters) == (end.frame, end.counters)
    assert all(torch.equal(state.tensors[name], end.tensors[name]) for name in end.tensors)


def test_the_state_survives_as_bytes_and_is_never_changed() -> None:
    model, frames = network(), moving_frames(3)
    _, state = outputs(model, frames[:1])
    before = {name: value.clone() for name, value in state.tensors.items()}
    carried = VideoState.from_bytes(state.to_bytes())
    here, _ = outputs(model, frames[1:], state)
    there, _ = outputs(model, frames[1:], carried)
    assert all(same(a, b) for a, b in zip(here, there, strict=True))
    assert all(torch.equal(state.tensors[name], value) for name, value in before.items())
    assert "batch" not in state.tensors  # pixels are kept only for a flow that looks at them
    assert "batch" in outputs(network(flow={"name": "raft", "iterations": 1}), frames[:1])[1].tensors


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_predictor_of_the_dataset_job_gives_a_clip_in_pieces_the_same(channels_last: bool) -> None:
    model, record = random_weights("vpsnet", 0, small_vpsnet(flow={"name": "raft", "iterations": 1}))
    predictor = Predictor(model, record, choice=ExecutionChoice(channels_last=channels_last))
    frames = [predictor.prepare(picture(64, 80, seed)) for seed in range(3)]
    whole, state = [], predictor.start()
    for prepared in frames:
        raw, state = predictor.step(prepared, state)
        whole.append(predictor.finish(raw))
    pieces, handed = [], predictor.start()
    for prepared in frames:
        raw, handed = predictor.step(prepared, VideoState.from_bytes(handed.to_bytes()))
        pieces.append(predictor.finish(raw))
    assert all(same(a, b) for a, b in zip(whole, pieces, strict=True))
    assert handed.to_bytes() == state.to_bytes()
    assert things(whole[0])


def test_the_past_matters_and_only_through_the_state() -> None:
    model, frames = network(), moving_frames(2)
    alone, _ = outputs(model, frames[1:])
    after, _ = outputs(model, frames)
    again, _ = outputs(model, frames[1:])
    assert same(alone[0], again[0])
    assert not same(alone[0], after[1])
    assert same(alone[0], model.predict(frames[1:])[0].with_track_ids(torch.tensor(things(alone[0]))).finish())


def identify(
    model: VPSNet, frames: list[tuple[Regions, Tensor]], state: VideoState | None = None
) -> tuple[list[list[int]], VideoState]:
    """Identities of regions with given embeddings, frame by frame."""
    state = state or model.start()
    found = []
    for objects, embeddings in frames:
        ids, memory, next_id = model.identify(objects, embeddings, state)
        state = VideoState(state.frame + 1, memory, {"next_id": next_id})
        found.append(ids.tolist())
    return found, state


def frame(*objects: tuple[float, int, Tensor]) -> tuple[Regions, Tensor]:
    """Objects of 20 pixels (left border, class, look), the more to the left in the call the more certain."""
    boxes = [[x, 10.0, x + 20, 30] for x, _, _ in objects]
    scores = [0.95 - 0.05 * k for k in range(len(objects))]
    looks = [look for _, _, look in objects]
    found = regions(boxes, scores, [label for _, label, _ in objects])
    return found, torch.stack(looks) if looks else torch.zeros(0, 2)


@pytest.mark.parametrize("labels", [(1, 2), (1, 1)])
def test_two_objects_that_cross_keep_their_identities_by_class_or_by_look(labels: tuple[int, int]) -> None:
    clip = [frame((10.0 * k, labels[0], RED), (80 - 10.0 * k, labels[1], BLUE)) for k in range(9)]
    assert identify(network(), clip)[0] == [[0, 1]] * 9


def test_objects_of_different_class_that_look_alike_keep_their_identities_when_they_cross() -> None:
    clip = [frame((10.0 * k, 1, RED), (80 - 10.0 * k, 2, RED)) for k in range(9)]
    assert identify(network(), clip)[0] == [[0, 1]] * 9


def test_the_order_of_detections_does_not_matter() -> None:
    model, clip = network(), [frame((0, 1, RED), (50, 2, BLUE), (90, 3, RED)), frame((3, 1, RED), (55, 2, BLUE))]
    order = torch.tensor([2, 0, 1])
    shuffled = [(clip[0][0][order], clip[0][1][order]), (clip[1][0][order[1:] % 2], clip[1][1][order[1:] % 2])]
    straight, turned = identify(model, clip)[0], identify(model, shuffled)[0]
    assert straight == [[0, 1, 2], [0, 1]]
    assert turned == [[2, 0, 1], [0, 1]]


def test_an_object_that_returns_has_its_old_identity_unless_it_was_forgotten() -> None:
    alone = frame((0, 1, RED))
    clip = [frame((0, 1, RED), (60, 2, BLUE)), alone, alone, frame((0, 1, RED), (70, 2, BLUE))]
    assert identify(network(), clip)[0] == [[0, 1], [0], [0], [0, 1]]
    forgetful, state = identify(network(memory_frames=1), clip)
    assert forgetful == [[0, 1], [0], [0], [0, 2]]
    assert state.tensors["memory.ids"].tolist() == [0, 2]


def test_a_new_object_gets_the_next_identity_and_an_empty_frame_changes_nothing() -> None:
    clip = [frame((0, 1, RED)), frame(), frame((0, 1, RED), (60, 2, BLUE), (90, 3, BLUE))]
    found, state = identify(network(), clip)
    assert found == [[0], [], [0, 1, 2]]
    assert state.counters == {"next_id": 3}
    assert identify(network(), [frame(), frame((0, 1, RED))])[0] == [[], [0]]


def test_two_that_want_one_identity_the_better_has_it() -> None:
    clip = [frame((0, 1, RED)), frame((1, 1, RED), (30, 1, RED))]
    assert identify(network(), clip)[0] == [[0], [0, 1]]
    nearer = (clip[1][0][torch.tensor([1, 0])], clip[1][1])
    assert identify(network(), [clip[0], nearer])[0] == [[0], [1, 0]]


def test_memory_keeps_the_last_look_and_place_and_the_first_class() -> None:
    clip = [frame((0, 1, RED)), frame((6, 1, RED * 1.5))]
    _, state = identify(network(), clip)
    assert state.tensors["memory.embeddings"].tolist() == [[4.5, 0]]
    assert state.tensors["memory.boxes"].tolist() == [[6, 10, 26, 30]]
    assert state.tensors["memory.seen"].tolist() == [1]
