"""The command line as users meet it: in this process, where the point is not the process, and as one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli.app import make_app

ROOT = Path(__file__).parents[2]
DIGITS = ("--model", "digitscape_mask_rcnn")  # comes along; what a job takes without --model must be downloaded
SERIAL = ("--ray", "none", "--no-prefect", "--no-report", "--compile", "off", *DIGITS)


@dataclass(frozen=True)
class Said:
    """What a command left: exit code, and what it said to programs (stdout) and people (stderr)."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def summary(self) -> dict[str, Any]:
        """The last line of stdout."""
        parsed: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        assert parsed["exit_code"] == self.exit_code
        assert parsed["ok"] == (self.exit_code == 0)
        return parsed


def visionmill(*words: str | Path, exit_code: int = 0) -> Said:
    """Run a command in this process; it must end with ``exit_code`` and without a traceback."""
    answer = CliRunner().invoke(make_app(), [str(word) for word in words])
    said = Said(answer.exit_code, answer.stdout, answer.stderr)
    return _checked(said, exit_code)


def start(*words: str | Path, **environment: str) -> subprocess.Popen[str]:
    """The same as a process of its own, as the console script starts it."""
    return subprocess.Popen(
        [sys.executable, "-c", "from flows.cli import main; main()", *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str], *, exit_code: int = 0, timeout_s: float = 240.0) -> Said:
    """Wait for a process that :func:`start` began."""
    out, err = process.communicate(timeout=timeout_s)
    return _checked(Said(process.returncode, out, err), exit_code)


def _checked(said: Said, exit_code: int) -> Said:
    assert said.exit_code == exit_code, said
    assert "Traceback" not in said.stdout + said.stderr, said
    return said


def segment(source: str | Path, output: str | Path, *options: str, exit_code: int = 0) -> dict[str, Any]:
    """Segment in this process, without Ray and Prefect; the summary."""
    return visionmill("segment", source, output, *SERIAL, *options, "--json", exit_code=exit_code).summary


def refused(exit_code: int, *words: str | Path) -> str:
    """The one message of a command that must fail: what people read, which is also what programs get."""
    said = visionmill(*words, "--json", exit_code=exit_code)
    message = said.summary["error"]
    assert said.stderr.count("error:") == 1, said.stderr
    assert " ".join(message.split()) in " ".join(said.stderr.split()), said.stderr
    assert len(said.stdout.splitlines()) == 1
    return f"{message} {said.summary['hint']}"


def ask(output: str | Path, sql: str) -> list[dict[str, Any]]:
    """Rows of a query."""
    rows: list[dict[str, Any]] = visionmill("query", output, sql, "--json").summary["rows"]
    return rows


def impatient(patch: pytest.MonkeyPatch) -> None:
    """Stores that give up at once: tests don't wait for better weather."""
    patch.setenv("VISIONMILL_STORE_ATTEMPTS", "2")
    patch.setenv("VISIONMILL_STORE_FIRST_DELAY_S", "0.01")
