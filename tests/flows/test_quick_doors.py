"""What is only looked up, or turns out to be done already, imports nothing that takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows.command import DIGITS, ROOT, SERIAL, segment
from tests.flows.scenes import write_scenes

HEAVY = {"torch", "torchvision", "ray", "prefect", "transformers"}
PROGRAM = """
import json, sys
from flows.cli import main
try:
    main()
except SystemExit as ended:
    code = ended.code
print(json.dumps([code or 0, sorted(sys.modules)]))
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``in`` and what was found there, ``out``."""
    folder = tmp_path_factory.mktemp("done")
    write_scenes(folder / "in", 2)
    segment(folder / "in", folder / "out")
    return folder


@pytest.mark.parametrize(
    ("words", "allowed", "exit_code"),
    [
        (lambda _: ["--help"], set(), 0),
        (lambda _: ["segment", "--help"], set(), 0),
        (lambda _: ["models", "list"], set(), 0),
        (lambda _: ["models", "show", DIGITS[1]], set(), 0),
        (lambda _: ["doctor"], set(), 0),
        (lambda done: ["query", done / "out", "SELECT count(*) FROM instances"], set(), 0),
        (lambda done: ["segment", done / "in", done / "new", "--model", "mask_rccn"], set(), 2),
        (lambda done: ["segment", done / "in", done / "out", *SERIAL], {"prefect"}, 0),
    ],
    ids=["help", "help of a job", "models list", "models show", "doctor", "query", "a wrong model", "nothing to do"],
)
def test_a_quick_door_stays_quick(
    done: Path, words: Callable[[Path], list[str | Path]], allowed: set[str], exit_code: int
) -> None:
    command = [sys.executable, "-c", PROGRAM, *map(str, words(done))]
    said = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=120, check=True)
    code, modules = json.loads(said.stdout.splitlines()[-1])
    assert (code, HEAVY & set(modules) - allowed) == (exit_code, set()), said.stderr
