"""Whole jobs, killed in every way, on a folder and on S3: rows must stay those of an undisturbed run.

    python -m benchmarks.kills [--items 120] [--note docs/benchmarks/DATE-kills.md]

Writes what was seen. Exit code 1 where a row differs, is missing or doubled, or an end was not explained.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.errors import BucketMissing
from infra.seaweedfs import SeaweedFS, endpoint_of
from infra.standing import StandingService
from infra.store import open_store
from infra.store_s3 import create_bucket
from tasks.engine.heartbeat import read_heartbeat
from tests.flows.scenes import put_scenes, write_scenes

COMMON = ("--no-prefect", "--no-report", "--shard-items", "3", "--compile", "off", "--json")
JOB, HERE = ("--workers", "2", *COMMON), ("--ray", "none", *COMMON)  # by workers of Ray; by one in the driver itself
MODEL = ("--model", "digitscape_mask_rcnn")
PATIENCE_S = 900.0


@dataclass
class Seen:
    """What came of one way to be disturbed."""

    name: str
    kills: int = 0
    ends: list[str] = field(default_factory=list)  # exit code and message of each process that was not killed
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


class Job:
    """A ``visionmill segment`` as a process of its own."""

    def __init__(self, source: str, output: str, *options: str, **environment: str) -> None:
        self.output = open_store(output)
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from flows.cli import main; main()", "segment", source, output, *MODEL, *options],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def commits(self) -> int:
        try:
            return sum(1 for _ in self.output.list("segments/"))
        except BucketMissing:
            return 0  # the job has not made the folder yet

    def runs(self) -> bool:
        return self.process.poll() is None

    def until(self, found: Callable[[], Any]) -> Any:
        """What ``found`` gives once it gives something; None when the job ended before."""
        deadline = time.monotonic() + PATIENCE_S
        while self.runs() and time.monotonic() < deadline:
            if value := found():
                return value
            time.sleep(0.02)
        return None

    def busy_worker(self) -> int | None:
        below = {process.pid for process in psutil.Process(self.process.pid).children(recursive=True)}
        beats = [read_heartbeat(folder) for folder in Path(tempfile.gettempdir()).glob("visionmill-heartbeat-*")]
        return next((b.pid for b in beats if b is not None and b.pid in below and b.oldest() is not None), None)

    def raylet(self) -> psutil.Process | None:
        below = psutil.Process(self.process.pid).children(recursive=True)
        return next((one for one in below if one.name() == "raylet"), None)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self, seen: Seen, *exit_codes: int) -> dict[str, Any]:
        """Wait; its one message belongs to what was seen."""
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        self.log.seek(0)
        said = self.log.read()
        summary: dict[str, Any] = json.loads(out.splitlines()[-1]) if out else {}
        words = summary.get("error") or summary.get("message") or summary.get("outcome", "")
        seen.ends.append(f"{self.process.returncode}: {_as_on_any_machine(words)}")
        if self.process.returncode not in exit_codes:
            seen.problems.append(f"exit code {self.process.returncode}: {said[-500:]}")
        if "Traceback" in said or said.count("error:") > 1 or (self.process.returncode and not words):
            seen.problems.append(f"not one clear message: {said[-500:]}")
        return summary


class Matrix:
    """All ways on one kind of place."""

    def __init__(self, kind: str, source: str, place: Callable[[str], str], server: StandingService | None) -> None:
        self.kind, self.source, self.place, self.server = kind, source, place, server
        self.all: list[Seen] = []
        whole = place("whole")
        seen = Seen("undisturbed")
        self.done(seen, Job(source, whole, *JOB).end(seen, 0))
        self.whole = rows_of(whole)

    def done(self, seen: Seen, _: object = None) -> None:
        self.all.append(seen)
        print(f"{self.kind}: {seen.name}: {seen.kills} kills, {seen.problems or 'as undisturbed'}", flush=True)

    def compare(self, seen: Seen, output: str, *, began: float) -> None:
        seen.seconds = time.monotonic() - began
        found = rows_of(output)
        if found.num_rows != self.whole.num_rows:
            seen.problems.append(f"{found.num_rows} rows instead of {self.whole.num_rows}")
        else:
            names = [name for name in self.whole.column_names if not found[name].equals(self.whole[name])]
            if names:
                seen.problems.append(f"differ: {names}")
        self.done(seen)

    def drivers(self, times: int) -> None:
        seen, output, began = Seen("driver killed"), self.place("drivers"), time.monotonic()
        while seen.kills < times:
            job = Job(self.source, output, *(HERE if seen.kills % 2 else JOB))
            before = job.commits()
            if job.until(lambda job=job, before=before: job.commits() > before) is None:
                break
            job.kill()
            seen.kills += 1
        Job(self.source, output, *HERE).end(seen, 0)
        self.compare(seen, output, began=began)

    def workers(self, times: int) -> None:
        seen, output, began = Seen("worker killed"), self.place("workers"), time.monotonic()
        job, commits = Job(self.source, output, *JOB), 0
        while seen.kills < times:
            pid = job.until(lambda commits=commits: job.commits() > commits and job.busy_worker())
            if pid is None:
                break
            commits = job.commits()
            os.kill(pid, signal.SIGKILL)
            seen.kills += 1
        job.end(seen, 0)
        self.compare(seen, output, began=began)

    def raylets(self, times: int) -> None:
        seen, output, began = Seen("raylet killed"), self.place("raylets"), time.monotonic()
        for _ in range(times):
            job = Job(self.source, output, *JOB)
            before = job.commits()
            if job.until(lambda job=job, before=before: job.commits() > before) is None:
                break
            raylet = job.raylet()
            if raylet is not None:
                raylet.kill()
                seen.kills += 1
            job.end(seen, 1)
        Job(self.source, output, *HERE).end(seen, 0)
        self.compare(seen, output, began=began)

    def servers(self, times: int, gone_s: float) -> None:
        assert self.server is not None
        seen, output, began = Seen(f"S3 server killed for {gone_s:.0f} s"), self.place("servers"), time.monotonic()
        job, commits = Job(self.source, output, *JOB), 0
        while seen.kills < times and job.until(lambda commits=commits: job.commits() > commits):
            commits = job.commits()
            pid = self.server.status().pid
            if pid is None:
                break
            os.kill(pid, signal.SIGKILL)
            seen.kills += 1
            time.sleep(gone_s)
            self.server.ensure(timeout_s=120.0)
        job.end(seen, 0)
        self.compare(seen, output, began=began)

    def four_at_once(self) -> None:
        seen, output, began = Seen("four drivers at the same instant"), self.place("four"), time.monotonic()
        for job in [Job(self.source, output, *HERE) for _ in range(4)]:
            job.end(seen, 0, 1)
        winners = sum(end.startswith("0") for end in seen.ends)
        if winners < 1 or any(end.startswith("1") and "lease" not in end for end in seen.ends):
            seen.problems.append("not one driver with the others refused by the lease")
        self.compare(seen, output, began=began)

    def nested(self, name: str, source: str, output: str) -> None:
        seen, began = Seen(name), time.monotonic()
        Job(source, output, *HERE).end(seen, 0)
        if Job(source, output, *HERE).end(seen, 0).get("outcome") != "nothing_to_do":
            seen.problems.append("the second run found something to do")
        self.compare(seen, output, began=began)

    def full_disk(self, folder: Path) -> None:
        seen, began = Seen("full disk"), time.monotonic()
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "visionmill-kills", folder], check=True)
        try:
            Job(self.source, f"{folder}/out", *HERE).end(seen, 1)
            subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
            Job(self.source, f"{folder}/out", *HERE).end(seen, 0)
            if "space" not in seen.ends[0]:
                seen.problems.append("the full disk was not named")
            self.compare(seen, f"{folder}/out", began=began)
        finally:
            subprocess.run(["umount", folder], check=False)


def rows_of(output: str) -> pa.Table:
    """Every column but those that say who computed a row and when, and where its source lies."""
    store = open_store(output)
    parts = [pq.read_table(store.open(info.key)) for info in store.list("segments/")]
    table = pa.concat_tables(parts).drop_columns(["run_id", "processed_at", "shard_id", "etag"])
    names = pc.replace_substring_regex(table["uri"], ".*/", "")
    return table.set_column(table.column_names.index("uri"), "uri", names).sort_by([("uri", "ascending")])


def canary(source: str, folder: Path) -> Seen:
    """A secret in the environment of a recorded job, looked for in everything that the job writes."""
    seen, began = Seen("canary: a secret key in the environment"), time.monotonic()
    secret, state = "wJalrXUtnFEMIcanary/bPxRfiCYzzKEYcanary0", folder / "state"
    job = Job(
        source,
        str(folder / "out"),
        *(word for word in JOB if not word.startswith("--no-")),
        VISIONMILL_STATE_DIR=str(state),
        AWS_ACCESS_KEY_ID="AKIACANARYCANARY0000",
        AWS_SECRET_ACCESS_KEY=secret,
    )
    found: set[str] = set()
    looked = 0
    job.until(lambda: job.commits() > 5)
    for ray in Path("/tmp").glob(f"vmray-{job.process.pid}-*"):
        count, hits = look_for(secret, ray)
        looked, found = looked + count, found | hits
    job.end(seen, 0)
    for place in (folder, *Path(tempfile.gettempdir()).glob("visionmill-*")):
        count, hits = look_for(secret, place)
        looked, found = looked + count, found | hits
    down = [sys.executable, "-c", "from flows.cli import main; main()", "down"]
    subprocess.run(down, env=os.environ | {"VISIONMILL_STATE_DIR": str(state)}, capture_output=True, check=False)
    seen.ends.append(f"{looked} files looked through")
    seen.problems += [f"found in {name}" for name in sorted(found)]
    seen.seconds = time.monotonic() - began
    return seen


def _as_on_any_machine(words: str) -> str:
    """A message without this machine's scratch folder, process ids and instants: a note counts those that are alike."""
    words = re.sub(re.escape(tempfile.gettempdir()) + r"/vmk\w+", "", words)
    words = re.sub(r"(pid |raylet \()\d+", r"\1...", words)
    return re.sub(r"\d{8}T\d{6}Z-\w+|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S*", "...", words)


def look_for(secret: str, place: Path) -> tuple[int, set[str]]:
    """Number of files below a folder, and those that hold the secret."""
    files = list(_files(place))
    return len(files), {str(path) for path in files if secret.encode() in _content(path)}


def _files(place: Path) -> Iterator[Path]:
    for path in place.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def on_folder(items: int, times: int, folder: Path) -> list[Seen]:
    source = folder / "in"
    write_scenes(source, items)
    matrix = Matrix("folder", str(source), lambda name: str(folder / name), None)
    matrix.drivers(times)
    matrix.workers(times)
    matrix.raylets(max(times // 3, 1))
    matrix.full_disk(folder / "small")
    matrix.four_at_once()
    write_scenes(folder / "a", items)
    matrix.nested("output inside its source", str(folder / "a"), str(folder / "a" / "out"))
    write_scenes(folder / "b" / "in", items)
    matrix.nested("source inside its output", str(folder / "b" / "in"), str(folder / "b"))
    matrix.done(canary(str(source), folder / "canary"))
    return matrix.all


def on_s3(items: int, times: int, folder: Path) -> list[Seen]:
    service = StandingService(SeaweedFS(), folder / "s3")
    os.environ |= endpoint_of(service.ensure(timeout_s=60.0)).environment()
    try:
        create_bucket("s3://kills")
        put_scenes(open_store("s3://kills/in"), items)
        matrix = Matrix("S3", "s3://kills/in", lambda name: f"s3://kills/{name}", service)
        matrix.drivers(times)
        matrix.workers(times)
        matrix.raylets(max(times // 3, 1))
        matrix.servers(max(times // 3, 1), 10.0)
        matrix.four_at_once()
        put_scenes(open_store("s3://kills/a"), items)
        matrix.nested("output inside its source", "s3://kills/a", "s3://kills/a/out")
        put_scenes(open_store("s3://kills/b/in"), items)
        matrix.nested("source inside its output", "s3://kills/b/in", "s3://kills/b")
        return matrix.all
    finally:
        service.stop(timeout_s=20.0)


def note_of(items: int, seen: dict[str, list[Seen]]) -> str:
    """The note, in Markdown."""
    lines = [
        f"# Jobs killed in every way, {dt.date.today().isoformat()}",
        "",
        f"`make experiment-kills`: {items} images in shards of three, two workers in Ray or one in the driver, the"
        " shipped model. After each way to be disturbed the same command runs until it is done. Rows (all columns but"
        " who computed them, when, and where the source lies) are compared bit for bit with an undisturbed run's.",
        "",
    ]
    for kind, ways in seen.items():
        lines += [f"## {kind}", "", "| | kills | seconds | rows | how processes ended |", "|---|---|---|---|---|"]
        for way in ways:
            ends = "; ".join(f"{way.ends.count(end)} x {end}" for end in dict.fromkeys(way.ends))
            verdict = "<br>".join(way.problems).replace("|", "\\|") or "as undisturbed"
            lines.append(
                f"| {way.name} | {way.kills} | {way.seconds:.0f} | {verdict} | {ends.replace('|', chr(92) + '|')} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Run all, write the note; 1 where something was not as it should be."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=120)
    parser.add_argument(
        "--times", type=int, default=10, help="kills of drivers and of workers; a third of it of others"
    )
    parser.add_argument("--only", choices=["folder", "S3"])
    parser.add_argument("--note", type=Path, default=Path(f"docs/benchmarks/{dt.date.today().isoformat()}-kills.md"))
    arguments = parser.parse_args()
    seen: dict[str, list[Seen]] = {}
    for kind, run in (("folder", on_folder), ("S3", on_s3)):
        if arguments.only in (None, kind):
            with tempfile.TemporaryDirectory(prefix="vmk", dir="/tmp") as folder:
                seen[kind] = run(arguments.items, arguments.times, Path(folder))
            arguments.note.write_text(note_of(arguments.items, seen))
    return int(any(way.problems for ways in seen.values() for way in ways))


if __name__ == "__main__":
    sys.exit(main())
