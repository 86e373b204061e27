"""``visionmill promote | rollback``: one JSON line for programs, the right exit code, the reason when refused."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli.app import make_app
from infra.store import open_store
from modelkit.records import shipped_folder
from tasks.loop.champion import Model, record_candidate
from tasks.loop.gate import Criterion, Verdict
from tests.flows.command import DIGITS, SERIAL, segment
from tests.flows.scenes import write_scenes

NOW = dt.datetime(2026, 11, 25, tzinfo=dt.UTC)


def recorded(output: str, name: str, champion: str | None, value: float = 0.02, weights: str = "") -> str:
    verdict = Verdict("r", 1, champion, name, (Criterion("better", value, ">=", 0.01),), NOW)
    model = Model(name, weights or f"s3://w/{name}", "a" * 64, "r", 1)
    return record_candidate(open_store(output), verdict, model, needs_approval=True, at=NOW).verdict_id


def visionmill(*words: str) -> tuple[int, dict[str, Any]]:
    found = CliRunner().invoke(make_app(), [*words, "--json"])
    return found.exit_code, json.loads(found.stdout.strip().splitlines()[-1])


def test_promote_list_and_roll_back(store_uri: str) -> None:
    recorded(store_uri, "a@1", None)
    code, said = visionmill("promote", store_uri, "--approver", "ada", "--reason", "first model")
    assert code == 0 and said["champion"]["model_id"] == "a@1"
    second = recorded(store_uri, "b@2", "a@1")
    assert visionmill("promote", store_uri, second, "--approver", "ada", "--reason", "better on rare classes")[0] == 0
    code, said = visionmill("rollback", store_uri, "--approver", "bob", "--reason", "flickers on night scenes")
    assert code == 0 and said["champion"]["model_id"] == "a@1" and said["move"]["approver"] == "bob"
    code, said = visionmill("promote", store_uri, "--list")
    assert [move["action"] for move in said["moves"]] == ["promote", "promote", "rollback"]


def test_a_job_whose_model_is_a_loop_takes_its_champion(store_uri: str, tmp_path: Path) -> None:
    source, output, loop = str(tmp_path / "in"), str(tmp_path / "out"), f"{store_uri}/loop"
    write_scenes(tmp_path / "in", 2)
    job = ("segment", source, output, *SERIAL[: -len(DIGITS)], "--model", loop)
    assert visionmill(*job)[0] != 0, "no champion yet"
    by_name = segment(source, str(tmp_path / "named"))
    for name, before in (("a@1", None), ("b@2", "a@1")):
        recorded(loop, name, before, weights=str(shipped_folder() / f"{DIGITS[1]}.safetensors"))
        assert visionmill("promote", loop, "--approver", "ada", "--reason", "better")[0] == 0
        code, said = visionmill(*job)
        assert code == 0 and said["version"] == by_name["version"]
    assert said["outcome"] == "nothing_to_do", "another champion of the same weights changes nothing"
    assert visionmill(*job, "--dry-run")[1]["outcome"] == "nothing_to_do"


def test_a_refused_candidate_ends_with_its_reasons(tmp_path: Any) -> None:
    output = str(tmp_path / "out")
    bad = recorded(output, "bad@1", None, value=0.001)
    code, said = visionmill("promote", output, bad, "--approver", "ada", "--reason", "please")
    assert code == 1 and "better: 0.001, must be >= 0.01" in said["error"]
    assert visionmill("promote", output, "--list")[1]["candidates"][0]["state"] == "refused"


def test_declining_keeps_the_champion(tmp_path: Any) -> None:
    output = str(tmp_path / "out")
    candidate = recorded(output, "a@1", None)
    code, said = visionmill("promote", output, candidate, "--decline", "--approver", "ada", "--reason", "overfits")
    assert code == 0 and said["champion"] is None and said["move"]["action"] == "decline"


@pytest.mark.parametrize(
    "words",
    [("promote", "--approver", "ada"), ("rollback", "--reason", " "), ("promote", "--decline", "--reason", "x")],
    ids=["no reason", "blank reason", "decline nobody"],
)
def test_incomplete_requests_are_wrong_usage(tmp_path: Any, words: tuple[str, ...]) -> None:
    output = str(tmp_path / "out")
    recorded(output, "a@1", None)
    code, said = visionmill(words[0], output, *words[1:])
    assert code == 2 and not said["ok"]
