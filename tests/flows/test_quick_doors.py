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
import json, resource, sys
from flows.cli import main
try:
    main()
except SystemExit as ended:
    code = ended.code
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([code or 0, sorted(sys.modules), used.ru_utime + used.ru_stime]))
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
    said = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=120)
    code, modules, _ = json.loads(said.stdout.splitlines()[-1])
    assert (code, HEAVY & set(modules) - allowed) == (exit_code, set()), said.stderr
    assert "--help" not in command or "numpy" not in modules, "what the options are is told without arrays"


PUBLISHED = "maskrcnn_resnet50_fpn_v2"
WRONG = {
    "no source": ["segment", "nosuch", "new", *DIGITS],
    "no weights": ["segment", "in", "new", "--model", PUBLISHED, "--weights", "nosuch.safetensors"],
    "no images": ["segment", "in", "new", *DIGITS, "--images-root", "nosuch"],
    "a file for an output": ["segment", "in", "file.txt", *DIGITS],
    "no results to verify": ["verify", "nosuch"],
    "nothing to report": ["report", "in"],
    "nothing to ask": ["query", "nosuch", "SELECT 1"],
    "nothing to export": ["export", "in", "new", "--to", "coco"],
    "no labels to judge by": ["evaluate", DIGITS[1], "nosuch.json"],
    "no model to judge": ["evaluate", "nosuch", "labels.json"],
    "no labels to look at": ["inspect", "nosuch"],
    "labels of no format": ["train", "file.txt", "new"],
    "no weights to begin from": ["train", "labels.json", "new", "--from", "nosuch"],
    "no classes": ["train", "labels.json", "new", "--classes", "nosuch.json"],
    "no labels to learn from": ["retrain", "--labelled", "nosuch.json", "--unlabelled", "in", "--output", "new"],
    "no images to learn from": ["retrain", "--labelled", "labels.json", "--unlabelled", "nosuch", "--output", "new"],
    "nobody to promote": ["promote", "in", "--reason", "why not"],
    "nobody to go back to": ["rollback", "nosuch", "--reason", "why not"],
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_path_is_said_within_two_seconds_of_processor_time(done: Path, name: str) -> None:
    """And before any service is started or anything written."""
    (done / "file.txt").write_text("nothing of ours")
    (done / "labels.json").write_text("{}")
    paths = {each: str(done / each) for each in ("nosuch", "in", "new", "file.txt", "labels.json", "nosuch.json")}
    words = [paths.get(word, word) if at else word for at, word in enumerate(WRONG[name])]
    command = [sys.executable, "-c", PROGRAM, *words]
    environment = os.environ | {"VISIONMILL_STATE_DIR": str(done / "state")}
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    code, modules, cpu_s = json.loads(said.stdout.splitlines()[-1])
    assert code in (1, 2) and "error:" in said.stderr and "Traceback" not in said.stderr
    assert not HEAVY & set(modules), said.stderr
    assert cpu_s < 2.0
    assert not (done / "state").exists()


def test_showing_a_model_downloads_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"TORCH_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", PROGRAM, "models", "show", PUBLISHED]
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert json.loads(said.stdout.splitlines()[-1])[0] == 0, said.stderr
    assert "are not here yet" in said.stderr and PUBLISHED in said.stdout
    assert not list(tmp_path.rglob("*"))
