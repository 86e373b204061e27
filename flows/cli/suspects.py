"""Labels that are probably wrong, as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape

from flows.cli.console import answers, people, say, table


def tell_suspects(found: Mapping[str, Any], *, to_people: bool) -> None:
    """A table of labelled objects, and one of objects that nobody labelled, where there are any.

    Args:
        found: as ``tasks.evaluation.suspects.first_suspects`` reports it.
        to_people: on stderr, since a program reads stdout.
    """
    console = people if to_people else answers
    shown, missing = found["labelled"], found["missing"]
    console.print(
        f"the model questions {found['questioned']} labelled objects, of which about {found['expected_wrong']:.0f} are "
        f"wrong; the {len(shown)} most probable:"
        if shown
        else "the model questions no labelled object"
    )
    if shown:
        console.print(_table(shown))
    if missing:
        console.print(f"about {found['expected_missing']:.0f} objects that nobody labelled; the most probable:")
        console.print(_table(missing))
    for note in found["notes"]:
        say(note, style="yellow")


def _table(suspects: Sequence[Mapping[str, Any]]) -> Any:
    is_labelled, has_frames = suspects[0]["object"] is not None, any(each["frame"] is not None for each in suspects)
    told = table(
        "",
        "probability",
        "wrong",
        "class",
        *["object"] * is_labelled,
        "what the model says",
        "image",
        *["frame"] * has_frames,
    )
    for rank, each in enumerate(suspects, start=1):
        named = [f"{each['object']} (id {each['origin_id']})" if each["origin_id"] else str(each["object"])]
        cells = [
            str(rank), f"{each['probability']:.2f}", each["wrong"], each["name"], *named * is_labelled, each["words"],
            each["uri"], *["" if each["frame"] is None else str(each["frame"])] * has_frames,
        ]  # fmt: skip
        told.add_row(*map(escape, cells))
    return told
