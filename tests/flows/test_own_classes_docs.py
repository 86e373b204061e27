"""docs/own-model.md: every command runs as it is printed; options that keep it short are put behind it."""

from __future__ import annotations

import datetime as dt
import glob
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.store import open_store
from modelkit import ClassInfo
from modelkit.digitscape import CLASS_NAMES, Digitscape, Scene, SceneStyle
from tasks.loop.champion import Model, read_pointer, record_candidate
from tasks.loop.gate import Criterion, Verdict
from tasks.training.presets import make_recipe
from tests.flows.command import ROOT, Said, ask, visionmill
from tests.flows.deployments import prefect_client

PAGE = (ROOT / "docs" / "own-model.md").read_text("utf-8")
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
BLOCKS = [text for language, text in FENCED if not language]
*BY_HAND, SCHEDULED = BLOCKS
COMMANDS = [shlex.split(line)[1:] for block in BY_HAND for line in block.replace("\\\n", "").splitlines()]
SERIAL = ["--ray", "none", "--no-prefect"]
SHORT = {
    "train": [*SERIAL, "--steps", "2", "--batch-size", "2", "--validate-every", "2"],
    "segment": [*SERIAL, "--compile", "off"],
    "retrain": [*SERIAL, "--steps", "2"],
}
STYLE = SceneStyle(digits=(5, 7), size_px=(24.0, 40.0), empty_share=0.0, overlap=0.1)
SIZE_HW = (128, 128)
LABELLED, AUDITED, OTHERS, HELD_OUT = range(26), range(26, 30), range(30, 32), range(32, 34)


def write_pictures(folder: Path) -> None:
    """Pictures of things on photographs, and what CVAT exports of those that people labelled."""
    source = Digitscape("train", SIZE_HW, seed=4, style=STYLE, dense=False)
    scenes = [source.scene(number) for number in range(HELD_OUT.stop)]
    for name in ("photos", "labels", "held-out"):
        (folder / name).mkdir()
    for number, scene in enumerate(scenes):
        where = "held-out" if number in HELD_OUT else "photos"
        Image.fromarray(scene.image_rgb).save(folder / where / f"{number:03d}.png")
    files = {"labels/annotations.xml": LABELLED, "labels/audit.xml": AUDITED, "held-out/annotations.xml": HELD_OUT}
    for name, chosen in files.items():
        (folder / name).write_text(cvat({number: scenes[number] for number in chosen}))


def cvat(scenes: dict[int, Scene]) -> str:
    """CVAT for images 1.1, with masks as its brush draws them."""
    known = "".join(f"<label><name>{name}</name></label>" for name in CLASS_NAMES)
    images = []
    for number, scene in scenes.items():
        shapes = "".join(_mask(scene, k) for k in range(len(scene.masks)))
        size = f'width="{SIZE_HW[1]}" height="{SIZE_HW[0]}"'
        images.append(f'<image id="{number}" name="{number:03d}.png" {size}>{shapes}</image>')
    meta = f"<meta><task><labels>{known}</labels></task></meta>"
    return f"<annotations><version>1.1</version>{meta}{''.join(images)}</annotations>"


def _mask(scene: Scene, k: int) -> str:
    rows, columns = np.nonzero(scene.masks[k])
    top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
    inside = scene.masks[k][top:bottom, left:right].ravel()
    runs = np.diff(np.flatnonzero(np.concatenate([[True], np.diff(inside) != 0, [True]])))
    counts = [0] * bool(inside[0]) + runs.tolist()
    place = f'left="{left}" top="{top}" width="{right - left}" height="{bottom - top}"'
    name = CLASS_NAMES[scene.labels[k] - 1]
    return f'<mask label="{name}" source="manual" rle="{", ".join(map(str, counts))}" {place}/>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where somebody who reads the page stands."""
    folder = tmp_path_factory.mktemp("reader")
    write_pictures(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def wait_for_approval() -> None:
    """So few steps pass no gate: a candidate that did is put where the loop puts one that waits for a person."""
    store, now = open_store("loop"), dt.datetime.now(dt.UTC)
    champion = read_pointer(store)[0].champion
    assert champion is not None, "the first model is the champion by itself"
    verdict = Verdict("r", 9, champion.model_id, "better@1", (Criterion("better", 0.02, ">=", 0.01),), now)
    record_candidate(store, verdict, Model("better@1", "better", "a" * 64, "r", 9), needs_approval=True, at=now)


def begin_with_a_model_that_knows() -> None:
    """So few steps teach nothing that a loop could go on from: its recipe begins with the shipped model of digits."""
    classes = [ClassInfo(k + 1, name) for k, name in enumerate(CLASS_NAMES)]
    recipe = make_recipe("digitscape", classes, steps=2, seed=0)
    loop = replace(recipe.loop, learning_rate=1e-5)
    recipe = replace(recipe, batch_size=2, initial="digitscape_mask_rcnn", loop=loop)
    Path("recipe.json").write_text(json.dumps(recipe.to_json()))


def run(words: list[str]) -> Said:
    """A command of the page, with the files that a shell would make of its patterns."""
    files = {word: glob.glob(word) for word in words if re.search(r"\w/\*/", word)}
    named = [name for word in words for name in files.get(word, [word])]
    return visionmill(*named, *SHORT.get(words[0], []), "--json")


@pytest.mark.timeout(600)
def test_from_a_folder_of_pictures_to_a_promoted_model(folder: Path) -> None:
    assert [words[0] for words in COMMANDS] == [
        "inspect", "train", "evaluate", "segment", "query", "export", "export", "query", "retrain",
        "promote", "promote", "rollback", "segment",
    ]  # fmt: skip
    said = {}
    for words in COMMANDS:
        if words[0] == "retrain":
            begin_with_a_model_that_knows()
        if words[0] == "promote" and "--list" not in words:
            wait_for_approval()
        said[" ".join(words[:1] + words[-1:])] = run(words)
    told = {name: each.summary for name, each in said.items()}
    assert told["inspect recipe.json"]["kind"] == "instance" and told["inspect recipe.json"]["images"] == len(LABELLED)
    assert told["train parts"]["validation"]["images"] > 0 and "parts@" in told["train parts"]["model"]
    assert told["evaluate judged.html"]["metrics"]["images"] == len(HELD_OUT) and Path("judged.html").is_file()
    assert ask("results", "SELECT count(*) AS n FROM items WHERE status = 'ok'") == [{"n": OTHERS.stop}]
    assert told["export images"]["num_items"] == told["export coco"]["num_items"] == OTHERS.stop
    loop = told["retrain --require-approval"]
    assert loop["splits"]["unlabelled"] == OTHERS.stop - len(LABELLED), "what is labelled is no unlabelled picture"
    champion = told["promote --list"]["champion"]
    assert champion["model_id"] == loop["champion"] and champion["weights_uri"] in said["promote --list"].stderr
    moves = read_pointer(open_store("loop"))[0].moves
    assert [move.action for move in moves][-2:] == ["promote", "rollback"]
    assert read_pointer(open_store("loop"))[0].champion == moves[0].model
    assert told["segment --new-version"]["model"] == champion["model_id"], "the one that is in use again"


@pytest.mark.prefect
def test_what_is_to_be_done_every_night_and_every_week_is_scheduled(
    prefect_api: str, folder: Path, tmp_path: Path
) -> None:
    for name, module in (("visionmill", "-c 'from flows.cli import main; main()'"), ("prefect", "-m prefect")):
        script = tmp_path / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        script.chmod(0o700)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    lines = f"set -e\n{SCHEDULED.replace('/data/', f'{folder}/')}"
    subprocess.run(["bash", "-c", lines], cwd=ROOT, env=environment, check=True, capture_output=True, timeout=240)
    with prefect_client(prefect_api) as api:
        for name, cron in (("segment-dataset/nightly", "0 2 * * *"), ("retrain-model/retrain", "0 4 * * 1")):
            made = api.get(f"/deployments/name/{name}").raise_for_status().json()
            api.delete(f"/deployments/{made['id']}")
            assert [each["schedule"]["cron"] for each in made["schedules"]] == [cron]
            assert made["parameters"]["parameters"]["output"].startswith(f"{folder}/")
