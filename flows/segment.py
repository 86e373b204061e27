"""Segment a whole dataset: the legs in the order in which the data meets them, one call each.

The same body runs as a Prefect flow (scheduled, triggered, recorded) and as plain Python; see :mod:`flows.legs`.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from prefect import flow
from rich.console import Console

from flows.legs import Legs, orchestrated_legs, plain_legs
from flows.parameters import SegmentParameters
from flows.progress import progress_display
from infra.ray_session import ray_session
from infra.store import open_store
from tasks.inference.job import JobSpec, prepare_segment_job
from tasks.inference.pool import PoolOutcome, run_pool, run_serial
from tasks.ingest.inventory import Inventory, take_inventory
from tasks.ingest.plan import Plan, PlanOptions, open_plan
from tasks.results.finish import finish_run
from tasks.results.lease import hold_lease
from tasks.results.report import write_report

Summary = dict[str, object]
