"""A label set of composed scenes, for people who have no labels yet: what ``visionmill digitscape`` writes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

from infra.errors import UsageError
from infra.store import absolute_uri, is_local, open_store
from infra.telling import tell
from modelkit.digitscape import STYLES, Digitscape, DigitscapeError, Split, write_label_set


def write_digitscape(
    output: str,
    *,
    split: Split,
    scenes: int,
    size_hw: tuple[int, int],
    seed: int,
    style: str,
    frames: int = 1,
    first: int = 0,
    image_format: Literal["jpg", "png"] = "png",
    surface_points: int = 0,
) -> dict[str, str]:
    """Compose scenes and write them with their labels below ``output``, a folder or a prefix of a bucket.

    Args:
        output: existing objects of the same names are replaced.
        split, size_hw, seed: see ``Digitscape``; the same values give the same bytes.
        scenes, first: how many, and the index of the first.
        style: a key of ``STYLES``.
        frames: more than one composes clips of so many frames instead of images.
        image_format: of images.
        surface_points: how many points of each digit's surface are labelled; 0: none.

    Returns:
        URIs by what is labelled: "instances" (digits), "panoptic" (digits and kinds of background), "landmarks"
        (points of digits) and, where they are asked for, "surfaces" (points of their surfaces).

    Raises:
        UsageError: values that no scene can be composed of.
        StoreError: the output cannot be written to.
    """
    if style not in STYLES:
        raise UsageError(f"there is no style {style!r}", hint=f"styles: {', '.join(STYLES)}")
    try:
        source = Digitscape(split, size_hw, seed, STYLES[style], dense=surface_points > 0)
        with tempfile.TemporaryDirectory(prefix="visionmill-digitscape-") as scratch:
            folder = Path(absolute_uri(output) if is_local(output) else scratch)
            written = write_label_set(
                folder, source, scenes, first=first, num_frames=frames, image_format=image_format,
                surface_points=surface_points,
                on_scene=lambda done: tell("composing", done, scenes, "scenes"),
            )  # fmt: skip
            if not is_local(output):
                _upload(folder, output)
    except DigitscapeError as error:
        raise UsageError(str(error)) from error
    names = ("instances", "panoptic", "landmarks", "surfaces")
    return {name: f"{absolute_uri(output)}/{path.name}" for name, path in zip(names, written, strict=False)}


def _upload(folder: Path, output: str) -> None:
    store = open_store(output)
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        store.put(path.relative_to(folder).as_posix(), path.read_bytes())
