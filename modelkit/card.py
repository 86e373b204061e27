"""A model card made from the record of weights: Markdown with a YAML head, in the form that the Hugging Face hub reads.

Everything in it stands in the record. What the record does not say is called not recorded; nothing is made up for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelkit.records import Weights

# What the hub calls a kind; others have no word there.
_PIPELINES = {
    "detection": "object-detection",
    "instance": "image-segmentation",
    "semantic": "image-segmentation",
    "panoptic": "image-segmentation",
}
# The hub's identifiers of licences, as far as weights of this kind come with them; any other text is "other".
_LICENCES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "unknown",
}  # fmt: skip
_USES = ("intended_use", "limits", "notes")
_ORIGINS = ("kind", "file", "file_sha256", "location", "url", "steps", "skipped_steps", "labelled_images", "images",
            "training_seconds", "hardware", "num_workers", "fingerprint", "recipe_fingerprint")  # fmt: skip
_NOT_RECORDED = "Not recorded."

Figure = tuple[str, str, float]
"""(what it was measured on, name of the figure, value)"""


def model_card(record: Weights) -> str:
    """The card as text; it ends with a line break."""
    figures = list(figures_of(record))
    parts = [
        _head(record, figures),
        f"# {record.name}",
        f"A model of the kind *{record.kind}* ({record.architecture}, {record.num_parameters:,} parameters), "
        f"made with visionmill. Its record, `{record.name}.json`, says the same for programs.",
        *_section("Classes", _classes(record)),
        *_section("Data", _data(record.lineage)),
        *_section("Figures", _figures(figures)),
        *_section("How it was trained", _training(record.lineage)),
        *_section("Intended use and limits", _uses(record)),
        *_section("Licence", record.licence if record.licence != "unknown" else _NOT_RECORDED),
        *_section("How to use it", _usage(record)),
    ]
    return "\n\n".join(parts) + "\n"


def figures_of(record: Weights) -> Iterator[Figure]:
    """Every figure of a record, that of held-out labels during training included; below 0 stands for no truth."""
    for where, values in record.metrics.items():
        for name, value in _numbers(values):
            if value >= 0:
                yield where, name, value
    look = best_look(record.lineage)
    for name, value in _numbers({} if look is None else {key: look[key] for key in look if key != "step"}):
        if value >= 0:
            yield "labels held out of training", name, value


def best_look(lineage: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The look at held-out labels that the weights are of; None where there was none, or none is named."""
    seen = lineage.get("validation")
    if not isinstance(seen, Mapping):
        return None
    return next((look for look in seen.get("looks", ()) if look["step"] == seen.get("best")), None)


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Numbers below a name; counts, sizes and seeds are whole and no figures."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{path}/{key}" if path else str(key))
    elif isinstance(value, float):
        yield path, value


def _head(record: Weights, figures: Sequence[Figure]) -> str:
    licence = record.licence.lower()
    known = licence in _LICENCES
    lines = [f"license: {licence if known else 'other'}"]
    if not known:
        name = re.sub(r"[^a-z0-9.]+", "-", licence).strip("-")[:64]
        lines += [f"license_name: {_text(name)}", 'license_link: "#licence"']
    lines += ["library_name: visionmill"]
    if record.kind in _PIPELINES:
        lines += [f"pipeline_tag: {_PIPELINES[record.kind]}"]
    lines += ["tags:", *(f"- {_text(tag)}" for tag in ("visionmill", record.kind, record.architecture))]
    datasets = [text for key in ("dataset", "datasets") for text in _listed(record.lineage.get(key))]
    lines += ["datasets:", *(f"- {_text(each)}" for each in datasets)] if datasets else []
    names = list(dict.fromkeys(name for _, name, _ in figures if "by_class/" not in name))
    lines += ["metrics:", *(f"- {_text(name)}" for name in names)] if names else []
    return "\n".join(["---", *lines, *_index(record, figures), "---"])


def _index(record: Weights, figures: Sequence[Figure]) -> list[str]:
    """The hub's table of results; classes are left to the text."""
    whole = [figure for figure in figures if "by_class/" not in figure[1]]
    if not whole:
        return []
    lines = ["model-index:", f"- name: {_text(record.name)}", "  results:"]
    for where in dict.fromkeys(figure[0] for figure in whole):
        task = _text(_PIPELINES.get(record.kind, record.kind))
        lines += ["  - task:", f"      type: {task}", "    dataset:"]
        lines += [f"      name: {_text(where)}", f"      type: {_text(where)}", "    metrics:"]
        for name, value in ((name, value) for place, name, value in whole if place == where):
            lines += [f"    - type: {_text(name)}", f"      value: {value}"]
    return lines


def _text(value: str) -> str:
    """A YAML scalar: JSON's strings are some."""
    return json.dumps(value, ensure_ascii=False)


def _section(title: str, text: str) -> list[str]:
    return [f"## {title}", text]


def _classes(record: Weights) -> str:
    rows = [(str(each.id), each.name, "things" if each.is_thing else "stuff") for each in record.classes]
    return _table(("id", "name", "what"), rows) if rows else _NOT_RECORDED


def _data(lineage: Mapping[str, Any]) -> str:
    lines = [f"* {role.replace('_', ' ')}: `{lineage[role]}`" for role in ("labelled_set", "unlabelled_set")
             if lineage.get(role)]  # fmt: skip
    seen = lineage.get("validation")
    if isinstance(seen, Mapping) and "images" in seen:
        lines += [f"* held out of training and looked at every {seen['every']} steps: {seen['images']} images"]
    for name, value in (lineage.get("data") or {}).items():
        lines += [f"* {name.replace('_', ' ')}: {', '.join(_listed(value))}"]
    return "\n".join(lines) or _NOT_RECORDED


def _figures(figures: Sequence[Figure]) -> str:
    rows = [(where, name, f"{value:.4g}") for where, name, value in figures]
    return _table(("measured on", "figure", "value"), rows) if rows else _NOT_RECORDED


def _training(lineage: Mapping[str, Any]) -> str:
    lines = [f"* {name.replace('_', ' ')}: {lineage[name]}" for name in _ORIGINS if lineage.get(name) not in (None, "")]
    initial = lineage.get("initial")
    if isinstance(initial, Mapping):
        lines += [f"* began from: {initial.get('weights', 'other weights')}, {initial['matched']} tensors taken over"]
    packages = (lineage.get("environment") or {}).get("packages") or {}
    if packages:
        lines += ["* with " + ", ".join(f"{name} {version}" for name, version in packages.items() if version)]
    recipe = lineage.get("recipe")
    if recipe:
        text = json.dumps(recipe, indent=1, ensure_ascii=False)
        lines += ["", "<details><summary>The recipe</summary>", "", "```json", text, "```", "", "</details>"]
    return "\n".join(lines) or _NOT_RECORDED


def _uses(record: Weights) -> str:
    said = [f"* {text}" for key in _USES for text in _listed(record.lineage.get(key))]
    names = ", ".join(each.name for each in record.classes)
    facts = [f"* It knows these classes and no others: {names}."] if names else []
    return "\n".join([*facts, *(said or ["* Nothing further is recorded about what it is meant for."])])


def _usage(record: Weights) -> str:
    lines = ["```python", "import modelkit", "", f'predictor = modelkit.load("{record.name}.safetensors")']
    lines += [
        "found = predictor([image])[0]  # image: (H, W, 3) uint8 RGB",
        "```",
        "",
        "Images are prepared like this:",
    ]
    return "\n".join([*lines, "", "```json", json.dumps(record.preprocessing), "```"])


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(each) for each in value] if isinstance(value, list | tuple) else [str(value)]


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *([_cell(each) for each in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
