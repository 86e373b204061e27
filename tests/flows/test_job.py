"""One job flow for every product: a product that registers itself has its command, its flow and its entrypoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import pytest
from prefect.exceptions import MissingFlowError
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from pydantic import Field

from tasks.parameters import Option
from tasks.product import find_product, register, temporary_registrations
from tasks.products.segments.parameters import SegmentParameters
from tests.flows.command import SERIAL, refused, visionmill
from tests.flows.scenes import write_scenes


class DrawParameters(SegmentParameters):
    """Parameters of a product that no file of ours names."""

    ink: Annotated[str, Option("ink-colour"), Field(pattern="^[a-z]+$", description="What is drawn with.")] = "black"


@pytest.mark.parametrize("file", ["flows/segment.py", "flows/job.py"])
def test_deployments_find_the_flow_of_segments_by_the_entrypoint_of_old_and_of_new(file: str) -> None:
    flow = load_flow_from_entrypoint(f"{file}:segment_dataset")
    assert flow.name == "segment-dataset"
    fields = parameter_schema(flow).definitions["SegmentParameters"]["properties"]
    assert set(fields) == set(SegmentParameters.model_fields)
    with pytest.raises(MissingFlowError):
        load_flow_from_entrypoint(f"{file}:unheard_of_dataset")


def test_a_product_that_registers_itself_has_a_command_a_flow_and_an_entrypoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with temporary_registrations():
        register(
            dataclasses.replace(
                find_product("segments"), name="drawings", verb="draw", doing="drawing", parameters=DrawParameters
            )
        )
        shown = visionmill("draw", "--help").stdout
        assert "Draw a whole dataset." in shown and "--ink-colour" in shown and "What is drawn with." in shown
        assert "--ink-colour: must be like ^[a-z]+$, got '#'" in refused(2, "draw", "a", "b", "--ink-colour", "#")
        flow = load_flow_from_entrypoint("flows/job.py:draw_dataset")
        assert flow.name == "draw-dataset"
        assert "ink" in parameter_schema(flow).definitions["DrawParameters"]["properties"]

        write_scenes(tmp_path / "in", 1)
        words = ("draw", tmp_path / "in", tmp_path / "out", *SERIAL, "--json")
        assert visionmill(*words).summary["items"]["ok"] == 1
        assert visionmill(*words).summary["outcome"] == "nothing_to_do"
        assert list((tmp_path / "out" / "drawings").rglob("*.parquet"))
    assert "No such command" in visionmill("draw", "--help", exit_code=2).stderr
