"""Choosing how to run the model looks at some items before the workers do: none of them may end or hold up the run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from infra.errors import StoreOutage
from tasks.engine import calibrate
from tasks.engine.calibrate import choose_for_run
from tests.tasks.engine.fakes import FakePredictor, job_for
from tests.tasks.engine.test_pool_serial import plan_of


class InPieces(FakePredictor):
    """The fake, as what is measured is one piece of an image."""

    piece = FakePredictor.prepare


def chosen(tmp_path: Path, acts: dict[int, str]) -> str:
    plan = plan_of(tmp_path, 64, 64, acts)
    job = job_for(plan.output, predictor_factory=None)
    decision = choose_for_run(plan, job, "auto", workers=1, session=None, num_gpus=0)  # type: ignore[arg-type]
    assert decision["mode"] == "eager"
    return str(decision["reason"])


def test_an_item_that_hangs_holds_up_no_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "SAMPLE_S", 0.5)
    monkeypatch.setattr(calibrate, "load_predictor", lambda job: InPieces())
    began = time.monotonic()
    assert "could not be read within" in chosen(tmp_path, {4: "hang in prepare"})
    assert time.monotonic() - began < 10


def test_a_store_that_answers_nobody_ends_the_choice_as_it_ends_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object) -> None:
        raise StoreOutage("the store does not answer")

    monkeypatch.setattr(calibrate, "load_predictor", lambda job: InPieces())
    monkeypatch.setattr(calibrate, "decode_entry", silent)
    with pytest.raises(StoreOutage):
        chosen(tmp_path, {})
