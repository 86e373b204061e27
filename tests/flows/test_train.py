"""The training flow: labels in, weights out; again, and nothing is done; transfer and distillation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from flows.parameters import TrainParameters
from flows.train import run_train
from infra.errors import UsageError
from infra.problems import checked
from infra.store import open_store
from modelkit.digitscape import Digitscape, write_dataset
from tests.tasks.training.scenes import recipe


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    return write_dataset(folder, Digitscape("train", (64, 64), seed=2, dense=False), 6, image_format="png")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("VISIONMILL_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(recipe().to_json()))
    return str(path)


def train(labelled: Path, output: Path | str, tiny: str, **options: object) -> dict[str, object]:
    given = {"labelled": str(labelled), "output": str(output), "recipe": tiny, "steps": 4, "ray": "none", **options}
    return run_train(checked(TrainParameters, **given), orchestrated=False)


def test_train_transfer_distil_and_do_nothing_the_second_time(labelled: Path, tmp_path: Path, tiny: str) -> None:
    first = train(labelled, tmp_path / "out", tiny, evaluate=str(labelled))
    assert first["kind"] == "trained" and first["steps"] == 4
    assert Path(str(first["curves"])).read_text("utf-8").count("<svg") > 5
    assert first["metrics"]["images"] == 6  # type: ignore[index]
    again = train(labelled, tmp_path / "out", tiny)
    assert (again["weights"], again["model"]) == (first["weights"], first["model"])
    assert len(list(open_store(str(tmp_path / "out")).list("training/sets/"))) == 1
    moved = train(
        labelled, tmp_path / "out", tiny, initial=first["weights"], freeze=("backbone",), rate_scales={"neck": 0.1}
    )
    assert moved["kind"] == "transferred"
    student = train(
        labelled, tmp_path / "out", tiny, teacher=first["weights"], alpha=0.9, temperature=2.0, name="pupil"
    )
    assert student["kind"] == "distilled" and str(student["model"]).startswith("pupil@")
    fingerprints = {each["fingerprint"] for each in (first, moved, student)}
    assert len(fingerprints) == 3


def test_a_recipe_from_a_file_holds_labels_out_as_the_derived_one_did(tmp_path: Path, tiny: str) -> None:
    many = write_dataset(tmp_path / "many", Digitscape("train", (64, 64), seed=2, dense=False), 20, image_format="png")
    Path(tiny).write_text(json.dumps(dataclasses.replace(recipe(), validation=0.1).to_json()))
    trained = train(many, tmp_path / "out", tiny, group_rule="item", validate_every=2)
    assert [look["step"] for look in trained["validation"]["looks"]] == [2, 4]  # type: ignore[index]
    assert train(many, tmp_path / "out", tiny, validation=0.0)["validation"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"workers": 2}, "one worker"),
        ({"rate_scales": {"backbone": 0.0}}, "freeze it"),
        ({"output": "s3://key:secret@bucket/x"}, "credentials"),
        ({"alpha": 2.0}, "alpha"),
        ({"recipe": "no such recipe"}, "no recipe and no model"),
        ({"freeze": ("nothing",)}, "no part 'nothing'"),
        ({"log": ("paper:here",)}, "no logger 'paper'"),
        ({"log": ("mlflow:http://me:secret@host",)}, "carries credentials; put them where the logger's library"),
    ],
)
def test_nonsense_is_refused(
    labelled: Path, tmp_path: Path, tiny: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises((UsageError, ValueError), match=message):
        train(**{"labelled": labelled, "output": tmp_path / "out", "tiny": tiny, **options})
