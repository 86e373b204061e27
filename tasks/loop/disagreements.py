"""Where champion and candidate disagree, the gravest items first, as tasks for a person's eyes.

Both models' finds on an item are matched (largest IoU first, at least .5). One without a partner weighs its calibrated
score, a pair of different classes the larger of both scores, a pair of one class what the two do not share; the item
weighs their sum. Which of the two is right, nobody knows yet: that is what the person is asked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from infra.store import Store
from tasks.loop.findings import Disagreement, Finding, Row
from tasks.loop.kinds import loop_kind
from tasks.product import LoopKind

DISAGREEMENTS_FOLDER = "disagreements/"
MATCH_IOU = 0.5
ONLY_CHAMPION, ONLY_CANDIDATE, CLASS, OUTLINE = "only_champion", "only_candidate", "class", "outline"
_WORTH = 0.05  # a pair that shares more than 95 % is an agreement


def find_disagreements(champion: pa.Table, candidate: pa.Table, *, at_most: int) -> list[Disagreement]:
    """The items with the most disagreement.

    Args:
        champion, candidate: finds of both models on the same items, as ``pseudo_labels.v2`` rows; give those that each
            model is sure of, or everything is a disagreement.
        at_most: how many items.
    """
    if champion.num_rows + candidate.num_rows == 0:
        return []
    kind = loop_kind((champion if champion.num_rows else candidate)["kind"][0].as_py())
    sides = [_by_image(champion), _by_image(candidate)]
    found = []
    for image_id in sorted(sides[0].keys() | sides[1].keys()):
        mine = [side.get(image_id, []) for side in sides]
        findings = tuple(_findings(mine[0], mine[1], kind))
        if findings:
            row = (mine[0] or mine[1])[0]
            frame = row["frame"] if row["media"] == "video" else None
            size_hw, weight = (row["height"], row["width"]), sum(each.weight for each in findings)
            differences = tuple(sorted({each.difference for each in findings}))
            found.append(Disagreement(image_id, row["uri"], frame, size_hw, findings, differences, weight))
    found.sort(key=lambda each: (-each.weight, each.image_id))
    return found[:at_most]


def _by_image(table: pa.Table) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in table.to_pylist():
        rows[row["image_id"]].append(row)
    return rows


def _findings(champion: Sequence[Row], candidate: Sequence[Row], kind: LoopKind) -> Iterator[Finding]:
    ious = kind.iou(champion, candidate) if champion and candidate else np.zeros((len(champion), len(candidate)))
    left, right = set(range(len(champion))), set(range(len(candidate)))
    order = np.argsort(-ious, axis=None, kind="stable") if ious.size else np.zeros(0, np.int64)
    for place in order.tolist():
        i, j = divmod(place, len(candidate))
        if ious[i, j] < MATCH_IOU:
            break
        if i not in left or j not in right:
            continue
        left.discard(i)
        right.discard(j)
        one, other = champion[i], candidate[j]
        if one["label"] != other["label"]:
            yield Finding(CLASS, max(one["score_calibrated"], other["score_calibrated"]), one, other)
        elif 1.0 - ious[i, j] > _WORTH:
            yield Finding(OUTLINE, round(float(1.0 - ious[i, j]), 6), one, other)
    yield from (Finding(ONLY_CHAMPION, champion[i]["score_calibrated"], champion[i], None) for i in sorted(left))
    yield from (Finding(ONLY_CANDIDATE, candidate[j]["score_calibrated"], None, candidate[j]) for j in sorted(right))


def disagreements_key(run_id: str, round_number: int, name: str) -> str:
    """Where a file with the tasks of a round lies."""
    return f"{DISAGREEMENTS_FOLDER}{run_id}/round={round_number:04d}/{name}"


def write_disagreements(
    store: Store, found: Sequence[Disagreement], kind: LoopKind, run_id: str, round_number: int
) -> list[str]:
    """Put the tasks of a round into the output, as the kind exports them; their keys. No disagreement, no files."""
    if not found:
        return []
    files = kind.disagreements(found)
    keys = {name: disagreements_key(run_id, round_number, name) for name in files}
    for name, data in files.items():
        store.put(keys[name], data)
    return list(keys.values())


def read_disagreements(store: Store, kind: LoopKind, run_id: str, round_number: int) -> list[Disagreement]:
    """The exported disagreements of a round, as far as they are to be drawn; [] where none were exported."""
    folder = disagreements_key(run_id, round_number, "")
    there = {info.key for info in store.list(folder)}

    def content(name: str) -> bytes | None:
        return store.get(folder + name) if folder + name in there else None

    return kind.read_disagreements(content)
