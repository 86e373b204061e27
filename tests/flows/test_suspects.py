"""``visionmill evaluate --suspects``: a table for people, data for programs, and figures as always."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.label_errors_data import OBJECT_ERRORS, plant
from modelkit.digitscape import Digitscape, write_label_set
from tests.flows.command import DIGITS, refused, visionmill

MODEL = DIGITS[1]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen scenes of which a tenth of the labels is wrong."""
    folder = tmp_path_factory.mktemp("labels")
    path, *_ = write_label_set(folder, Digitscape("test", (96, 96), seed=4, dense=False), 16)
    path.write_text(json.dumps(plant(json.loads(path.read_text()), OBJECT_ERRORS, 0.1, seed=0).content))
    return path


def test_suspects_are_listed_for_people_and_programs_and_the_figures_stay(
    labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.cli.suspects.answers", Console(highlight=False, width=400))  # no cell is folded
    plain = visionmill("evaluate", MODEL, labelled, "--json").summary
    said = visionmill("evaluate", MODEL, labelled, "--suspects", "3", "--json")
    found = said.summary["suspects"]
    assert "suspects" not in plain and said.summary["metrics"] == plain["metrics"]
    assert len(found["labelled"]) == 3 <= found["questioned"] and found["expected_wrong"] > 0
    assert len(said.stdout.splitlines()) == 1 and "labelled objects, of which about" in said.stderr
    probabilities = [each["probability"] for each in found["labelled"]]
    assert probabilities == sorted(probabilities, reverse=True) and 0 < probabilities[-1] <= probabilities[0] <= 1
    told = visionmill("evaluate", MODEL, labelled, "--suspects", "3").stdout
    assert told.count("\n") > 3 and "what the model says" in told
    truth = {each["id"]: each for each in json.loads(labelled.read_text())["annotations"]}
    for each in found["labelled"]:
        object_ = truth[int(each["origin_id"])]
        x, y, width, height = object_["bbox"]
        assert each["box_xyxy"] == [x, y, x + width, y + height]
        assert each["uri"].endswith(".png") and each["frame"] is None and each["words"] in " ".join(told.split())
        assert f"{each['object']} (id {each['origin_id']})" in told


def test_a_kind_that_finds_none_is_refused_before_any_image_is_looked_at(labelled: Path) -> None:
    message = refused(2, "evaluate", "unet", labelled, "--weights", "random:0", "--suspects", "3")
    assert "not found by models of the kind semantic" in message and "kinds that find it: detection" in message
    assert "must be at least 1" in refused(2, "evaluate", MODEL, labelled, "--suspects", "0")
