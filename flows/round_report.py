"""The last steps of a round, for people: where the two models disagree, and the report."""

from __future__ import annotations

from flows.round_steps import Loop
from infra.errors import VisionmillError
from tasks.loop.differences import items_to_compare, sure_of_candidate, sure_of_champion
from tasks.loop.disagreements import find_disagreements, write_disagreements
from tasks.loop.loop_tasks import Looked
from tasks.loop.records import teacher_of
from tasks.loop.selection import Selection
from tasks.loop.teaching import candidates_on

COMPARED_ITEMS = 200
EXPORTED_ITEMS = 50


def compare_models(loop: Loop, number: int, selection: Selection, candidate_uri: str) -> list[str]:
    """Export the items that champion and candidate see most differently; the keys of the files.

    Raises:
        VisionmillError: an item or the weights cannot be read.
    """
    items = items_to_compare(selection, loop.data.labels.classes, COMPARED_ITEMS)
    calibration = loop.data.split("G" if loop.parameters.crossfit else "C")  # labels that the candidate never saw
    predictor = loop.task.as_compared(loop.predictor(candidate_uri))
    who = teacher_of(predictor.weights, loop.data, round_number=number, tta_spec="[]")
    on_items, on_calibration = (
        candidates_on(
            predictor, labels, who,
            task=loop.task.name, floor=loop.task.score_floor, split=split, run_id=loop.run_id, round_number=number,
        )
        for labels, split in ((items, "U"), (calibration, "C"))
    )  # fmt: skip
    sure = sure_of_candidate(on_items, loop.task.calibrated(Looked(on_calibration, calibration)))
    sides = (loop.task.compared(side) for side in (sure_of_champion(selection, items), sure))
    found = find_disagreements(*sides, at_most=EXPORTED_ITEMS)
    return write_disagreements(loop.store, found, loop.run_id, number)


def report_round(loop: Loop) -> str | None:
    """Write the page of the newest round and the list of rounds; the list's address.

    A report that can't be written is no reason to call the round failed: ``visionmill report`` writes it again.
    """
    from tasks.report.round_page import write_loop_report  # draws pictures: loaded only when there is something to draw

    try:
        return write_loop_report(loop.store.uri, last_only=True).index_uri
    except VisionmillError:
        return None
