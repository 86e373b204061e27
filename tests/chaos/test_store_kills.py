"""The S3 server killed in mid-run, and back after a while: every row is there, and none differs by a bit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.seaweedfs import SeaweedFS, endpoint_of
from infra.standing import StandingService
from infra.store import Store, open_store
from infra.store_s3 import create_bucket
from tasks.media.reading import WHOLE_BYTES
from tests.chaos.test_kills import driver
from tests.tasks.engine.fakes import write_images

pytestmark = [pytest.mark.chaos, pytest.mark.s3]

IMAGES, FRAMES, GONE_S = 60, 300, 20.0


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandingService]:
    """An S3 server of this test alone; the AWS_* variables point to it."""
    service = StandingService(SeaweedFS(), tmp_path_factory.mktemp("s3"))
    for name, value in endpoint_of(service.ensure(timeout_s=60.0)).environment().items():
        monkeypatch.setenv(name, value)
    create_bucket("s3://outage")
    yield service
    service.stop(timeout_s=10.0)


def write_noise(path: Path, frames: int) -> None:
    """A video too large to be fetched at once, with frames as the engine's fake model knows them."""
    noise = np.random.default_rng(1)
    with av.open(str(path), "w", format="matroska") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "bgr0"
        for index in range(frames):
            pixels = noise.integers(0, 256, (96, 128, 3), np.uint8)
            pixels[0, 0] = index % 256, index // 256, 0
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="bgr0")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def rows_in(output: Store) -> list[dict[str, Any]]:
    """All columns but those that say who computed a row, and when."""
    tables = [pq.read_table(output.open(info.key)) for info in output.list("segments/")]
    rows = [row for table in tables for row in table.drop_columns(["run_id", "processed_at"]).to_pylist()]
    return sorted(rows, key=lambda row: (row["uri"], row["frame"]))


def kill_for(server: StandingService, seconds: float) -> None:
    pid = server.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    time.sleep(seconds)
    server.ensure(timeout_s=120.0)


@pytest.mark.timeout(600)
def test_an_s3_server_killed_in_mid_run_costs_no_row_and_no_bit(server: StandingService, tmp_path: Path) -> None:
    write_images(tmp_path / "in", IMAGES)
    write_noise(tmp_path / "in" / "video.mkv", FRAMES)
    assert (tmp_path / "in" / "video.mkv").stat().st_size > WHOLE_BYTES
    source = open_store("s3://outage/in")
    for path in sorted((tmp_path / "in").iterdir()):
        source.put(path.name, path.read_bytes())
    with driver(source.uri, "s3://outage/whole", "--ray", "none", "--delay-s", "0") as one:
        assert one.end()["rows"] == IMAGES + FRAMES
    with driver(source.uri, "s3://outage/killed", "--ray", "none", "--delay-s", "0.05") as one:
        one.wait_for_progress(IMAGES // 2)
        kill_for(server, GONE_S)
        facts = one.end()
    assert (facts["finished"], facts["rows"]) == (True, IMAGES + FRAMES)
    found = rows_in(open_store("s3://outage/killed"))
    assert {row["status"] for row in found} == {"ok"}
    assert found == rows_in(open_store("s3://outage/whole"))
