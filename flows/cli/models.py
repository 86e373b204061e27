"""``visionmill models list | show | import | export | card``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.console import JsonFlag, Summary, answers, command, long_work, people, say, table
from infra.errors import UsageError

_CONFIG_HELP = "Options of the model that no tensor tells (input size, output stride): JSON, or a .json file of it."
_CLASSES_HELP = 'What the class ids mean: a .json ({"1": "cat", ...}), a file of names, or coco80, coco91, voc.'
_MODEL_HELP = "Name of a model, or file or folder of its weights."
_SIZE_HELP = "Size of the images that the network's shape is chosen for; others are fitted into it."
_PART_HELP = "MODULE=FILE, a further checkpoint for one module: flow.network=raft_small.pth. Repeatable."

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
    model: Annotated[str, typer.Argument(help=_MODEL_HELP)],
    as_json: JsonFlag = False,
) -> Summary:
    """The record of a model's weights: digest, preprocessing, classes, lineage, metrics, licence. Downloads nothing."""
    import modelkit
    from tasks.engine.model_source import local_model, not_here_yet

    if (file := not_here_yet(model)) is not None:
        (info,) = (vars_of(each) for each in modelkit.list_models() if each.name == file.model)
        told = info | {"weights": file.weights, "address": file.url, "is_here": False}
        say(f"its weights are not here yet: a job that needs them downloads them to {file.path}", style="yellow")
    else:
        told = modelkit.describe(local_model(model)).to_json()
    (people if as_json else answers).print_json(data=told)
    return {"model": told}


@app.command("import")
@command
def import_(
    name: Annotated[str, typer.Argument(help="Architecture that the checkpoint belongs to, e.g. mask_rcnn.")],
    file: Annotated[Path, typer.Argument(help="Published checkpoint (.pth, .pt or .safetensors).")],
    destination: Annotated[Path, typer.Argument(help="Folder that receives weights and record.")],
    config: Annotated[str | None, typer.Option(help=_CONFIG_HELP)] = None,
    classes: Annotated[str | None, typer.Option(help=_CLASSES_HELP)] = None,
    part: Annotated[list[str] | None, typer.Option(help=_PART_HELP)] = None,
) -> Summary:
    """Turn a published checkpoint into safetensors + record; every tensor is checked, nothing is unpickled."""
    with long_work():
        import modelkit
        from tasks.product import products, stores

        parts, options = dict(map(_pair_of, part or ())), _json_of(config)
        record = modelkit.import_weights(name, file, destination, config=options, classes=classes, parts=parts)
    say(
        f"imported {file.name} as {name}: {record.num_parameters:,} parameters, digest {record.digest[:12]}",
        style="green",
    )
    verbs = [each.verb for each in products().values() if stores(each, record.kind)]
    if verbs:
        say(f"use it:  visionmill {verbs[0]} SOURCE OUTPUT --model {destination}")
    else:
        say(f"use it:  modelkit.load({str(destination)!r}) in Python; no job stores what models of its kind find yet")
    return {"model": record.to_json(), "path": str(destination)}


@app.command("export")
@command
def export(
    model: Annotated[str, typer.Argument(help=_MODEL_HELP)],
    file: Annotated[Path, typer.Argument(help="File to write, such as signs.onnx or signs.pt2.")],
    to: Annotated[str, typer.Option("--to", metavar="onnx|torch", help="ONNX, or a program of torch.export.")],
    size: Annotated[str, typer.Option(metavar="HxW", help=_SIZE_HELP)] = "480x640",
) -> Summary:
    """A model as one graph: an image of any size in (uint8 RGB), results in pixels of that image out."""
    with long_work():
        import modelkit
        from infra.telling import tell
        from tasks.engine.model_source import local_model

        loaded = modelkit.load(local_model(model))
        tell(f"tracing {model}")
        done = modelkit.export_model(loaded, file, to, _size_of(size))
    rows, columns = done.network_hw
    outputs = ", ".join(f"{name} {shape}" for name, shape in done.outputs.items())
    say(f"{done.path}: {outputs}; the network's input is {rows}x{columns}", style="green")
    if done.left_to_caller:
        say(f"left to who runs it: {done.left_to_caller}", style="yellow")
    return {
        "path": str(done.path),
        "to": done.form,
        "outputs": done.outputs,
        "network_hw": list(done.network_hw),
        "left_to_caller": done.left_to_caller,
    }


@app.command("card")
@command
def card(
    model: Annotated[str, typer.Argument(help=_MODEL_HELP)],
    file: Annotated[Path | None, typer.Argument(help="Markdown file to write; without, the card is printed.")] = None,
    as_json: JsonFlag = False,
) -> Summary:
    """A model card in the form of the Hugging Face hub: what the record says, and nothing beside it."""
    import modelkit
    from tasks.engine.model_source import local_model

    text = modelkit.model_card(modelkit.describe(local_model(model)))
    if file is not None:
        file.write_text(text, "utf-8")
        say(f"card: {file}", style="green")
    elif not as_json:
        answers.out(text, end="")
    return {"card": text, "path": None if file is None else str(file)}


def _size_of(size: str) -> tuple[int, int]:
    rows, _, columns = size.partition("x")
    if not (rows.isdigit() and columns.isdigit() and int(rows) and int(columns)):
        raise UsageError(f"--size must be HxW, such as 480x640, got {size!r}")
    return int(rows), int(columns)


def _json_of(config: str | None) -> dict[str, Any]:
    """Options given as JSON or as the name of a file of it."""
    if config is None:
        return {}
    try:
        content = json.loads(Path(config).read_text("utf-8") if config.endswith(".json") else config)
    except (OSError, ValueError) as error:
        raise UsageError(f"--config {config} is neither JSON nor a .json file: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"--config must be a JSON object of options, got {config}")
    return content


def _pair_of(part: str) -> tuple[str, str]:
    module, equals, file = part.partition("=")
    if not (module and equals and file):
        raise UsageError(f"--part must be MODULE=FILE, got {part}")
    return module, file


def vars_of(info: object) -> Summary:
    import dataclasses

    return {"task" if name == "kind" else name: value for name, value in dataclasses.asdict(info).items()}  # type: ignore[call-overload]
