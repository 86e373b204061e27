"""``visionmill promote | rollback``: one JSON line for programs, the right exit code, the reason when refused."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli.app import make_app
from infra.store import open_store
from tasks.loop.champion import Model, record_candidate
from tasks.loop.gate import Criterion, Verdict

NOW = dt.datetime(2026, 11, 25, tzinfo=dt.UTC)


def recorded(output: str, name: str, champion: str | None, value: float = 0.02) -> str:
    verdict = Verdict("r", 1, champion, name, (Criterion("better", value, ">=", 0.01),), NOW)
    model = Model(name, f"s3://w/{name}", "a" * 64, "r", 1)
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
