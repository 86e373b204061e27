"""Outputs to look at; and property tests that are the same on every run, where a busy machine is no failure."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from infra.store import Store, open_store
from tests.tasks.output.fake_output import FakeOutput, Item

settings.register_profile("tasks", deadline=None, derandomize=True)
settings.load_profile("tasks")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "out"))


@pytest.fixture
def output(store: Store) -> FakeOutput:
    """An empty output, ready to be committed to."""
    return FakeOutput(store)


@pytest.fixture
def filled(output: FakeOutput) -> FakeOutput:
    """One plan of three shards: twelve pictures, four frames of a tracked video, one failure."""
    items = [Item(f"s3://pictures/{index:02d}.jpg") for index in range(12)]
    items += [Item("s3://pictures/clip.mp4", frame=frame, pts_s=frame / 4, track=True) for frame in range(4)]
    items += [Item("s3://pictures/broken.jpg", status="failed")]
    output.commit(items, num_shards=3)
    return output
