"""``visionmill digitscape | train | evaluate | retrain``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.cli.console import JsonFlag, PrefectFlag, Summary, answers, command, long_work, people, say, table
from flows.cli.suspects import tell_suspects
from flows.loop_parameters import RetrainParameters
from flows.parameters import DigitscapeParameters, EvaluateParameters, InspectParameters, TrainParameters

if TYPE_CHECKING:  # types only: a command that is asked for its help pays for no model
    from modelkit import Weights
    from tasks.labels.label_sets import LabelSet
    from tasks.product import Judgement

PlanFlag = Annotated[
    bool,
    typer.Option("--plan", help="Only say whether the labels can certify anything and pass the gate; writes nothing."),
]


@command
def digitscape(parameters: DigitscapeParameters) -> Summary:
    """Compose scenes of handwritten digits over photographs, with their labels, for train and evaluate."""
    with long_work():
        from tasks.labels.digitscape import write_digitscape

        labels = write_digitscape(
            parameters.output, size_hw=parameters.size_hw, **parameters.model_dump(exclude={"output", "size"})
        )
    for what, uri in labels.items():
        say(f"{what}: {uri}", style="green")
    return {"scenes": parameters.scenes, "frames": parameters.frames, "labels": labels}


@command
def inspect(parameters: InspectParameters, as_json: JsonFlag = False) -> Summary:
    """Look at labels: sizes, classes, what looks wrong, near-duplicates, and the recipe that they call for."""
    from flows.refusals import refuse_labels

    refuse_labels(parameters, parameters.labelled)
    with long_work():
        from flows.inspection import run_inspect

        seen = run_inspect(parameters)
    tell_labels(seen["labels"])
    console = people if as_json else answers
    console.print(f"{seen['images']} images in {seen['groups']} groups, {seen['objects']} objects")
    told = table("", "least", "p10", "median", "p90", "most")
    for name in (
        "image_sides_px.short",
        "image_sides_px.long",
        "objects_per_image",
        "object_sides_px",
        "height_to_width",
    ):
        group, _, part = name.partition(".")
        values = seen[group][part] if part else seen[group]
        told.add_row(name.replace("_", " ").replace(".", ", "), *(f"{value:g}" for value in values.values()))
    console.print(told)
    classes = table("class", "images", "objects", "% of pixels")
    absent = sum(not each["objects"] for each in seen["classes"])
    for each in (each for each in seen["classes"] if each["objects"]):
        classes.add_row(each["name"], str(each["images"]), str(each["objects"]), f"{100 * each['pixels']:.2f}")
    console.print(classes)
    if absent:
        say(f"{absent} more classes have no object", style="yellow")
    for each in seen["largest_groups"]:
        say(f"group of {each['images']}: {each['first']} to {each['last']}", style="dim")
    for each in seen["suspicious"]["first"]:
        say(f"suspicious: {each['class']} {each['object']} of {each['image']}: {each['why']}", style="yellow")
    if (more := seen["suspicious"]["count"] - len(seen["suspicious"]["first"])) > 0:
        say(f"... and {more} more suspicious labels (--json counts them)", style="yellow")
    for group in (seen["near_duplicates"] or {"first": []})["first"]:
        say(f"near-duplicates: {', '.join(group)}", style="yellow")
    recipe = seen["recipe"]
    begins = f", beginning from {recipe['initial']}" if recipe["initial"] else ""
    how_long = f"{recipe['loop']['steps']} steps of {recipe['batch_size']} images{begins}"
    say(f"recipe: {recipe['name']} ({recipe['architecture']}, {seen['kind']}), {how_long}", style="green")
    tile = recipe["config"].get("transform", {}).get("tile")
    if tile:
        say(f"larger pictures are looked at in tiles of {tile[0]} px that overlap by {tile[1]} or more")
    for remark in seen["remarks"]:
        say(remark)
    say(f"saved: {seen['saved']}" if seen["saved"] else "--save RECIPE.json writes it, to be changed and trained with")
    return seen


@command
def train(parameters: TrainParameters, prefect: PrefectFlag = True) -> Summary:
    """Train a model: from scratch, from other weights (--from), or beside a teacher (--teacher). Resumes by itself."""
    from flows.refusals import refuse_training

    refuse_training(parameters)
    with long_work():
        from flows.train import run_train, words_of_training

        summary = run_train(parameters, orchestrated=prefect, console=people)
    say(words_of_training(summary), style="green")
    if summary["initial"]:
        say(adopted_in_words(summary["initial"]))
    if summary["validation"]:
        say(validation_in_words(summary["validation"]))
    say(f"weights: {summary['weights']}")
    say(f"curves: {summary['curves']}", style="dim")
    tell_labels(summary["labels"])
    if summary["metrics"]:
        tell_labels(summary["held_out"])
        _tell(summary["metrics"])
    return summary


@command
def evaluate(parameters: EvaluateParameters, as_json: JsonFlag = False) -> Summary:
    """Judge a model on labelled images: AP by class and size (COCO's), mean IoU, or panoptic quality."""
    from flows.refusals import refuse_labels, refuse_page
    from tasks.engine.prepare import describe_model
    from tasks.loop.champion import in_use

    refuse_labels(parameters, parameters.labelled)
    model = in_use(parameters.model)
    record = describe_model(model, parameters.weights)
    refuse_page(parameters.page)
    with long_work():
        from flows.labels import labels_of
        from infra.telling import tell
        from tasks.evaluation.evaluate import evaluate_model
        from tasks.evaluation.figures import to_json
        from tasks.evaluation.suspects import check_finds_suspects, first_suspects

        if parameters.suspects is not None:
            check_finds_suspects(record.kind)
        tell("reading the labels")
        labels = labels_of(parameters.labelled, parameters)
        tell_labels(labels.to_json())
        tell("loading the model")
        judged = evaluate_model(
            model,
            labels,
            weights=parameters.weights,
            device=parameters.device,
            looks=parameters.look_options(),
        )
        metrics = to_json(judged)
        suspects = None if parameters.suspects is None else first_suspects(judged, parameters.suspects)
    _tell(metrics, to_people=as_json)
    if suspects is not None:
        tell_suspects(suspects, to_people=as_json)
    page = None if parameters.page is None else _write_page(judged, parameters, record, labels)
    return {
        "model": parameters.model,
        "labelled": parameters.labelled,
        "labels": labels.to_json(),
        "metrics": metrics,
        **({} if suspects is None else {"suspects": suspects}),
        **({} if page is None else {"page": page}),
    }


def _write_page(judged: Judgement, parameters: EvaluateParameters, record: Weights, labels: LabelSet) -> str:
    """Figures have been told by now, so a page that cannot be written costs nobody the judging."""
    assert parameters.page is not None
    with long_work():
        from flows.labels import in_groups
        from infra.telling import tell
        from tasks.report.judged_page import Judged, write_judged_page
        from tasks.report.judged_place import place_of_page

        tell("looking for sequences and near-duplicates")
        together = in_groups(labels, parameters)
        asked = Judged(parameters.model, record, parameters.labelled, together, parameters.look_options())
        uri = write_judged_page(judged, asked, *place_of_page(parameters.page))
    say(f"page: {uri}", style="green")
    return uri


@command
def retrain(parameters: RetrainParameters, plan: PlanFlag = False, prefect: PrefectFlag = True) -> Summary:
    """Teach a student with the champion's labels on unlabelled data; promote it if the gate lets it through."""
    from flows.refusals import refuse_loop

    refuse_loop(parameters, is_tried=not plan)
    if plan:
        return _foresee(parameters)
    with long_work():
        from flows.retrain import run_retrain

        summary = run_retrain(parameters, orchestrated=prefect, console=people)
    for outcome in summary["rounds"]:
        say(round_in_words(outcome), style="green" if outcome["gate"]["passed"] else "yellow")
        for reason in outcome["gate"]["reasons"]:
            say(f"  {reason}", style="yellow")
        for name, note in outcome["abstaining"].items():
            say(f"  {name} abstains: {note}", style="dim")
    tell_labels(summary["labels"])
    say(f"champion: {summary['champion']}  {summary['champion_weights']}")
    say(f"report: {summary['output']}/report/index.html")
    return summary


def _foresee(parameters: RetrainParameters) -> Summary:
    """What a plan says, for people too."""
    with long_work():
        from flows.retrain_plan import plan_retraining

        summary = plan_retraining(parameters)
    tell_labels(summary["labels"])
    recipe, unlabelled = summary["recipe"], summary["unlabelled"]
    say(
        f"{recipe['name']} ({recipe['architecture']}, {summary['kind']}), {summary['trainings']} trainings of "
        f"{recipe['steps']} steps and more for each round after the first; {unlabelled['objects']} unlabelled objects, "
        f"of which {unlabelled['of_labelled_sequences']} go on with labelled sequences"
    )
    for name, extent in summary["splits"].items():
        say(f"{name}: {extent['images']} images in {extent['groups']} groups")
    for each in summary["splits_apart"]:
        say(apart_in_words(each), style="dim")
    told = table("class", "train", "calibration", "gate", summary["evidence_unit"], "promise", "at best", "")
    for name, each in summary["classes"].items():
        amounts = (amount_in_words(each[split]) for split in ("train", "calibration", "gate"))
        best = "-" if each["best_precision"] is None else f"{each['best_precision']:.2f}"
        words = f"abstains: {each['why']}" if each["abstains"] else ""
        words += "" if each["watched"] else "; not watched by the gate" if words else "not watched by the gate"
        told.add_row(name, *amounts, str(each["evidence"]), f"{each['promise']:.2f}", best, words)
    people.print(told)
    for problem in summary["problems"]:
        say(problem, style="yellow")
    if not summary["problems"]:
        say("these labels can certify classes, and a student can pass the gate", style="green")
    say("nothing was written", style="dim")
    return summary


def amount_in_words(amount: dict[str, int]) -> str:
    """How much is labelled: 12 (3,400 pixels)."""
    (_, chief), *others = amount.items()
    return " ".join([f"{chief:,}", *(f"({number:,} {unit})" for unit, number in others)])


def apart_in_words(each: dict[str, Any]) -> str:
    """How far two splits are apart, in one line."""
    bits = (
        "no hashes"
        if each["least_bits"] is None
        else f"{each['least_bits']} of 64 bits, median {each['median_bits']:g}"
    )
    steps = "none in one series" if each["least_steps"] is None else f"{each['least_steps']:.1f} steps in one series"
    return f"{each['one']} and {each['other']} are apart: {bits}; {steps}"


def round_in_words(outcome: dict[str, Any]) -> str:
    """A round in one line."""
    gate, accepted = outcome["gate"], f"{sum(outcome['accepted'].values())} {outcome['unit']}"
    if outcome["candidate"] is None:
        return f"round {outcome['round']}: {accepted} accepted; it ended there"
    word = "waits for approval" if outcome["waits_for_approval"] else "promoted" if gate["passed"] else "refused"
    return (
        f"round {outcome['round']}: {accepted} accepted; on the gate set "
        f"{gate['candidate']:.3f}, champion {gate['champion']:.3f}, baseline {gate['baseline']:.3f}: {word}"
    )


def adopted_in_words(initial: dict[str, Any]) -> str:
    """What a model took over from other weights, and what began anew, of a record that may be an older one."""
    parts = ", ".join(f"{part} ({count})" for part, count in initial.get("parts", {}).items())
    new = sorted({name.rpartition(".")[0] for name in initial["new"]})
    anew = f"; began anew: {', '.join(new[:6])}{', ...' if len(new) > 6 else ''}" if new else ""
    return f"tensors taken from {initial.get('weights', 'other weights')}: {parts or initial['matched']}{anew}"


def validation_in_words(validation: dict[str, Any]) -> str:
    """What was seen on the way, and which step the weights are of."""
    looks = ", ".join(f"{look['step']}: {look['main']:.3f}" for look in validation["looks"])
    images, best = validation["images"], validation["best"]
    return f"on {images} held-out images by step {looks}; the weights are those of step {best}"


def tell_labels(labels: dict[str, Any]) -> None:
    """What a file of labels lost on the way, and what its classes are called here."""
    from tasks.labels.label_sets import NOBODYS, ONLY_A_MODELS
    from tasks.labels.losses import lost_in_words

    for reason, count in labels["left_out"].items():
        say(f"labels left out: {count} x {reason}", style="yellow" if reason in (NOBODYS, ONLY_A_MODELS) else "dim")
    for line in lost_in_words(labels["dropped"], labels["first_dropped"]):
        say(f"labels dropped: {line}", style="yellow")
    file_ids = labels["file_ids"] or {}
    if moved := [f"{file_id} -> {label}" for label, file_id in file_ids.items() if str(file_id) != str(label)]:
        ids = ", ".join(moved[:10]) + ", ..." * (len(moved) > 10)
        say(f"class ids of the file -> here: {ids}", style="dim")
    if machines := labels["sources"].get("model"):
        of_all = f"{machines} of {sum(labels['sources'].values())} labels"
        say(f"{of_all} were neither made nor corrected by a person: they are a model's own", style="yellow")


def _tell(metrics: dict[str, Any], *, to_people: bool = True) -> None:
    """The figures as a table: one column per group, one line per figure and one per class."""
    from tasks.evaluation.figures import groups_of

    console = people if to_people else answers
    groups = groups_of(metrics)
    figures = Table("", *groups, box=None)
    for name in dict.fromkeys(name for group in groups.values() for name in group if name != "by_class"):
        figures.add_row(name, *(_shown(group.get(name)) for group in groups.values()))
    classes = [group.get("by_class", {}) for group in groups.values()]
    for name in dict.fromkeys(name for by_class in classes for name in by_class):
        figures.add_row(f"class {name}", *(_shown(by_class.get(name)) for by_class in classes))
    console.print(figures)
    console.print(f"{metrics['images']} images, {metrics['objects']} objects")
    for note in metrics.get("notes", ()):
        say(note, style="yellow")


def _shown(value: float | None) -> str:
    """pycocotools says -1 where there is no truth; counts are whole numbers."""
    return "-" if value is None or value < 0 else str(value) if isinstance(value, int) else f"{value:.3f}"
