"""Kill drivers and workers at random moments, run again: the sorted rows are those of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from infra.store import Store, open_store
from tasks.engine.heartbeat import read_heartbeat
from tasks.output.layout import parse_part_key
from tests.tasks.engine.fakes import write_images

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]
ITEMS, SHARD_ITEMS = 96, 8


def rows_of(store: Store) -> list[tuple[Any, ...]]:
    """All committed rows, without what differs from run to run; duplicates would show."""
    rows: list[tuple[Any, ...]] = []
    for info in store.list("segments/"):
        assert parse_part_key(info.key) is not None, f"{info.key} is no part"
        table = pq.read_table(store.open(info.key), columns=["uri", "frame", "status", "labels", "scores", "shard_id"])
        rows += [tuple(map(str, row.values())) for row in table.to_pylist()]
    return sorted(rows)


class Driver:
    """A driver process in a session of its own."""

    def __init__(self, source: Path | str, output: str, *options: str) -> None:
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.chaos.driver",
                str(source),
                output,
                "--shard-items",
                str(SHARD_ITEMS),
                *options,
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            start_new_session=True,
        )

    def family(self) -> list[psutil.Process]:
        """All processes below the driver."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def workers(self) -> list[int]:
        """Pids of its workers that are in the middle of something."""
        pids = {process.pid for process in self.family()}
        beats = [read_heartbeat(folder) for folder in Path(tempfile.gettempdir()).glob("visionmill-heartbeat-*")]
        return [beat.pid for beat in beats if beat is not None and beat.pid in pids and beat.oldest() is not None]

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read()

    def wait_for_progress(self, items: int, timeout_s: float = 200.0) -> None:
        """Until so many items have gone through, or it has ended."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None and time.monotonic() < deadline:
            if any(int(line.split()[-1]) >= items for line in self.said().splitlines() if line.startswith("progress")):
                return
            time.sleep(0.02)

    def end(self, timeout_s: float = 240.0) -> dict[str, Any]:
        """Wait for it; its facts."""
        out, _ = self.process.communicate(timeout=timeout_s)
        assert out.strip(), f"exit code {self.process.returncode}: {self.said()[-3000:]}"
        facts: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        return facts


@contextmanager
def driver(source: Path | str, output: str, *options: str) -> Iterator[Driver]:
    """A driver that is gone at the end, with everything below it."""
    one = Driver(source, output, *options)
    try:
        yield one
    finally:
        family = one.family()
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()
        for process in psutil.wait_procs(family, timeout=10)[1]:
            process.kill()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of which every 17th makes the model raise: failures must be the same, too."""
    folder = tmp_path_factory.mktemp("source")
    write_images(folder, ITEMS, dict.fromkeys(range(5, ITEMS, 17), "raise in infer"))
    return folder


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """The rows of a run that nobody disturbs."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    with driver(source, str(output), "--ray", "none", "--delay-s", "0") as one:
        assert one.end()["finished"]
    rows = rows_of(open_store(str(output)))
    assert len(rows) == ITEMS
    return rows


def test_a_driver_without_ray_killed_again_and_again_ends_with_the_same_rows(
    source: Path, undisturbed: list[tuple[Any, ...]], store_uri: str
) -> None:
    chance = random.Random(store_uri.count("s3"))
    for _ in range(5):
        with driver(source, store_uri, "--ray", "none", "--delay-s", "0.03") as one:
            one.wait_for_progress(1)
            time.sleep(chance.uniform(0.0, 0.8))
            os.kill(one.process.pid, signal.SIGKILL)
    with driver(source, store_uri, "--ray", "none", "--delay-s", "0") as one:
        facts = one.end()
    assert facts.get("finished") or facts.get("nothing_to_do")
    assert rows_of(open_store(store_uri)) == undisturbed
    with driver(source, store_uri, "--ray", "none") as one:
        assert one.end() == {"nothing_to_do": True}


@pytest.mark.ray
def test_driver_and_workers_killed_at_random_moments_then_run_again_give_the_same_rows(
    source: Path, undisturbed: list[tuple[Any, ...]], store_uri: str
) -> None:
    chance = random.Random(store_uri.count("s3"))
    with driver(source, store_uri, "--delay-s", "0.1") as one:
        one.wait_for_progress(chance.randint(4, 20))
        for pid in one.workers()[:1]:
            os.kill(pid, signal.SIGKILL)
        time.sleep(chance.uniform(0.0, 1.0))
        os.kill(one.process.pid, signal.SIGKILL)
    with driver(source, store_uri, "--delay-s", "0.05") as one:
        one.wait_for_progress(chance.randint(2, 20))
        for pid in one.workers()[:1]:
            os.kill(pid, signal.SIGKILL)
        facts = one.end()
    assert facts.get("finished") or facts.get("nothing_to_do")
    assert facts.get("quarantined", []) == []
    assert rows_of(open_store(store_uri)) == undisturbed


@pytest.mark.ray
def test_no_worker_outlives_its_driver(source: Path, tmp_path: Path) -> None:
    with driver(source, str(tmp_path / "out"), "--delay-s", "0.2") as one:
        one.wait_for_progress(2)
        family = one.family()
        assert len(one.workers()) >= 1
        os.kill(one.process.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive, [" ".join(process.cmdline())[:80] for process in alive]


@pytest.mark.ray
def test_sigterm_drains_running_shards_finish_and_nobody_is_left(
    source: Path, undisturbed: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    with driver(source, output, "--delay-s", "0.15") as one:
        one.wait_for_progress(2)
        family = one.family()
        os.kill(one.process.pid, signal.SIGTERM)
        facts = one.end()
        assert facts["drained"]
        assert not facts["finished"]
        assert facts["lost"] == 0
        assert 0 < facts["committed"] < ITEMS // SHARD_ITEMS
        assert one.process.returncode == 1
        assert not psutil.wait_procs(family, timeout=20)[1]
    assert len(rows_of(open_store(output))) == facts["rows"] == SHARD_ITEMS * facts["committed"]
    with driver(source, output, "--ray", "none", "--delay-s", "0") as one:
        assert one.end()["finished"]
    assert rows_of(open_store(output)) == undisturbed


def test_two_drivers_at_once_on_one_plan_commit_each_shard_once(
    source: Path, undisturbed: list[tuple[Any, ...]], store_uri: str
) -> None:
    with (
        driver(source, store_uri, "--ray", "none", "--delay-s", "0.03") as first,
        driver(source, store_uri, "--ray", "none", "--delay-s", "0.03") as second,
    ):
        facts = [first.end(), second.end()]
    assert all(one.get("finished") or one.get("nothing_to_do") for one in facts)
    assert sum(one.get("committed", 0) for one in facts) == ITEMS // SHARD_ITEMS
    assert rows_of(open_store(store_uri)) == undisturbed


@pytest.mark.ray
def test_two_pools_at_once_on_one_plan_commit_each_shard_once(
    source: Path, undisturbed: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    with (
        driver(source, output, "--workers", "1", "--delay-s", "0.05") as first,
        driver(source, output, "--workers", "1", "--delay-s", "0.05") as second,
    ):
        facts = [first.end(), second.end()]
    assert all(one.get("finished") or one.get("nothing_to_do") for one in facts)
    assert sum(one.get("committed", 0) for one in facts) == ITEMS // SHARD_ITEMS
    assert rows_of(open_store(output)) == undisturbed


@pytest.mark.ray
@pytest.mark.s3
def test_a_poison_image_in_a_bucket_is_named_and_quarantined_and_costs_no_neighbour_its_row(
    undisturbed: list[tuple[Any, ...]], s3_bucket: str, tmp_path: Path
) -> None:
    images, poisonous = tmp_path / "images", "0042.png"
    write_images(images, ITEMS, dict.fromkeys(range(5, ITEMS, 17), "raise in infer") | {42: "abort in infer"})
    inputs = open_store(f"{s3_bucket}/in")
    for path in images.iterdir():
        inputs.put(path.name, path.read_bytes())
    output = f"{s3_bucket}/out"
    with driver(inputs.uri, output, "--delay-s", "0") as one:
        facts = one.end()
    assert facts["finished"]
    assert facts["quarantined"] == [f"{inputs.uri}/{poisonous}"]
    statuses = {uri.rpartition("/")[2]: status for uri, _, status, *_ in rows_of(open_store(output))}
    expected = {uri.rpartition("/")[2]: status for uri, _, status, *_ in undisturbed}
    assert statuses == expected | {poisonous: "quarantined"}
    with driver(inputs.uri, output, "--ray", "none") as one:
        assert one.end() == {"nothing_to_do": True}
