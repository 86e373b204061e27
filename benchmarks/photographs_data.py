"""Label sets of real pictures, divided so that nothing which is judged has a neighbour among what was learnt from.

Sets are folders of images and label maps below one folder; what a division holds are links to their files.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_JUDGED_SHARE = 5  # one of so many pictures, where pictures have nothing to do with each other


@dataclass(frozen=True, slots=True)
class PictureSet:
    """Labelled pictures, and how they are divided.

    Args:
        folder: below that of all sets.
        maps: its folder of label maps: "masks" of classes or "instances" of objects.
        group_of: file name without ending -> its group; all of a group is on one side.
        judged: group -> whether it is judged on; the others are learnt from.
        figure: group and name of the figure in what ``visionmill evaluate`` reports.
        says: how it is divided, in words.
    """

    folder: str
    maps: str
    group_of: Callable[[str], str]
    judged: Callable[[str], bool]
    figure: tuple[str, str]
    says: str


SETS: Mapping[str, PictureSet] = {
    "camvid": PictureSet(
        "camvid_train", "masks", lambda stem: stem.rpartition("_")[0], lambda group: group == "0006R0",
        ("semantic", "miou"), "learnt from sequences 0001TP and 0016E5, judged on sequence 0006R0",
    ),
    "dsb2018": PictureSet(
        "dsb2018", "instances", lambda stem: stem,
        lambda group: int(hashlib.sha1(group.encode()).hexdigest(), 16) % _JUDGED_SHARE == 0,
        ("counts", "accuracy50"), "judged on a fifth of the pictures, those whose names' digests divide by five",
    ),
}  # fmt: skip


def divided(data: Path, name: str, work: Path) -> tuple[Path, Path]:
    """Folders of what is learnt from and of what is judged on; made anew each time, which costs nothing."""
    chosen = SETS[name]
    source, parts = data / chosen.folder, (work / name / "learnt", work / name / "judged")
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)
        for folder in ("images", chosen.maps):
            (part / folder).mkdir(parents=True)
        if (source / "classes.json").exists():
            (part / "classes.json").symlink_to(source / "classes.json")
    labels = {path.stem: path for path in (source / chosen.maps).iterdir()}
    for image in sorted((source / "images").iterdir()):
        part = parts[chosen.judged(chosen.group_of(image.stem))]
        (part / "images" / image.name).symlink_to(image)
        (part / chosen.maps / labels[image.stem].name).symlink_to(labels[image.stem])
    return parts
