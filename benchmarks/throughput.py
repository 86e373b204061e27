"""Images per second of visionmill, of bare loops, and of the obvious pipelines on Ray Data and Daft.

    python -m benchmarks.throughput [--models light heavy] [--contenders bare loop visionmill ...] [--images 1000]
                                    [--heavy-images 48] [--repeats 3] [--cores N] [--note docs/benchmarks] [--fresh]
                                    [--runs N]

Every run is a process of its own on the same files, decoder, model, masks and Parquet schema; repeats are interleaved
(each contender once, then each again) and medians reported. Runs are kept in ``.bench/throughput.jsonl``: after an
interruption the same command goes on where it stopped (as long as the code is the same), and ``--fresh`` forgets them.
``--runs N`` stops after N more runs, for a machine that is quiet only now and then.
Afterwards mask encoding and, unless ``--no-inventory``, inventory and plan are measured, and a dated note is written.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.contenders import NAMES
from benchmarks.events import pace_of, read_events
from benchmarks.memory import PeakMemory
from benchmarks.notes import Run, summarise, write_note
from benchmarks.workload import MODELS, ensure_images
from infra.machine import cpu_slots

_INVENTORY = ("--objects", "10000", "100000", "1000000", "--kinds", "parquet", "objects")


@dataclass(frozen=True, slots=True)
class Setting:
    """What makes two runs comparable."""

    contender: str
    model: str
    images: int
    cores: int
    repeat: int
    commit: str


def settings_of(given: argparse.Namespace, commit: str) -> Iterator[Setting]:
    """All runs, interleaved: the first repeat of everything comes before the second of anything."""
    wanted = {"heavy": given.heavy_images}
    images = {model: wanted.get(model, given.images) or MODELS[model].images for model in given.models}
    for repeat in range(given.repeats):
        for model in given.models:
            for contender in given.contenders:
                yield Setting(contender, model, images[model], given.cores, repeat, commit)


def carry_out(setting: Setting, cache: Path, timeout_s: float) -> Run:
    """One run in a process of its own, with single-threaded libraries, watched from outside."""
    work = Path(tempfile.mkdtemp(prefix="run-", dir=cache))
    command = [sys.executable, "-m", "benchmarks.contender", setting.contender, "--model", setting.model]
    command += ["--images", str(setting.images), "--cores", str(setting.cores)]
    command += ["--cache", str(cache), "--work", str(work)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    try:
        began = time.time()
        with (work / "stderr.txt").open("wb") as errors:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True, start_new_session=True
            )
            with PeakMemory(process.pid) as memory:
                answer = _answer(process, timeout_s)
        ended = time.time()
        if process.returncode != 0:
            text = (work / "stderr.txt").read_text(errors="replace")
            raise SystemExit(f"{' '.join(command)} failed with {process.returncode}:\n{text[-4000:]}")
        pace = asdict(pace_of(read_events(work / "events"), began, ended))
        extra = json.loads(answer.splitlines()[-1])
        _check_work(setting, pace.pop("images"), extra["rows"])
        return Run(**asdict(setting), **pace, peak_bytes=memory.peak_bytes, seconds=ended - began, extra=extra)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _answer(process: subprocess.Popen[str], timeout_s: float) -> str:
    try:
        return process.communicate(timeout=timeout_s)[0]
    except BaseException:
        os.killpg(process.pid, 9)  # it leads a session of its own: this reaches what it started, and nothing else
        process.communicate()
        raise


def _check_work(setting: Setting, images: int, rows: int) -> None:
    """A contender that skips an image, does one twice or loses a row has not done the work."""
    if images != setting.images:
        raise SystemExit(f"{setting.contender} put {images} images through the model instead of {setting.images}")
    expected = 0 if setting.contender in ("bare", "loop") else setting.images
    if rows != expected:
        raise SystemExit(f"{setting.contender} left {rows} rows of {expected}")


def known_runs(path: Path) -> list[Run]:
    """Runs of earlier invocations."""
    return [Run(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def measure(settings: Sequence[Setting], cache: Path, timeout_s: float, limit: int | None = None) -> list[Run]:
    """All runs, those of an interrupted invocation included; at most ``limit`` new ones."""
    kept = cache / "throughput.jsonl"
    runs = [run for run in known_runs(kept) if _setting_of(run) in settings]
    done = {_setting_of(run) for run in runs}
    todo = [(number, setting) for number, setting in enumerate(settings, 1) if setting not in done]
    for number, setting in todo[:limit]:
        print(
            f"[{number}/{len(settings)}] {setting.model} {setting.contender} #{setting.repeat + 1} ...", file=sys.stderr
        )
        run = carry_out(setting, cache, timeout_s)
        with kept.open("a") as file:
            file.write(json.dumps(asdict(run)) + "\n")
        runs.append(run)
        steady = "-" if run.steady_per_s is None else f"{run.steady_per_s:.2f}"
        print(f"    steady {steady}/s, overall {run.overall_per_s:.2f}/s, start {run.startup_s:.1f} s", file=sys.stderr)
    return runs


def _setting_of(run: Run) -> Setting:
    return Setting(run.contender, run.model, run.images, run.cores, run.repeat, run.commit)


def current_commit() -> str:
    """Of the working tree, with a mark when it has changes; "unknown" outside a checkout."""
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _module(name: str, *arguments: str) -> str:
    """The output of another benchmark."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS, reverse=True), default=["light", "heavy"])
    parser.add_argument("--contenders", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--images", type=int, help="for the light (and the tiny) model")
    parser.add_argument("--heavy-images", type=int, help="for the heavy model")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=cpu_slots())
    parser.add_argument("--cache", type=Path, default=Path(".bench"), help="images, compiled graphs, finished runs")
    parser.add_argument("--note", type=Path, default=Path("docs/benchmarks"), help="folder of the dated note")
    parser.add_argument("--no-note", action="store_true", help="print only")
    parser.add_argument("--no-inventory", action="store_true", help="leave inventory and plan out")
    parser.add_argument("--fresh", action="store_true", help="forget the runs of earlier invocations")
    parser.add_argument("--runs", type=int, help="stop after so many new runs; the same command goes on from there")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for one run")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, print, write the note."""
    given = parse()
    cache = given.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    if given.fresh:
        (cache / "throughput.jsonl").unlink(missing_ok=True)
    settings = list(settings_of(given, current_commit()))
    ensure_images(cache, max(setting.images for setting in settings))
    runs = measure(settings, cache, given.timeout, given.runs)
    if len(runs) < len(settings):
        print(f"{len(settings) - len(runs)} runs are left; the same command goes on", file=sys.stderr)
        return
    sections: dict[str, Any] = {"Masks to run lengths": _module("rle")}
    if not given.no_inventory:
        sections["Inventory and plan"] = _module("inventory_plan", *_INVENTORY)
    text = summarise(runs, sections)
    print(text)
    if not given.no_note:
        command = " ".join(["python -m benchmarks.throughput", *sys.argv[1:]])
        print(f"written to {write_note(given.note, text, command, dt.date.today())}", file=sys.stderr)


if __name__ == "__main__":
    main()
