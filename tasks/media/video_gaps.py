"""What is missing of a video: one record, and one failed row, for each run of frames that cannot be had."""

from __future__ import annotations

import re
from dataclasses import dataclass

_MISSING = re.compile(r"frames? (\d+)(?: to (\d+))? (?:is|are) missing")


@dataclass(frozen=True, slots=True)
class VideoGap:
    """Frames that should be there and are not.

    Args:
        first, last: their indices; ``last`` is None where the video ends for good, and nobody knows how many follow.
        from_s, to_s: when the first and the last of them would have been shown; None where that is not known.
        error_type: kind of failure, as in the row.
        why: in words.
    """

    first: int
    last: int | None
    from_s: float | None
    to_s: float | None
    error_type: str
    why: str

    @property
    def message(self) -> str:
        """One line for the row."""
        if self.error_type not in ("VideoBroken", "FramesMissing"):
            return self.why
        if self.last is None:
            return f"the video breaks at frame {self.first}: {self.why}"
        one = self.first == self.last
        which = f"frame {self.first} is missing" if one else f"frames {self.first} to {self.last} are missing"
        times = [f"{time:.3f} s" for time in (self.from_s, self.to_s) if time is not None]
        when = "" if not times else f", at {times[0]}" if len(set(times)) == 1 else f", from {times[0]} to {times[1]}"
        return f"{which}{when}: {self.why}"


def last_missing(error: str) -> int | None:
    """The last frame that a failed row of a gap stands for; None where the row is no gap's."""
    found = _MISSING.match(error)
    return None if found is None else int(found[2] or found[1])
