"""How the rows of a plan are computed, in all that decides their last digits: written beside the plan, then followed.

Number and memory format, compiled graphs, the size of batches and the device change the last digits of what a model
finds. The first driver of a plan takes these from the version's plan before, or has them measured, and creates one
object by a conditional request. Whoever joins the plan, or takes it up after a crash, reads that object: a row is the
same whenever and by whomever it is computed, on one kind of machine. Threads are no matter of choice: a model on a
processor has one, in every way to run.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from infra.errors import ObjectGone, StoreError
from infra.store import Store
from tasks.engine.items import most_bytes_in_batch
from tasks.engine.job import JobSpec
from tasks.ingest.plan import Plan
from tasks.output.layout import execution_key
from tasks.records import Version

Policy = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True)
class PlanExecution:
    """What is remembered.

    Args:
        decision: ``modelkit.compile.decision.Decision`` as JSON.
        policy: of compiling, as the run that decided was asked.
        device, batch_size, batch_item_bytes: see :class:`JobSpec`.
        machine: of the driver that decided; rows computed on another kind may differ in the last digits.
        plan: number of the plan whose driver decided.
    """

    decision: dict[str, Any]
    policy: Policy
    device: str
    batch_size: int
    batch_item_bytes: int
    machine: dict[str, str]
    plan: int


@dataclass(frozen=True, slots=True)
class Followed:
    """A job that follows what its plan remembers; ``notes`` say where that is not what was asked for or done before."""

    job: JobSpec
    notes: tuple[str, ...]


def follow_plan(
    plan: Plan,
    job: JobSpec,
    *,
    policy: Policy,
    batch_size: int | None,
    choose: Callable[[], dict[str, Any]],
) -> Followed:
    """Compute as the plan remembers; if it remembers nothing, as the version's last plan did; else ``choose``.

    Args:
        policy, batch_size: what this run was asked for; "auto" and None leave it to the plan. Anything else decides
            anew at the start of a plan, never within one.
        choose: measures; its answer is a decision.

    Raises:
        StoreError: as the store reports; also for a record that cannot be read.
    """
    output, version = plan.store, plan.version
    held = _read(output, version, plan.number)
    if held is None:
        earlier = (_read(output, version, number) for number in range(plan.number - 1, 0, -1))
        before = next((one for one in earlier if one is not None), None)
        if before is None or _is_asked_otherwise(before, policy, batch_size):
            before = _decided(plan, job, policy, choose())
        held = _create(output, version, plan.number, before)
    followed = replace(job, execution=held.decision, batch_size=held.batch_size, batch_item_bytes=held.batch_item_bytes)
    return Followed(followed, _notes(held, job, policy, batch_size))


def this_machine(device: str) -> dict[str, str]:
    """What of a machine and its software decides digits."""
    facts = {"torch": str(torch.__version__), "processor": torch.backends.cpu.get_cpu_capability()}
    return facts | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" and torch.cuda.is_available() else {})


def _decided(plan: Plan, job: JobSpec, policy: Policy, decision: dict[str, Any]) -> PlanExecution:
    return PlanExecution(
        decision=decision,
        policy=policy,
        device=job.device,
        batch_size=job.batch_size,
        batch_item_bytes=job.batch_item_bytes or most_bytes_in_batch(job),
        machine=this_machine(job.device),
        plan=plan.number,
    )


def _is_asked_otherwise(before: PlanExecution, policy: Policy, batch_size: int | None) -> bool:
    return policy not in ("auto", before.policy) or batch_size not in (None, before.batch_size)


def _notes(held: PlanExecution, job: JobSpec, policy: Policy, batch_size: int | None) -> tuple[str, ...]:
    notes = []
    if _is_asked_otherwise(held, policy, batch_size):
        notes.append(
            f"the open plan goes on as it began, with --compile {held.policy} and --batch-size {held.batch_size}; "
            "others count from the next plan on"
        )
    here = this_machine(job.device)
    if held.device != job.device:
        notes.append(f"rows so far were computed on {held.device}, these are on {job.device}: last digits may differ")
    elif held.machine != here:
        differing = [f"{name} {held.machine.get(name)}, here {here.get(name)}" for name in sorted(held.machine | here)
                     if held.machine.get(name) != here.get(name)]  # fmt: skip
        notes.append(f"rows so far were computed with {'; '.join(differing)}: last digits may differ")
    return tuple(notes)


def _create(output: Store, version: Version, number: int, content: PlanExecution) -> PlanExecution:
    """What is remembered from now on: this, or what another driver wrote a moment earlier."""
    token = uuid.uuid4().hex
    data = json.dumps({**asdict(content), "token": token}, indent=1).encode()
    if output.put_if_absent(execution_key(version, number), data, token=token.encode()):
        return content
    held = _read(output, version, number)
    return content if held is None else held


def _read(output: Store, version: Version, number: int) -> PlanExecution | None:
    key = execution_key(version, number)
    try:
        content = json.loads(output.get(key))
        return PlanExecution(**{name: content[name] for name in PlanExecution.__dataclass_fields__})
    except ObjectGone:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{output.uri_of(key)} is damaged: {error}",
            hint="Restore it, or remove it: then the rest of the plan may differ in the last digits of its rows.",
        ) from error
