"""Segment a whole dataset: the legs in the order in which the data meets them, one call each.

The same body runs as a Prefect flow (scheduled, triggered, recorded) and as plain Python; see :mod:`flows.legs`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from prefect import flow
from rich.console import Console

from flows.legs import Legs, orchestrated_legs, plain_legs
from flows.parameters import SegmentParameters
from flows.progress import progress_display
from flows.summary import Summary, nothing_to_do, summary_of
from infra.services import ensure_prefect
from infra.store import open_store
from tasks.inference.prepare import Prepared, prepare_segments
from tasks.inference.run import PoolOutcome, run_plan
from tasks.ingest.inventory import Inventory, take_inventory
from tasks.ingest.plan import Plan, PlanOptions, open_plan
from tasks.results.finish import finish_run
from tasks.results.lease import hold_lease
from tasks.results.report import write_report
from tasks.results.runs import new_run_id


def run_segment(parameters: SegmentParameters, *, orchestrated: bool = True, console: Console | None = None) -> Summary:
    """Carry the job out from here, recorded by the standing Prefect server (started if needed) or by nobody.

    Args:
        parameters: what to do.
        orchestrated: whether Prefect records the run; the results are the same.
        console: where the progress bar is drawn; None draws none.

    Returns:
        The summary of ``flows.summary``: plain JSON, no secrets.

    Raises:
        VisionmillError: as the legs do; what is committed by then stays, and the same call goes on from there.
    """
    if not orchestrated:
        return _segment(parameters, plain_legs, console)
    ensure_prefect()
    return segment_dataset(parameters)


@flow(name="segment-dataset", persist_result=False, validate_parameters=True)
def segment_dataset(parameters: SegmentParameters) -> Summary:
    """Segment what is new or changed in a dataset. A run that finds nothing new ends at once."""
    return _segment(parameters, orchestrated_legs, Console(stderr=True))
