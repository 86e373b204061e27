"""Classes of a file of labels -> the ids that models know: 1, 2, ...; 0 is the background and never a class.

Ids of a file that are whole numbers from 1 on are kept (COCO's 1 .. 90 stay what published weights mean by them).
Others (ids from 0, text) become 1 .. n in their order, and the label set remembers the file's ids, so that an export
can speak them again. A class called "background" is no class: its pixels are what no object covers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infra.errors import DatasetError, UsageError
from infra.store import open_store, split_uri

if TYPE_CHECKING:  # its module brings torch
    from modelkit import ClassInfo  # its module brings torch

LARGEST_ID = 10_000
"""Larger ids are numbered anew: a model has an output for every id up to the largest."""

FileId = int | str


def is_background(name: str) -> bool:
    """Whether a class of this name is what no object covers: ``background``, ``__background__``, ``Background``."""
    return name.strip("_ ").lower() == "background"


@dataclass(frozen=True, slots=True)
class FileClass:
    """A class as a file names it.

    Args:
        name: unique in the file.
        id: the file's own; None where it has names only.
        is_thing: None where the file does not say.
    """

    name: str
    id: FileId | None = None
    is_thing: bool | None = None

    @property
    def key(self) -> str:
        """What objects of the file call it by."""
        return self.name if self.id is None else key_of(self.id)

    @property
    def is_background(self) -> bool:
        """Whether it is no class at all."""
        return is_background(self.name)


@dataclass(frozen=True, slots=True)
class ClassMap:
    """What the classes of a file are in a label set.

    Args:
        classes: by ascending id.
        ids: key of the file -> class id; None: left out (the background, or a class that was not asked for).
        file_ids: class id -> the file's id, of all classes where any of them differs; else empty.
    """

    classes: tuple[ClassInfo, ...]
    ids: Mapping[str, int | None]
    file_ids: Mapping[int, FileId] = field(default_factory=dict)


def key_of(file_id: object) -> str:
    """Ids that differ only in being text or a number are one: ``1``, ``"1"`` and ``1.0``."""
    is_whole = isinstance(file_id, float) and file_id.is_integer()
    return str(int(file_id)) if is_whole else str(file_id).strip()  # type: ignore[call-overload]


def map_classes(
    found: Sequence[FileClass], wanted: Sequence[FileClass] | None = None, *, are_things: bool = True
) -> ClassMap:
    """Number the classes of a file.

    Args:
        found: in the file's own order.
        wanted: classes to use instead, matched by name; those of the file that are not among them are left out.
        are_things: what a class is where nobody says it.

    Raises:
        DatasetError: an id or name twice, or none of the wanted names is in the file.
    """
    from modelkit import ClassInfo  # its module brings torch

    for what, values in (("id", [each.key for each in found]), ("name", [each.name for each in found])):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise DatasetError(f"two classes have the {what} {twice[0]!r}", hint="Merge or rename the doubled ones.")
    numbers = _numbers(wanted if wanted is not None else found)
    by_name = {each.name: each for each in found}
    if wanted is not None and found and not numbers.keys() & by_name.keys():
        raise DatasetError(
            f"none of the wanted classes ({', '.join(list(numbers)[:5])}) is in the labels, which know "
            f"{', '.join(list(by_name)[:5])}",
            hint="Names are compared letter by letter.",
        )
    said = {each.name: each.is_thing for each in found if each.is_thing is not None}
    said |= {each.name: each.is_thing for each in wanted or () if each.is_thing is not None}
    classes = tuple(
        ClassInfo(number, name, said.get(name, are_things)) for name, number in sorted(numbers.items(), key=_second)
    )
    ids = {each.key: numbers.get(each.name) for each in found}
    file_ids = {numbers[each.name]: each.id for each in found if each.name in numbers and each.id is not None}
    same = all(key_of(file_id) == str(number) for number, file_id in file_ids.items())
    return ClassMap(classes, ids, {} if same else dict(sorted(file_ids.items())))


def _second(pair: tuple[str, int]) -> int:
    return pair[1]


def _numbers(classes: Sequence[FileClass]) -> dict[str, int]:
    """Name -> class id."""
    kept = [each for each in classes if not each.is_background]
    given = [int(each.key) if each.id is not None and each.key.isdecimal() else 0 for each in kept]
    if all(1 <= number <= LARGEST_ID for number in given):
        return {each.name: number for each, number in zip(kept, given, strict=True)}
    if all(isinstance(each.id, int) for each in kept):
        kept = sorted(kept, key=lambda each: each.id)  # type: ignore[arg-type, return-value]
    return {each.name: number for number, each in enumerate(kept, start=1)}


def as_file_classes(classes: Sequence[ClassInfo]) -> list[FileClass]:
    """Classes that are known already, as something to ask for."""
    return [FileClass(each.name, each.id, each.is_thing) for each in classes]


def read_classes(uri: str) -> list[FileClass]:
    """The classes in a file that ``--classes`` names.

    It is one of: a JSON object ``{"1": "road", ...}``; a JSON array of names; a COCO file, a record of weights, or an
    array of objects with ``id``, ``name`` and ``isthing`` or ``is_thing``; or text with a name in each line. Names
    without ids count from 1.

    Raises:
        UsageError: none of these.
    """
    root, key = split_uri(uri)
    data = open_store(root).get(key)
    try:
        text = data.decode("utf-8-sig")
        content = json.loads(text) if text.lstrip()[:1] in ("{", "[") else text.split("\n")
        found = list(map(_file_class, _listed(content)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{uri} must be an object of id: name, or a list of names ({error})") from error
    names = [each.name for each in found]
    if not found or len(set(names)) < len(names):
        raise UsageError(f"{uri} names no classes, or one of them twice")
    return found


def _listed(content: Any) -> list[Any]:
    if isinstance(content, dict):
        for name in ("categories", "classes"):
            if isinstance(content.get(name), list):
                return list(content[name])
        return [(int(file_id), name) for file_id, name in content.items()]
    stripped = [each.strip() if isinstance(each, str) else each for each in content]
    return [each for each in stripped if each]


def _file_class(each: Any) -> FileClass:
    if isinstance(each, str):
        return FileClass(each)
    if isinstance(each, tuple):
        return FileClass(str(each[1]), each[0])
    is_thing = each.get("isthing", each.get("is_thing"))
    return FileClass(str(each["name"]), each["id"], None if is_thing is None else bool(is_thing))
