"""What a file of labels holds and a label set does not: counted by reason, told, and refused where it matters.

Two things are kept apart. What is *left out* teaches nothing wrong (a task that nobody finished, a class that was not
asked for). What is *dropped* is somebody's label that could not be read: its pixels would be taught as background.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from infra.errors import DatasetError

ALLOWED_SHARE = 0.01
"""Of the objects, that may be dropped without anybody's leave."""

NO_BOX = "box that is none (no number, or a negative size)"
"""Never a matter of taste: such a file is damaged, so one is enough to refuse it."""

_HINT = "Mend the file, or go on without with --allow-dropped."


@dataclass(slots=True)
class Losses:
    """Counts of one file.

    Args:
        left_out, dropped: number by reason.
        first: where the first one of a reason to drop was.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def leave_out(self, reason: str, count: int = 1) -> None:
        """Count what is not used, if there is any."""
        if count:
            self.left_out[reason] += count

    def drop(self, reason: str, where: str) -> None:
        """Count a label that cannot be read.

        Args:
            reason: in words, the same ones for all of this kind.
            where: the object and its image or line.
        """
        self.dropped[reason] += 1
        self.first.setdefault(reason, where)


def lost_in_words(dropped: Mapping[str, int], first: Mapping[str, str]) -> list[str]:
    """One line for each reason: ``3 x annotation without class or box, the first: annotation 7``."""
    return [f"{count} x {reason}, the first: {first[reason]}" for reason, count in dropped.items()]


def refuse_losses(uri: str, losses: Losses, num_objects: int, num_crowds: int) -> None:
    """Refuse a label set that would teach nothing, or something wrong, without anybody noticing.

    Args:
        uri: of the file, for the message.
        losses: while it was read.
        num_objects: that were read, crowds included; num_crowds: how many of them are crowds.

    Raises:
        DatasetError: more than 1 % of the objects were dropped, a box is none, all are crowds, or there is no object.
    """
    dropped = losses.dropped.total()
    lost = "; ".join(lost_in_words(losses.dropped, losses.first))
    if losses.dropped[NO_BOX] or dropped > ALLOWED_SHARE * (dropped + num_objects):
        share = f"{dropped} of {dropped + num_objects} objects cannot be read"
        raise DatasetError(f"{uri}: {share}: {lost}", hint=_HINT)
    if num_objects == 0:
        raise DatasetError(f"{uri} holds images, but no objects", hint="Is it the right file? --allow-dropped goes on.")
    if num_crowds == num_objects:
        raise DatasetError(
            f"{uri}: all {num_objects} objects are crowds (iscrowd), which teach nothing and are never counted",
            hint="Set iscrowd to 0 for single objects; --allow-dropped goes on.",
        )
