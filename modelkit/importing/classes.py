"""What class ids mean, as people write it down: a file of names, a COCO file, or the name of a well-known set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torchvision

from modelkit.carriers.classes import ClassInfo
from modelkit.errors import WeightsError
from modelkit.published import NO_CLASS

_SETS = {
    "coco91": "MaskRCNN_ResNet50_FPN_Weights.COCO_V1",  # original ids, with gaps
    "coco80": "MaskRCNN_ResNet50_FPN_Weights.COCO_V1",  # 1 .. 80 in a row
    "voc": "FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1",
}


def read_classes(given: str | Path, possible: Sequence[ClassInfo]) -> tuple[ClassInfo, ...]:
    """The classes of a model, named.

    Args:
        given: "coco80", "coco91" or "voc", or a file: JSON of ``{"1": "cat", ...}``, of ``[{"id": 1, "name": "cat",
            "is_thing": true}, ...]`` or of COCO's format with "categories"; else text, one name a line, ids from 1.
        possible: what the model can find; decides what is a thing where the file does not say.

    Raises:
        WeightsError: an unreadable file, ids that the model does not have, or an id twice.
    """
    things = {each.id: each.is_thing for each in possible}
    named = [(number, name, is_thing) for number, name, is_thing in _read(str(given))]
    wrong = sorted({number for number, _, _ in named} - things.keys())
    if wrong or not named:
        raise WeightsError(f"{given} names the classes {wrong or 'of nothing'}; the model has {_span(things)}")
    if len({number for number, _, _ in named}) < len(named):
        raise WeightsError(f"{given} names a class id twice")
    classes = (
        ClassInfo(number, name, things[number] if is_thing is None else is_thing) for number, name, is_thing in named
    )
    return tuple(sorted(classes, key=lambda each: each.id))


def _read(given: str) -> list[tuple[int, str, bool | None]]:
    if given in _SETS:
        names = torchvision.models.get_weight(_SETS[given]).meta["categories"]
        kept = [(number, name) for number, name in enumerate(names) if name not in NO_CLASS]
        in_a_row = given == "coco80"
        return [(k if in_a_row else number, name, None) for k, (number, name) in enumerate(kept, 1)]
    try:
        text = Path(given).read_text("utf-8")
        content = json.loads(text) if given.endswith(".json") else text.splitlines()
        return _parsed(content)
    except OSError as error:
        raise WeightsError(f"classes {given!r} are neither {', '.join(_SETS)} nor a readable file: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{given} does not say which class is which ({type(error).__name__}: {error}); write "
            '{"1": "cat", "2": "dog"} into a .json, or one name a line'
        ) from error


def _parsed(content: Any) -> list[tuple[int, str, bool | None]]:
    if isinstance(content, Mapping) and "categories" in content:
        content = content["categories"]
    if isinstance(content, Mapping):
        return [(int(number), str(name), None) for number, name in content.items()]
    if all(isinstance(each, Mapping) for each in content):
        return [(int(each["id"]), str(each["name"]), _is_thing(each)) for each in content]
    return [(number, str(name).strip(), None) for number, name in enumerate(content, 1) if str(name).strip()]


def _is_thing(category: Mapping[str, Any]) -> bool | None:
    said = category.get("is_thing", category.get("isthing"))
    return None if said is None else bool(said)


def _span(ids: Mapping[int, bool]) -> str:
    return f"ids {min(ids)} .. {max(ids)}" if ids else "no classes"
