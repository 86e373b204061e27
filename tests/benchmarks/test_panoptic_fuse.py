"""The benchmark of fusion runs, and compares ways that give the same numbers."""

from __future__ import annotations

import pytest
import torch

from benchmarks import panoptic_fuse


def test_it_prints_a_row_for_each_step_compared(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # other tests keep theirs
    panoptic_fuse.main(["--size", "8", "12", "--repeats", "1"])
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("maps of 8x12")
    assert [row.split("  ")[0] for row in rows[1:]] == [
        "gather 5 levels",
        "correlate 81 displacements",
        "whole fuse step",
        "panoptic map of 50 objects",
    ]


def test_ways_that_differ_end_it() -> None:
    with pytest.raises(SystemExit, match="differ"):
        panoptic_fuse.compare(lambda: torch.zeros(2), lambda: torch.ones(2), 1)
