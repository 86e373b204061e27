"""What can be known at once is said at once: within 2 s of processor time, before a service is started."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from infra.machine import may_have_gpu
from infra.store import open_store
from tasks.output.lease import hold_lease
from tests.flows.command import DIGITS, end, start
from tests.flows.scenes import write_scenes


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("in", DIGITS, "another driver holds the lease"),
        ("nothing", DIGITS, "does not exist"),
        ("in", (*DIGITS, "--ray", "none", "--workers", "3"), "--ray none runs one worker"),
        ("in", (*DIGITS, "--gpus-per-worker", "1"), "--gpus-per-worker 1, and this machine has no GPU"),
        ("in", ("--model", "digitscape_mask_rcn"), "did you mean digitscape_mask_rcnn"),
    ],
    ids=["held", "source", "options", "gpu", "model"],
)
def test_a_job_that_cannot_be_is_refused_before_anything_is_started(
    tmp_path: Path, source: str, options: tuple[str, ...], words: str
) -> None:
    if "--gpus-per-worker" in options and may_have_gpu():
        pytest.skip("there is a GPU")
    write_scenes(tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    with hold_lease(open_store(str(tmp_path / "out")), "first"):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process = start(
            "segment", tmp_path / source, tmp_path / "out", *options, "--json", VISIONMILL_STATE_DIR=str(tmp_path / "s")
        )
        said = end(process, exit_code=2 if words.startswith(("--ray", "--gpus", "did")) else 1)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert words in said.stderr and said.stderr.count("error:") == 1
    assert not (tmp_path / "s").exists()
    assert used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime < 2.0
