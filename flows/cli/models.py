"""``visionmill models list | show | import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.console import JsonFlag, Summary, answers, command, people, say, table

app = typer.Typer(help="The models that jobs can use.", no_args_is_help=True)


@app.command("list")
@command
def list_(as_json: JsonFlag = False) -> Summary:
    """Every model: architecture, task, parameters, whether it is embedded, the weights known for it."""
    import modelkit

    infos = modelkit.list_models()
    listing = table("name", "architecture", "task", "parameters", "embedded", "weights")
    for info in infos:
        known = ", ".join(info.weights)
        listing.add_row(
            info.name, info.architecture, info.kind, f"{info.num_parameters:,}", "yes" if info.embedded else "", known
        )
    (people if as_json else answers).print(listing)
    return {"models": [vars_of(info) for info in infos]}


@app.command("show")
@command
def show(
    model: Annotated[str, typer.Argument(help="Name of a model, or file or folder of its weights.")],
    as_json: JsonFlag = False,
) -> Summary:
    """The record of a model's weights: digest, preprocessing, classes, lineage, metrics, licence."""
    import modelkit
    from tasks.engine.model_source import local_model

    record = modelkit.describe(local_model(model)).to_json()
    (people if as_json else answers).print_json(data=record)
    return {"model": record}


@app.command("import")
@command
def import_(
    name: Annotated[str, typer.Argument(help="Architecture that the checkpoint belongs to, e.g. mask_rcnn.")],
    file: Annotated[Path, typer.Argument(help="Published checkpoint (.pth, .pt or .safetensors).")],
    destination: Annotated[Path, typer.Argument(help="Folder that receives weights and record.")],
) -> Summary:
    """Turn a published checkpoint into safetensors + record; every tensor is checked, nothing is unpickled."""
    import modelkit
    from tasks.product import find_kind, find_product

    record = modelkit.import_weights(name, file, destination)
    say(
        f"imported {file.name} as {name}: {record.num_parameters:,} parameters, digest {record.digest[:12]}",
        style="green",
    )
    verb = find_product(find_kind(record.kind).product).verb
    say(f"use it:  visionmill {verb} SOURCE OUTPUT --model {destination}")
    return {"model": record.to_json(), "path": str(destination)}


def vars_of(info: object) -> Summary:
    import dataclasses

    return {"task" if name == "kind" else name: value for name, value in dataclasses.asdict(info).items()}  # type: ignore[call-overload]
