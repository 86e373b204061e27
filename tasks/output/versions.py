"""One output, one version: a job on results of another model or with other parameters is refused by name."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import VersionMismatch
from infra.store import Store
from tasks.output.layout import PLANS_FOLDER, differences, parse_plan_key, version_from_json
from tasks.records import Version

VERSION_FOOTER_KEY = b"visionmill.version"
PLAN_FOOTER_KEY = b"visionmill.plan"


def refuse_other_versions(output: Store, version: Version, *, new_version: bool) -> None:
    """Do nothing if ``output`` holds no version of this product yet, or this one, or if a new one is asked for.

    Raises:
        VersionMismatch: names every setting in which the newest version there differs from ``version``.
    """
    newest = _newest_plans(output)
    if new_version or version.fingerprint in newest:
        return
    held = []
    for fingerprint, (number, key) in newest.items():
        record = _read_record(output, key)
        if record is None:
            raise VersionMismatch(
                f"{output.uri} holds a version {fingerprint} whose plan {number} ({key}) cannot be read",
                hint="Restore that plan, choose another output, or add --new-version.",
            )
        if record[1].product == version.product:
            held.append(record)
    if not held:
        return
    other = max(held, key=lambda record: record[0])[1]
    lines = "; ".join(differences(other, version)) or "its record differs"
    raise VersionMismatch(
        f"{output.uri} holds {other.product} of version {other.fingerprint}, not {version.fingerprint}: {lines}",
        hint="Use the same model and parameters, choose another output, or add --new-version to keep both.",
    )


def _newest_plans(output: Store) -> dict[str, tuple[int, str]]:
    """Of every version that has plans: the number and key of its newest."""
    newest: dict[str, tuple[int, str]] = {}
    for info in output.list(PLANS_FOLDER):
        name = parse_plan_key(info.key)
        if name is not None and name.number > newest.get(name.fingerprint, (0, ""))[0]:
            newest[name.fingerprint] = (name.number, info.key)
    return newest


def _read_record(output: Store, key: str) -> tuple[str, Version] | None:
    """When a plan was made and of which version it is; None if the object is no plan of ours."""
    with output.open(key) as stream:
        try:
            metadata = pq.read_metadata(stream).metadata or {}
            created_at = str(json.loads(metadata[PLAN_FOOTER_KEY])["created_at"])
            return created_at, version_from_json(json.loads(metadata[VERSION_FOOTER_KEY]))
        except (pa.ArrowInvalid, KeyError, TypeError, ValueError):
            return None
