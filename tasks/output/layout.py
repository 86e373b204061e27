"""Names of the objects below an output: the one place that spells them.

    <product>/version=<fingerprint>/part-<shard id>.parquet  rows; one object per committed shard
    _plans/version=<fingerprint>/<n>.parquet                 what was asked
    _plans/version=<fingerprint>/<n>.execution.json          how its rows are computed, as far as digits depend on it
    files/<product>/version=<fingerprint>/<plan>/<shard id>/<item>.<ending>
                                                             files that rows name, of products that have such
    _swept/version=<fingerprint>/<plan>.json                 of which plans the files without a row are removed
    _states/version=<fingerprint>/<shard id>/<attempt id>.safetensors
                                                             what a clip leaves for the next shard, until that is done
    _runs/<run id>.json                                      what came of it
    _lease.json                                              who is writing, until when
    report/index.html                                        for people

A glob over ``OUTPUT/<product>/**/*.parquet`` sees rows and nothing else; readers that follow Hive's
convention (Spark) skip the names with a leading underscore even when pointed at the whole output.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

from tasks.records import Version

LEASE_KEY = "_lease.json"
PLANS_FOLDER = "_plans/"
RUNS_FOLDER = "_runs/"
FILES_FOLDER = "files/"
SWEPT_FOLDER = "_swept/"
STATES_FOLDER = "_states/"
REPORT_KEY = "report/index.html"

_FINGERPRINT_LENGTH = 16
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PART = re.compile(
    r"(?P<product>[a-z][a-z0-9_]*)/version=(?P<fingerprint>[0-9a-f]{16})/part-(?P<shard>[A-Za-z0-9._-]+)\.parquet"
)
_PLAN = re.compile(r"_plans/version=(?P<fingerprint>[0-9a-f]{16})/(?P<number>\d{6,})\.parquet")
_EXECUTION = re.compile(r"_plans/version=[0-9a-f]{16}/\d{6,}\.execution\.json")
_RUN = re.compile(r"_runs/(?P<run_id>[A-Za-z0-9._-]+)\.json")


@dataclass(frozen=True, slots=True)
class PartName:
    """What the name of a committed part says."""

    product: str
    fingerprint: str
    shard_id: str


@dataclass(frozen=True, slots=True)
class PlanName:
    """What the name of a plan says."""

    fingerprint: str
    number: int


def fingerprint(product: str, model_digest: str, parameters: dict[str, object], schema: str) -> str:
    """16 hex digits that name a version: SHA-256 over the canonical JSON of all that makes rows comparable.

    Equal inputs give equal fingerprints on every machine: keys are sorted, text is ASCII-escaped, and
    values JSON has no word for (NaN, objects) are refused instead of being printed somehow.

    Raises:
        ValueError, TypeError: when a parameter is not plain JSON.
    """
    content = {"product": product, "model_digest": model_digest, "parameters": parameters, "schema": schema}
    return hashlib.sha256(canonical_json(content)).hexdigest()[:_FINGERPRINT_LENGTH]


def canonical_json(value: object) -> bytes:
    """The one byte form of a JSON value: sorted keys, no spaces, ASCII only, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def make_version(product: str, *, model: str, model_digest: str, parameters: dict[str, object], schema: str) -> Version:
    """The version of these settings; ``parameters`` are only those that change rows.

    Values are normalised through JSON (tuples become lists), so that a version read back from a file
    equals this one.
    """
    plain: dict[str, object] = json.loads(canonical_json(parameters))
    return Version(
        fingerprint=fingerprint(product, model_digest, plain, schema),
        product=product,
        model=model,
        model_digest=model_digest,
        parameters=plain,
        schema=schema,
    )


def version_to_json(version: Version) -> dict[str, object]:
    """The plain form that stands in plans, footers and run records."""
    return {
        "fingerprint": version.fingerprint,
        "product": version.product,
        "model": version.model,
        "model_digest": version.model_digest,
        "parameters": version.parameters,
        "schema": version.schema,
    }


def version_from_json(plain: dict[str, object]) -> Version:
    """The inverse of :func:`version_to_json`.

    Raises:
        ValueError: when the content doesn't have the fingerprint that it states.
    """
    product, parameters = plain["product"], plain["parameters"]
    if not isinstance(product, str) or not isinstance(parameters, dict):
        raise ValueError(f"not a version record: product {product!r}, parameters {parameters!r}")
    version = make_version(
        product,
        model=str(plain["model"]),
        model_digest=str(plain["model_digest"]),
        parameters=parameters,
        schema=str(plain["schema"]),
    )
    if version.fingerprint != plain["fingerprint"]:
        raise ValueError(f"version record states {plain['fingerprint']!r} but its content is {version.fingerprint!r}")
    return version


def differences(held: Version, wanted: Version) -> list[str]:
    """One line per setting in which two versions differ, e.g. ``stride: 1 here, 5 asked for``."""
    before: dict[str, object] = {"product": held.product, "model": held.model, "schema": held.schema}
    after: dict[str, object] = {"product": wanted.product, "model": wanted.model, "schema": wanted.schema}
    if held.model == wanted.model:  # otherwise the name already tells
        before["model digest"], after["model digest"] = held.model_digest, wanted.model_digest
    before |= held.parameters
    after |= wanted.parameters
    lines = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, "not set"), after.get(name, "not set")
        if old != new:
            lines.append(f"{name}: {old} here, {new} asked for")
    return lines


def product_prefix(product: str) -> str:
    """Below it lie all versions of a product."""
    return f"{product}/"


def parts_prefix(version: Version) -> str:
    """Below it lie the committed parts of one version, and nothing else."""
    return f"{version.product}/version={version.fingerprint}/"


def part_key(version: Version, shard_id: str) -> str:
    """The one object that makes a shard's rows exist."""
    return f"{parts_prefix(version)}part-{_safe(shard_id, 'shard id')}.parquet"


def parse_part_key(key: str) -> PartName | None:
    """What a part's key says, or None when the key is no part of ours (a stray file is nobody's commit)."""
    match = _PART.fullmatch(key)
    if match is None:
        return None
    return PartName(product=match["product"], fingerprint=match["fingerprint"], shard_id=match["shard"])


def plans_prefix(version: Version) -> str:
    """Below it lie the plans of one version; their keys sort by number."""
    return f"{PLANS_FOLDER}version={version.fingerprint}/"


def plan_key(version: Version, n: int) -> str:
    """The plan number ``n`` (counted from 1) of a version."""
    if n < 1:
        raise ValueError(f"plans are counted from 1, got {n}")
    return f"{plans_prefix(version)}{n:06d}.parquet"


def parse_plan_key(key: str) -> PlanName | None:
    """What a plan's key says, or None when it is no plan."""
    match = _PLAN.fullmatch(key)
    return None if match is None else PlanName(fingerprint=match["fingerprint"], number=int(match["number"]))


def execution_key(version: Version, n: int) -> str:
    """How the rows of plan ``n`` are computed."""
    return plan_key(version, n).removesuffix(".parquet") + ".execution.json"


def is_execution_key(key: str) -> bool:
    """Whether a key names what :func:`execution_key` does."""
    return _EXECUTION.fullmatch(key) is not None


def states_prefix(version: Version, shard_id: str | None = None) -> str:
    """Below it lie the states that the attempts at a shard left (None: at any shard of the version)."""
    prefix = f"{STATES_FOLDER}version={version.fingerprint}/"
    return prefix if shard_id is None else f"{prefix}{_safe(shard_id, 'shard id')}/"


def state_key(version: Version, shard_id: str, attempt_id: str) -> str:
    """What the last clip of a shard leaves for the next one, as one attempt computed it."""
    return f"{states_prefix(version, shard_id)}{_safe(attempt_id, 'attempt id')}.safetensors"


def files_prefix(version: Version, plan: int, shard_id: str | None = None) -> str:
    """Below it lie the files that rows of a shard name (None: of all shards of the plan)."""
    prefix = f"{FILES_FOLDER}{version.product}/version={version.fingerprint}/{plan:06d}/"
    return prefix if shard_id is None else f"{prefix}{_safe(shard_id, 'shard id')}/"


def swept_prefix(version: Version) -> str:
    """Below it an object says of each plan that its files were swept."""
    return f"{SWEPT_FOLDER}version={version.fingerprint}/"


def swept_key(version: Version, plan: int) -> str:
    """Says that the files of a plan were swept."""
    return f"{swept_prefix(version)}{plan:06d}.json"


def run_key(run_id: str) -> str:
    """The record of one run."""
    return f"{RUNS_FOLDER}{_safe(run_id, 'run id')}.json"


def parse_run_key(key: str) -> str | None:
    """The run id in a run record's key, or None when it is none."""
    match = _RUN.fullmatch(key)
    return None if match is None else match["run_id"]


def _safe(name: str, what: str) -> str:
    if not _SAFE_NAME.fullmatch(name):
        raise ValueError(f"{what} must be letters, digits, '.', '_' and '-' only (it names an object), got {name!r}")
    return name
