"""Which classes of a checkpoint are single objects: transformers does not say, but the well-known label sets do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_UNNAMED = "label_0"  # transformers' own name, where nobody gave any


@dataclass(frozen=True, slots=True)
class LabelSet:
    """A well-known set of classes.

    Args:
        first: names that its first class may have, lower case; they tell it from another set of as many.
        things: ids of single objects.
        kind: what models of these classes do, where there is no doubt.
    """

    first: tuple[str, ...]
    things: frozenset[int]
    kind: str | None = None


def _without(count: int, stuff: Iterable[int]) -> frozenset[int]:
    return frozenset(range(count)) - frozenset(stuff)


# As Mask2Former's authors divide them (register_ade20k_panoptic.py, register_mapillary_vistas_panoptic.py).
_ADE_STUFF = (
    *(0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63, 68, 77),
    *(79, 84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141, 145),
)
_VISTAS_STUFF = (*range(2, 8), *range(9, 19), *range(24, 32), 43, 58, 63, 64)
# By number of classes. COCO's panoptic classes in a row and, as DETR has them, under their original ids; ADE20K;
# Mapillary Vistas; Cityscapes; then those of single objects alone: COCO, ADE20K, Cityscapes.
_KNOWN = {
    133: LabelSet(("person", _UNNAMED), frozenset(range(80)), "panoptic"),
    250: LabelSet(("n/a", _UNNAMED), frozenset(range(1, 91)), "panoptic"),
    150: LabelSet(("wall",), _without(150, _ADE_STUFF)),
    65: LabelSet(("bird",), _without(65, _VISTAS_STUFF)),
    19: LabelSet(("road",), frozenset(range(11, 19))),
    80: LabelSet(("person",), frozenset(range(80)), "instance"),
    100: LabelSet(("bed",), frozenset(range(100)), "instance"),
    8: LabelSet(("person",), frozenset(range(8)), "instance"),
}
_SAID_BY_NUMBER = (133, 250, 19)  # in records that were written before they said which classes are things


def known_set(names: Mapping[int, str]) -> LabelSet | None:
    """The set that a checkpoint's class names (by id) are, if it is one of those above."""
    found = _KNOWN.get(len(names))
    return found if found is not None and names.get(0, "").lower() in found.first else None


def things_among(names: Mapping[int, str], fused: Iterable[int] | None = None) -> list[int]:
    """Ids of single objects.

    Args:
        names: by class id.
        fused: ids of stuff, where the checkpoint's config says it (``label_ids_to_fuse``, as transformers calls them);
            else a known set does; else all are things, for then transformers fuses nothing either.
    """
    if fused is not None:
        return sorted(names.keys() - set(fused))
    known = known_set(names)
    return sorted(names if known is None else known.things)


def things_of(num_labels: int) -> frozenset[int]:
    """The same by their number alone, for records of before."""
    return _KNOWN[num_labels].things if num_labels in _SAID_BY_NUMBER else frozenset(range(num_labels))
