"""The door of the flows: nonsense and secrets are refused before anything is touched."""

from __future__ import annotations

from typing import Any

import pytest

from flows import work
from infra.errors import UsageError
from infra.problems import checked
from tasks.products.segments.parameters import DEFAULT_MODEL, SegmentParameters

GOOD: dict[str, Any] = {"source": "s3://bucket/in", "output": "s3://bucket/out"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"source": ""}, "source"),  # empty
        ({"source": "s3://key:secret@bucket/in"}, "source"),  # credentials in a URI
        ({"output": "https://user:token@host/out"}, "output"),  # credentials in a URI
        ({"output": "gs://bucket/out"}, "output"),  # a scheme we don't write
        ({"workers": 0}, "workers"),  # nobody would work
        ({"workers": "many"}, "workers"),  # neither auto nor a number
        ({"frame_stride": 0}, "frame_stride"),  # every 0-th frame
        ({"score_threshold": 1.5}, "score_threshold"),  # not a probability
        ({"gpus_per_worker": -1}, "gpus_per_worker"),  # negative
        ({"compile": "maybe"}, "compile"),  # no such mode
        ({"no_such_parameter": 1}, "no_such_parameter"),  # a typing error
    ],
)
def test_nonsense_is_refused_naming_the_parameter(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        checked(SegmentParameters, **{**GOOD, **change})
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("gpus", "cores", "memory_gib", "workers", "share"),
    [
        (0, 16, 0, "auto", 0.0),
        (1, 16, 80, "auto", 1 / 4),
        (1, 64, 80, "auto", 1 / 4),
        (1, 8, 80, "auto", 1 / 2),
        (1, 2, 80, "auto", 1.0),
        (1, 16, 8, "auto", 1.0),
        (4, 32, 80, "auto", 1 / 2),
        (1, 16, 80, 1, 1.0),
        (1, 2, 80, 8, 1 / 8),
        (4, 32, 80, 6, 1 / 2),
    ],
)
def test_workers_share_gpus_as_cores_and_memory_allow(
    gpus: int, cores: int, memory_gib: int, workers: Any, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_local_gpus", lambda: gpus)
    monkeypatch.setattr(work, "_gpu_bytes", lambda: memory_gib << 30)
    monkeypatch.setattr(work, "cpu_slots", lambda: cores)
    needs = work.needs_of(checked(SegmentParameters, **{**GOOD, "workers": workers}))
    assert needs.num_gpus == pytest.approx(share)
    assert needs.device == ("cuda" if gpus else "cpu")
    assert work.needs_of(checked(SegmentParameters, **{**GOOD, "gpus_per_worker": 1.0})).num_gpus == 1.0


def test_refusal_of_credentials_does_not_repeat_them() -> None:
    with pytest.raises(UsageError) as caught:
        checked(SegmentParameters, **{**GOOD, "source": "s3://AKIAEXAMPLE:hunter2secret@bucket/in"})
    assert "hunter2secret" not in caught.value.message + caught.value.hint


def test_defaults_use_published_weights_and_all_of_the_dataset() -> None:
    parameters = checked(SegmentParameters, **GOOD)
    assert (parameters.model, parameters.workers, parameters.frame_stride) == (DEFAULT_MODEL, "auto", 1)


@pytest.mark.parametrize("source", ["/data/a b#?.jpg", "s3://bucket/100%/ü?.jpg", "s3://bucket/shard-{000..009}.tar"])
def test_names_are_taken_as_they_are(source: str) -> None:
    assert checked(SegmentParameters, **{**GOOD, "source": source}).source == source
