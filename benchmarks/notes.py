"""From runs to words: tables for the terminal and the dated note. Every figure comes from the runs handed in."""

from __future__ import annotations

import datetime as dt
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.workload import MODELS
from tasks.engine.prepare import environment

_YARDSTICK = "bare"
_EXPLANATION = """\
*Steady*: images per second between the moments at which 10 % and 90 % of the images had left the model, over all
processes; the same rule for every contender. *Overall*: all images by the time from the start of the program to its
end. *Start*: until the first image had left the model. *Tail*: from the last image out of the model to the end.
*Memory*: peak of the program and all it started (shared pages counted once). Medians, ranges in brackets.
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one contender; see ``benchmarks.events.Pace`` for the figures."""

    contender: str
    model: str
    images: int
    cores: int
    repeat: int
    commit: str
    steady_per_s: float | None
    overall_per_s: float
    startup_s: float
    tail_s: float
    peak_bytes: int
    seconds: float
    extra: dict[str, Any] = field(default_factory=dict)


def summarise(runs: Sequence[Run], sections: Mapping[str, str]) -> str:
    """Markdown: a table for each model, then the output of the other benchmarks."""
    parts = []
    for model in dict.fromkeys(run.model for run in runs):
        chosen = [run for run in runs if run.model == model]
        parts.append(f"## {model.capitalize()} model: {MODELS[model].remark}\n\n{_intro(chosen)}\n\n{_table(chosen)}\n")
        parts += _decisions(chosen)
    if runs:
        parts.append(_EXPLANATION)
    parts += [f"## {title}\n\n```\n{text.strip()}\n```\n" for title, text in sections.items()]
    return "\n".join(parts)


def _intro(runs: Sequence[Run]) -> str:
    repeats = {name: sum(run.contender == name for run in runs) for name in {run.contender for run in runs}}
    images = sorted({run.images for run in runs})
    return (
        f"{', '.join(map(str, images))} JPEGs of 640x480, {', '.join(str(c) for c in sorted({r.cores for r in runs}))} "
        f"cores, {min(repeats.values())} to {max(repeats.values())} interleaved repeats."
    )


def _table(runs: Sequence[Run]) -> str:
    columns: list[tuple[str, Callable[[Run], float | None], int]] = [
        ("steady img/s", lambda run: run.steady_per_s, 2),
        ("overall img/s", lambda run: run.overall_per_s, 2),
        ("start s", lambda run: run.startup_s, 1),
        ("tail s", lambda run: run.tail_s, 1),
        ("memory MiB", lambda run: run.peak_bytes / 2**20, 0),
    ]
    yardstick = _median_of([run.steady_per_s for run in runs if run.contender == _YARDSTICK])
    lines = [
        f"| contender | of {_YARDSTICK} | " + " | ".join(title for title, _, _ in columns) + " |",
        "|---|---:|" + "---:|" * len(columns),
    ]
    for name in dict.fromkeys(run.contender for run in runs):
        own = [run for run in runs if run.contender == name]
        steady = _median_of([run.steady_per_s for run in own])
        share = "-" if not yardstick or steady is None else f"{steady / yardstick:.2f}"
        cells = [_cell([value(run) for run in own], digits) for _, value, digits in columns]
        lines.append(f"| {name} | {share} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _median_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _cell(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    middle = f"{median(known):.{digits}f}"
    return middle if len(known) == 1 else f"{middle} ({min(known):.{digits}f}-{max(known):.{digits}f})"


def _decisions(runs: Sequence[Run]) -> list[str]:
    """What compiled runs decided and measured before they started."""
    lines = []
    for run in runs:
        decision = run.extra.get("decision")
        if decision:
            ways = ", ".join(f"{name} {ms:.1f} ms" for name, ms in decision["ms_per_image"].items())
            compile_s = "-" if decision["compile_s"] is None else f"{decision['compile_s']:.1f} s"
            lines.append(f"* {run.contender} #{run.repeat + 1}: {decision['reason']}; {ways}; compiling {compile_s}")
    return ["\n".join(lines) + "\n"] if lines else []


def hardware() -> str:
    """The machine and the versions, in markdown; names no host."""
    facts = environment()
    memory = psutil.virtual_memory().total / 2**30
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    return (
        f"{_processor()}, {psutil.cpu_count(logical=True)} logical cores, {facts['cpu_capability']}, {memory:.0f} GiB; "
        f"GPU: {facts['gpu'] or 'none'}; {facts['system']}, Python {facts['python']}; {packages}"
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write_note(folder: Path, text: str, command: str, day: dt.date, *, topic: str = "throughput") -> Path:
    """A dated note with hardware and command; never overwrites an earlier one of the same day."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        suffix = "" if number == 1 else f"-{number}"
        path = folder / f"{day.isoformat()}-{topic}{suffix}.md"
        try:
            with path.open("x") as file:
                file.write(f"# {topic.capitalize()}, {day.isoformat()}\n\n{hardware()}\n\n`{command}`\n\n{text}")
            return path
        except FileExistsError:
            number += 1
