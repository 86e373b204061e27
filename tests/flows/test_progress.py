"""What people see of long work: a line now and then where a bar would be no use, and no secret in it."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from flows import progress
from flows.progress import line_of, progress_shown, run_listener
from infra.store import open_store
from infra.telling import Word, duration, tell
from tasks.engine.progress import Progress
from tests.flows.command import visionmill
from tests.tasks.output.fake_output import FakeOutput, Item


def moment(**changes: object) -> Progress:
    values = {
        "shards_total": 12, "shards_done": 3, "shards_before": 0, "items_done": 310, "rows_per_s": 99.0,
        "rows_per_s_overall": 15.1, "eta_s": 60.0, "elapsed_s": 20.0, "workers": 2,
    } | changes  # fmt: skip
    return Progress(**values)  # type: ignore[arg-type]


def heard(console_width: int = 200) -> tuple[Console, io.StringIO]:
    sink = io.StringIO()
    return Console(file=sink, width=console_width), sink


def test_in_a_pipe_long_work_says_a_line_now_and_then_also_where_nothing_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.2)
    monkeypatch.setattr(progress, "_FIRST_LINE_S", 0.05)
    monkeypatch.setattr(progress, "_TICK_S", 0.02)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-the-environment")
    console, sink = heard()
    with progress_shown(console):
        tell("reading labels of a-secret-of-the-environment")
        time.sleep(0.7)
        tell("training", 3, 10, "steps", "loss 1.5")
        time.sleep(0.3)
    lines = sink.getvalue().splitlines()
    reading = [line for line in lines if line.startswith("reading labels of ***")]
    assert 2 <= len(reading) <= 5
    assert any(line.startswith("training: 3 of 10 steps, loss 1.5") for line in lines)


def test_what_is_done_at_once_needs_no_line_and_nobody_listens_afterwards() -> None:
    console, sink = heard()
    with progress_shown(console):
        tell("opening the plan")
    tell("something else")
    assert sink.getvalue() == ""
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_steps_that_follow_each_other_leave_no_longer_silence_than_one_that_lasts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.3)
    monkeypatch.setattr(progress, "_FIRST_LINE_S", 0.2)
    monkeypatch.setattr(progress, "_TICK_S", 0.02)
    console, sink = heard()
    with progress_shown(console):
        for number in range(10):
            tell(f"step {number}")
            time.sleep(0.1)
    assert 2 <= len(sink.getvalue().splitlines()) <= 3


def test_one_display_shows_all_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_FIRST_LINE_S", 0.0)
    monkeypatch.setattr(progress, "_TICK_S", 0.02)
    (outer, sink), (inner, other) = heard(), heard()
    with progress_shown(outer), progress_shown(inner):
        tell("work")
        time.sleep(0.2)
    assert sink.getvalue().count("work") == 1 and other.getvalue() == ""


def test_a_terminal_has_a_bar() -> None:
    sink = io.StringIO()
    with progress_shown(Console(file=sink, force_terminal=True, width=150)):
        tell("training", 3, 10, "steps", "loss 1.5")
        time.sleep(0.3)
    assert "3 of 10 steps" in sink.getvalue() and "loss 1.5" in sink.getvalue()


def test_a_run_has_one_rate_and_says_what_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[Word] = []
    from infra.telling import listening

    with listening(words.append):
        run_listener("segmenting")(moment(failures={"NotAnImage": 2}, deaths=1))
        run_listener("segmenting")(moment(workers=0, items_done=0, shards_done=0))
    assert line_of(words[0], 21) == (
        "segmenting: 3 of 12 shards, 310 items, 15.1 items/s, 1 min 00 s left, 2 failed, 1 workers lost (21 s)"
    )
    assert line_of(words[1], 3) == "segmenting: 0 of 12 shards, the workers start (3 s)"


@pytest.mark.parametrize(("seconds", "said"), [(8.4, "8 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_durations_in_words(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["query", "OUT", "SELECT count(*) FROM range(100000000) a, items"], "asking "),
        (["verify", "OUT"], "reading the plans"),
        (["export", "OUT", "TMP/c.json", "--to", "coco"], "exporting"),
        (["report", "OUT"], "writing the report"),
        (["doctor"], "looking the machine over"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_commands_that_may_last_say_what_they_do_on_stderr_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    output = FakeOutput(open_store(str(tmp_path / "out")))
    output.commit([Item(f"{n}.jpg", num_instances=2) for n in range(20)])
    for name in ("LINE_INTERVAL_S", "_FIRST_LINE_S", "_TICK_S"):
        monkeypatch.setattr(progress, name, 0.001)
    monkeypatch.setenv("VISIONMILL_STATE_DIR", str(tmp_path / "state"))
    said = visionmill(*(word.replace("OUT", output.store.uri).replace("TMP", str(tmp_path)) for word in words))
    assert any(line.startswith(told) for line in said.stderr.splitlines()), said.stderr
    assert told not in said.stdout
