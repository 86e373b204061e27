"""A kind that nobody foresaw goes through the same commands as those that come along, and no file knows its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import modelkit
from infra.errors import UsageError
from tasks.evaluation.bootstrap import compare
from tasks.evaluation.evaluate import evaluate_predictor
from tasks.evaluation.figures import in_words
from tasks.labels.reading import read_label_set
from tasks.product import find_kind
from tests.flows.command import ask, refused, segment, visionmill
from tests.toys.dominant_colour import KIND

COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}
SERIAL = ("--ray", "none", "--no-prefect")


def write_images(folder: Path, count: int, seed: int) -> Path:
    """Noisy pictures of three colours, and COCO labels with one box each."""
    draws = np.random.default_rng(seed)
    images: list[dict[str, Any]] = []
    annotations = []
    (folder / "images").mkdir(parents=True)
    for k in range(count):
        label = k % len(COLOURS)
        pixels = np.array(list(COLOURS.values())[label]) + draws.normal(0, 30, (24, 32, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"images/{k}.png")
        images.append({"id": k, "file_name": f"images/{k}.png", "width": 32, "height": 24})
        annotations.append({"id": k, "image_id": k, "category_id": label + 1, "bbox": [0, 0, 32, 24], "area": 768})
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(COLOURS)]
    path = folder / "labels.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def test_it_is_trained_judged_and_run_over_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONMILL_CACHE_DIR", str(tmp_path / "cache"))
    labels, held_out = (write_images(tmp_path / name, 12, seed) for seed, name in enumerate(("train", "test")))
    asked = ["train", labels, tmp_path / "out", "--recipe", KIND.default_recipe, *SERIAL, "--json"]
    raw, done = (visionmill(*asked, "--steps", steps).summary for steps in ("1", "60"))
    page = tmp_path / "judged.html"
    figures = visionmill("evaluate", done["weights"], held_out, "--page", page, "--json").summary["metrics"]
    assert "share of right images" in page.read_text() and "Pictures" not in page.read_text(), "the kind has no panels"
    assert figures["task"] == KIND.name and figures["image"]["accuracy"] == 1
    assert figures["image"]["by_class"] == dict.fromkeys(COLOURS, 1.0)
    assert in_words("accuracy", KIND.name) == "share of right images"

    spoilt = json.loads(held_out.read_text())
    spoilt["annotations"][4]["category_id"] = 3
    (tmp_path / "test/spoilt.json").write_text(json.dumps(spoilt))
    asked = ["evaluate", done["weights"], tmp_path / "test/spoilt.json", "--suspects", "5", "--json"]
    (suspect,) = visionmill(*asked).summary["suspects"]["labelled"]
    assert (suspect["origin_id"], suspect["name"], suspect["words"]) == ("4", "blue", "the model says green")

    truth = read_label_set(str(held_out))
    trained, fresh = (evaluate_predictor(modelkit.load(each["weights"]), truth) for each in (done, raw))
    gain = compare(trained, fresh, seed=0)
    assert gain.difference == pytest.approx(1 - fresh.main_figure) and gain.probability > 0.9

    job = segment(tmp_path / "test" / "images", tmp_path / "rows", "--model", done["weights"])
    assert job["items"]["ok"] == 12
    found = ask(str(tmp_path / "rows"), "SELECT name, count(*) AS n FROM instances GROUP BY name ORDER BY name")
    assert found == [{"name": name, "n": 4} for name in sorted(COLOURS)]


def test_the_loop_teaches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONMILL_CACHE_DIR", str(tmp_path / "cache"))
    labels, unlabelled = write_images(tmp_path / "l", 90, 0), write_images(tmp_path / "u", 9, 1)
    output = tmp_path / "loop"
    shares = [word for share in ("train=0.3", "calibration=0.4", "gate=0.3") for word in ("--share", share)]
    data = ["--labelled", labels, "--unlabelled", tmp_path / "u" / "images", "--audit", unlabelled, "--output", output]
    # Groups are called by the file's name alone, so that images are divided the same way wherever they lie.
    asked = ["--group-rule", "[^/]+$", "--steps", "40", "--precision", "0.5", *shares, *SERIAL, "--json"]
    done = visionmill("retrain", "--task", KIND.name, *data, *asked).summary
    [outcome] = done["rounds"]
    accepted = outcome["accepted"]
    assert accepted == dict.fromkeys(COLOURS, 3) and outcome["unit"] == "images"
    assert outcome["gate"]["candidate"] == 1
    query = "SELECT kind, name, decision, reason FROM pseudo_labels WHERE label = 1 AND decision = 'accept'"
    taught = {"kind": KIND.name, "name": "red", "decision": "accept", "reason": "certified"}
    assert ask(str(output), query) == [taught] * accepted["red"]
    found = ask(str(output), "SELECT criterion, value FROM verdicts WHERE round = 1")
    criteria = {row["criterion"]: row["value"] for row in found}
    assert criteria["audit: labels looked at"] == sum(accepted.values()) and criteria["calibration: D-ECE"] is not None
    [page] = (output / "report" / "rounds").glob("*.html")
    assert "Images accepted" in page.read_text() and "data:image/" in page.read_text(), "with pictures"


def test_its_recipes_are_offered_and_an_unknown_kind_is_answered_with_those_that_exist(tmp_path: Path) -> None:
    message = refused(2, "train", write_images(tmp_path / "a", 3, 0), tmp_path, "--recipe", "nonesuch", *SERIAL)
    assert "toy_colour" in message
    with pytest.raises(UsageError, match="no kind of model 'fortune_telling'") as caught:
        find_kind("fortune_telling")
    assert KIND.name in str(caught.value.hint)
