"""What of a run is put on Prefect's page, without a server: which artifacts there are, and what they say."""

from __future__ import annotations

from typing import Any

import pytest

from flows import page


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Artifacts by key: rows of tables, (address, description) of links."""
    made: dict[str, Any] = {}

    def table(*, key: str, table: list[dict[str, Any]], description: str) -> None:
        made[key] = table

    def link(*, key: str, link: str, link_text: str, description: str) -> None:
        made[key] = (link, description)

    monkeypatch.setattr(page, "create_table_artifact", table)
    monkeypatch.setattr(page, "create_link_artifact", link)
    return made


def trained(folder: str) -> dict[str, Any]:
    looks = [{"step": step, "main": step / 10, "by_class": {"nut": step / 20, "plate": None}} for step in (3, 6)]
    return {
        "weights": f"{folder}/parts.safetensors",
        "curves": f"{folder}/curves.html",
        "model": "parts@1",
        "steps": 6,
        "history": [{"step": 1, "loss": 2.0}],
        "validation": {"images": 4, "every": 3, "looks": looks, "best": 6},
        "metrics": {"mask": {"ap": 0.5, "by_class": {"nut": 0.5}}, "images": 4},
    }


def test_a_training_shows_its_curve_and_what_the_held_out_labels_said(shown: dict[str, Any]) -> None:
    page.show_training(trained("s3://bucket/own"))
    assert set(shown) == {"weights", "curves", "curve", "held-out", "metrics"}
    assert shown["held-out"] == [
        {"step": 3, "main": 0.3, "nut": 0.15, "plate": None},
        {"step": 6, "main": 0.6, "nut": 0.3, "plate": None},
    ]
    assert shown["metrics"] == [{"group": "mask", "figure": "ap", "value": 0.5}]


def test_a_loop_shows_its_rounds_and_where_their_pages_are(shown: dict[str, Any]) -> None:
    summary = {"output": "s3://bucket/loop", "champion": "a@1", "champion_weights": "s3://bucket/loop/a.safetensors"}
    page.show_rounds(summary, [{"round": 1, "accepted": 3}])
    assert shown["rounds"] == [{"round": 1, "accepted": 3}]
    assert shown["report"][0] == "s3://bucket/loop/report/index.html"


def test_a_link_to_a_file_says_that_it_is_to_be_copied(shown: dict[str, Any]) -> None:
    page.show_training(trained("s3://bucket/own"))
    assert shown["weights"] == ("s3://bucket/own/parts.safetensors", "parts@1 after 6 steps")
    page.show_training({**trained("/data/own"), "validation": None})
    address, told = shown["weights"]
    assert address == "file:///data/own/parts.safetensors" and "copy it" in told
