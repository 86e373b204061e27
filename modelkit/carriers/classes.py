"""What class ids mean."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """What a class id means; ``is_thing`` is False for stuff."""

    id: int
    name: str
    is_thing: bool = True
