"""Label sets of real pictures, divided so that nothing which is judged has a neighbour among what was learnt from.

Sets are folders of images and label maps below one folder; what a division holds are links to their files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

_JUDGED_SHARE = 5  # one of so many pictures, where pictures have nothing to do with each other


@dataclass(frozen=True, slots=True)
class PictureSet:
    """Labelled pictures, and how they are divided.

    Args:
        folder: below that of all sets.
        maps: its folder of label maps: "masks" of classes or "instances" of objects.
        group_of: file name without ending -> its group; all of a group is on one side.
        divisions: for each, group -> whether it is judged on; the others are learnt from.
        labelled_share: of what is not judged, in the experiment with the loop.
        piece_of: file name without ending -> piece of its group; in the experiment with the loop pictures of each piece
            are labelled that follow each other.
        labelled_groups: of each division the group that alone is labelled where only one shall be.
        loop_options: options of ``visionmill retrain`` that this set needs.
        loop_side: pictures are reduced to this longer side there, pixels, so that a record takes less than an hour.
        figure: group and name of the figure in what ``visionmill evaluate`` reports.
        says: how it is divided, in words.
        class_names: of ids from 1; empty: the set says it itself.
    """

    folder: str
    maps: str
    group_of: Callable[[str], str]
    divisions: Sequence[Callable[[str], bool]]
    labelled_share: float
    piece_of: Callable[[str], str]
    loop_options: Sequence[str]
    loop_side: int
    figure: tuple[str, str]
    says: str
    class_names: Sequence[str] = ()
    labelled_groups: Sequence[str] = ()


def _is_sequence(name: str) -> Callable[[str], bool]:
    return lambda group: group == name


def _is_fifth(which: int) -> Callable[[str], bool]:
    return lambda group: int(hashlib.sha1(group.encode()).hexdigest(), 16) % _JUDGED_SHARE == which


SETS: Mapping[str, PictureSet] = {
    "camvid": PictureSet(
        folder="camvid_train",
        maps="masks",
        group_of=lambda stem: stem.rpartition("_")[0],
        divisions=[_is_sequence(name) for name in ("0006R0", "0001TP", "0016E5")],
        labelled_share=1 / 8,
        # Two sequences are two groups, which can neither be cross-fitted well nor gated. The unlabelled pictures are of
        # the same sequences, so pieces of a thousand frames, half a minute, are the groups.
        piece_of=lambda stem: stem[:-3],
        loop_options=("--group-rule", r"([^/]*)\d{3}\.png$", "--share", "train=0.8", "--share", "gate=0.2"),
        loop_side=320,
        figure=("semantic", "miou"),
        labelled_groups=("0016E5", "0016E5", "0006R0"),
        says="Division 0 is judged on sequence 0006R0, 1 on 0001TP, 2 on 0016E5; the other two are learnt from",
    ),
    "dsb2018": PictureSet(
        folder="dsb2018",
        maps="instances",
        group_of=lambda stem: stem,
        divisions=[_is_fifth(which) for which in range(3)],
        labelled_share=1 / 10,
        piece_of=lambda stem: "",
        loop_options=("--share", "train=0.75", "--share", "gate=0.25"),
        loop_side=256,
        figure=("counts", "accuracy50"),
        says="Each division is judged on another fifth of the pictures",
        class_names=("nucleus",),
    ),
}


def divided(data: Path, name: str, division: int, work: Path) -> tuple[Path, Path]:
    """Folders of what is learnt from and of what is judged on; made anew each time, which costs nothing."""
    chosen = SETS[name]
    learnt, judged = (work / name / f"whole-{division}" / part for part in ("learnt", "judged"))
    parts = {learnt: [], judged: []}  # type: dict[Path, list[str]]
    for stem in _stems(data / chosen.folder):
        parts[judged if chosen.divisions[division](chosen.group_of(stem)) else learnt].append(stem)
    for part, stems in parts.items():
        _write(chosen, data, part, stems, side=None)
    return learnt, judged


def divided_for_loop(
    data: Path, name: str, division: int, work: Path, *, one_group: bool = False
) -> tuple[Path, Path, Path]:
    """Folders of what is labelled, of what is not (its labels beside it, for audits) and of what is judged on.

    Of each piece that is not judged pictures are labelled that follow each other: in the order of their names, or of
    those of their digests where all are one piece. With ``one_group`` as many are labelled in all, but of one group
    alone, so that the unlabelled pictures show what no label does.
    """
    chosen = SETS[name]
    if one_group and not chosen.labelled_groups:
        raise ValueError(f"the pictures of {name} have no groups of which one could be labelled alone")
    stems, pieces = _stems(data / chosen.folder), dict[str, list[str]]()
    judged = [stem for stem in stems if chosen.divisions[division](chosen.group_of(stem))]
    rest = sorted(set(stems) - set(judged))
    may = [stem for stem in rest if not one_group or chosen.group_of(stem) == chosen.labelled_groups[division]]
    for stem in may:
        pieces.setdefault(chosen.piece_of(stem), []).append(stem)
    share, labelled = chosen.labelled_share * len(rest) / len(may), set[str]()
    for piece, members in pieces.items():
        ordered = members if piece else sorted(members, key=lambda stem: _digest(f"{division}{stem}"))
        count = max(2, round(len(members) * share))
        first = (division * len(members) // len(chosen.divisions)) % max(1, len(members) - count)
        labelled |= set(ordered[first : first + count])
    parts = {"labelled": sorted(labelled), "unlabelled": sorted(set(rest) - labelled), "judged": judged}
    folder = work / name / f"division-{division}{'-one' if one_group else ''}"
    for part, chosen_stems in parts.items():
        _write(chosen, data, folder / part, chosen_stems, side=chosen.loop_side)
    return folder / "labelled", folder / "unlabelled", folder / "judged"


def united(parts: Sequence[Path]) -> Path:
    """A folder beside them that holds links to the files of all parts."""
    folder = parts[0].parent / "united"
    for part in parts:
        for file in (path for path in part.rglob("*") if path.is_file()):
            place = folder / file.relative_to(part)
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                place.symlink_to(file.resolve())
    return folder


def _digest(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def _stems(source: Path) -> list[str]:
    return sorted(path.stem for path in (source / "images").iterdir())


def _write(chosen: PictureSet, data: Path, part: Path, stems: Sequence[str], *, side: int | None) -> None:
    """Links to the files of some pictures, or PNGs of them reduced to a longer side; what is there already stays."""
    source, maps = data / chosen.folder, chosen.maps
    if side is None:
        shutil.rmtree(part, ignore_errors=True)
    for folder in ("images", maps):
        (part / folder).mkdir(parents=True, exist_ok=True)
        files = {path.stem: path for path in (source / folder).iterdir()}
        for stem in stems:
            place = part / folder / (files[stem].name if side is None else f"{stem}.png")
            if side is None:
                place.symlink_to(files[stem])
            elif not place.exists():
                _reduced(files[stem], side, nearest=folder == maps).save(place)
    classes = part / "classes.json"
    if chosen.class_names:
        classes.write_text(json.dumps(dict(enumerate(chosen.class_names, 1))))
    elif not classes.exists():
        shutil.copy(source / "classes.json", classes)


def _reduced(path: Path, side: int, *, nearest: bool) -> Image.Image:
    """The picture with a longer side of at most ``side`` pixels; labels keep their values."""
    with Image.open(path) as opened:
        picture = opened if nearest else opened.convert("RGB")
        factor = side / max(picture.size)
        if factor >= 1:
            return picture.copy()
        size = (round(picture.width * factor), round(picture.height * factor))
        return picture.resize(size, Image.Resampling.NEAREST if nearest else Image.Resampling.BOX)
