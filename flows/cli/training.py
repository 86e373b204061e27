"""``visionmill train | evaluate | retrain``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from flows.cli.console import DebugFlag, JsonFlag, Summary, answers, command, people, say
from flows.parameters import RetrainParameters, TrainParameters, checked
from infra.errors import UsageError


def _numbers(option: str, texts: list[str], example: str) -> dict[str, float]:
    """NAME=NUMBER, as often as it was given."""
    numbers = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            numbers[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            raise UsageError(f"{option} {text!r} is not NAME=NUMBER", hint=f"for example {option} {example}")
    return numbers


@command
def train(
    labelled: Annotated[str, typer.Argument(help="Human labels: COCO or Label Studio JSON, CVAT XML, masks, Parquet.")],
    output: Annotated[str, typer.Argument(help="Folder or s3:// prefix that receives checkpoints and weights.")],
    recipe: Annotated[str, typer.Option(help="Name of a recipe or model, or URI of a recipe's JSON.")] = "digitscape",
    name: Annotated[str | None, typer.Option(help="Name of the weights.")] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 1000,
    batch_size: Annotated[int | None, typer.Option(help="Images per worker and step.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    initial: Annotated[str | None, typer.Option("--from", help="Transfer: weights to begin from.")] = None,
    freeze: Annotated[list[str], typer.Option(help="Transfer: a part that stays as it is; may be repeated.")] = [],  # noqa: B006 - typer copies it
    rate_scale: Annotated[
        list[str], typer.Option(help="Transfer: PART=FACTOR on the learning rate; may be repeated.")
    ] = [],  # noqa: B006 - typer copies it
    teacher: Annotated[str | None, typer.Option(help="Distillation: weights of the teacher.")] = None,
    alpha: Annotated[float, typer.Option(help="Distillation: weight of the teacher against the labels.")] = 0.5,
    temperature: Annotated[float, typer.Option(help="Distillation: of both softmaxes.")] = 4.0,
    evaluate_on: Annotated[str | None, typer.Option("--evaluate", help="Labels to judge the weights on.")] = None,
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster; 'none' trains in this process. Default: a local Ray.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Training processes.")] = 1,
    gpus: Annotated[bool, typer.Option("--gpus", help="One GPU for each worker.")] = False,
    prefect: Annotated[
        bool,
        typer.Option(
            "--prefect/--no-prefect", help="Record the run in the standing Prefect server.", envvar="VISIONMILL_PREFECT"
        ),
    ] = True,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Summary:
    """Train a model: from scratch, from other weights (--from), or beside a teacher (--teacher). Resumes by itself."""
    parameters = checked(
        TrainParameters,
        labelled=labelled,
        output=output,
        recipe=recipe,
        name=name,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        initial=initial,
        freeze=tuple(freeze),
        rate_scales=_numbers("--rate-scale", rate_scale, "backbone=0.1"),
        teacher=teacher,
        alpha=alpha,
        temperature=temperature,
        evaluate=evaluate_on,
        ray=ray,
        workers=workers,
        gpus=gpus,
    )
    from flows.train import run_train

    summary = run_train(parameters, orchestrated=prefect)
    say(f"{summary['kind']} {summary['model']} in {summary['steps']} steps, {summary['seconds']:.1f} s", style="green")
    say(f"weights: {summary['weights']}")
    if summary["metrics"]:
        _tell(summary["metrics"])
    return summary


@command
def evaluate(
    model: Annotated[str, typer.Argument(help="Name of a model, or file or folder of its weights.")],
    labelled: Annotated[str, typer.Argument(help="Human labels: COCO or Label Studio JSON, CVAT XML, masks, Parquet.")],
    weights: Annotated[str | None, typer.Option(help="Other weights for the model: a file, or random:SEED.")] = None,
    images_root: Annotated[str | None, typer.Option(help="Where the images lie that the labels name.")] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda.")] = "cpu",
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Summary:
    """Judge a model on labelled images: AP by class and size (pycocotools), mean IoU, or panoptic quality."""
    from tasks.evaluation.evaluate import evaluate_model
    from tasks.evaluation.figures import to_json
    from tasks.labels.reading import read_label_set

    labels = read_label_set(labelled, images_root=images_root)
    metrics = to_json(evaluate_model(model, labels, weights=weights, device=device))
    _tell(metrics, to_people=as_json)
    return {"model": model, "labelled": labelled, "metrics": metrics}


@command
def retrain(
    labelled: Annotated[str, typer.Option(help="Human labels: COCO or Label Studio JSON, CVAT XML, masks, Parquet.")],
    unlabelled: Annotated[str, typer.Option(help="Images and videos without labels, as `segment` takes them.")],
    output: Annotated[str, typer.Option(help="Folder or s3:// prefix that holds the loop.")],
    rounds: Annotated[int, typer.Option(help="Turns of the loop at most.")] = 1,
    max_rounds: Annotated[int, typer.Option(help="Looks at the gate set that its level is divided for.")] = 3,
    task: Annotated[
        str, typer.Option(help="What the models do: instance, semantic or panoptic segmentation.")
    ] = "instance",
    recipe: Annotated[
        str | None, typer.Option(help="Name of a recipe or model, or URI of a recipe's JSON. Default: by task.")
    ] = None,
    initial: Annotated[str | None, typer.Option("--from", help="Weights that every model begins from.")] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps of each model.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of everything random, the splits included.")] = 0,
    share: Annotated[
        list[str], typer.Option(help="SPLIT=SHARE of the labelled items (L, C, G, T); may be repeated.")
    ] = [],  # noqa: B006 - typer copies it
    calibration: Annotated[
        str,
        typer.Option(
            help="holdout: labels of C, which no model learns from, decide thresholds; crossfit: all labels train and"
            " calibrate, for the price of one more model a fold (first round only)."
        ),
    ] = "holdout",
    folds: Annotated[int, typer.Option(help="With crossfit: parts of L, and models that leave one out.")] = 5,
    group_rule: Annotated[str, typer.Option(help="What is never divided between splits.")] = "item",
    frame_stride: Annotated[int, typer.Option(help="Every n-th frame of unlabelled videos.")] = 1,
    tta: Annotated[
        list[str],
        typer.Option(
            help="A view that teachers look at beside the plain one: 0.75x, 1.25x, or hflip (where a mirror changes no"
            " class); may be repeated."
        ),
    ] = [],  # noqa: B006 - typer copies it
    precision: Annotated[
        float, typer.Option(help="Promised of accepted labels, if C can prove it; .1 less where labels are few.")
    ] = 0.9,
    min_gain: Annotated[float, typer.Option(help="Gain over the champion that matters.")] = 0.003,
    audit: Annotated[
        str | None, typer.Option(help="Labels of people who looked at unlabelled images; without, the gate stays shut.")
    ] = None,
    audit_labels: Annotated[int, typer.Option(help="Accepted labels that are drawn for the audit.")] = 150,
    require_approval: Annotated[
        bool, typer.Option("--require-approval", help="A candidate that passes waits for `visionmill promote`.")
    ] = False,
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster; 'none' runs in this process. Default: a local Ray.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Training processes.")] = 1,
    gpus: Annotated[bool, typer.Option("--gpus", help="One GPU for each training process.")] = False,
    prefect: Annotated[
        bool,
        typer.Option(
            "--prefect/--no-prefect", help="Record the run in the standing Prefect server.", envvar="VISIONMILL_PREFECT"
        ),
    ] = True,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Summary:
    """Teach a student with the champion's labels on unlabelled data; promote it if the gate lets it through."""
    shares = _numbers("--share", share, "L=0.5")
    parameters = checked(
        RetrainParameters,
        labelled=labelled,
        unlabelled=unlabelled,
        output=output,
        rounds=rounds,
        max_rounds=max_rounds,
        task=task,
        recipe=recipe,
        initial=initial,
        steps=steps,
        seed=seed,
        calibration=calibration,
        folds=folds,
        group_rule=group_rule,
        frame_stride=frame_stride,
        tta=tuple(tta),
        precision=precision,
        min_gain=min_gain,
        audit=audit,
        audit_labels=audit_labels,
        require_approval=require_approval,
        ray=ray,
        workers=workers,
        gpus=gpus,
        **({"shares": shares} if shares else {}),
    )
    from flows.retrain import run_retrain

    summary = run_retrain(parameters, orchestrated=prefect, console=people)
    unit = "pixels" if task == "semantic" else "labels"
    for outcome in summary["rounds"]:
        gate = outcome["gate"]
        word = "waits for approval" if outcome["waits_for_approval"] else "promoted" if gate["passed"] else "refused"
        say(
            f"round {outcome['round']}: {sum(outcome['accepted'].values())} {unit} accepted; on the gate set "
            f"{gate['candidate']:.3f}, champion {gate['champion']:.3f}, baseline {gate['baseline']:.3f}: {word}",
            style="green" if gate["passed"] else "yellow",
        )
        for reason in gate["reasons"]:
            say(f"  {reason}", style="yellow")
    say(f"champion: {summary['champion']}  {summary['champion_weights']}")
    return summary


def _tell(metrics: dict[str, Any], *, to_people: bool = True) -> None:
    """The figures as a table: one column per group, one line per figure and one per class."""
    from tasks.evaluation.figures import groups_of

    console = people if to_people else answers
    groups = groups_of(metrics)
    table = Table("", *groups, box=None)
    for name in dict.fromkeys(name for group in groups.values() for name in group if name != "by_class"):
        table.add_row(name, *(_shown(group.get(name)) for group in groups.values()))
    classes = [group.get("by_class", {}) for group in groups.values()]
    for name in dict.fromkeys(name for by_class in classes for name in by_class):
        table.add_row(f"class {name}", *(_shown(by_class.get(name)) for by_class in classes))
    console.print(table)
    console.print(f"{metrics['images']} images, {metrics['objects']} objects")


def _shown(value: float | None) -> str:
    """pycocotools says -1 where there is no truth."""
    return "-" if value is None or value < 0 else f"{value:.3f}"
