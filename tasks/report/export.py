"""The newest results in the forms of other tools: ``coco``, ``yolo`` and ``flat``.

All three read the view ``items`` or ``instances`` as a stream of batches, so an output of any size passes through
bounded memory. Items that failed have nothing to export; they are counted. A destination that holds something
already is refused: mixing two exports would look like one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infra.errors import BucketMissing, UsageError
from infra.store import ObjectInfo, Store, is_local, open_store, split_uri
from tasks.output.views import Views, views_of
from tasks.products.segments.export_coco import write_coco
from tasks.products.segments.export_flat import write_flat
from tasks.products.segments.export_yolo import write_yolo

FORMATS = ("coco", "yolo", "flat")


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What an export wrote; ``num_skipped`` items had no result (failed or quarantined)."""

    destination: str
    num_items: int
    num_instances: int
    num_skipped: int
    files: int


def export(output: str, to: str, destination: str) -> ExportSummary:
    """Write the newest results of ``output`` in another form.

    Args:
        output: folder or ``s3://bucket/prefix`` of a job's output.
        to: ``coco`` (one JSON file), ``yolo`` (a text file per image, with data.yaml) or ``flat`` (a row per instance,
            Parquet partitioned by label).
        destination: the file (coco) or folder (yolo, flat), local or ``s3://``; must not hold anything yet.

    Raises:
        UsageError: an unknown form, nothing to export, or a destination that is taken.
        StoreError: as the stores report.
    """
    if to not in FORMATS:
        raise UsageError(f"unknown export {to!r}", hint=f"one of {', '.join(FORMATS)}")
    views = views_of(open_store(output))
    try:
        num_ok, num_skipped = _count(views)
        if num_ok + num_skipped == 0:
            raise UsageError(f"{output} holds no results to export", hint="run the job first, or check the path")
        num_instances, files = (
            _write_file(views, destination) if to == "coco" else _write_folder(views, to, destination)
        )
    finally:
        views.connection.close()
    return ExportSummary(destination, num_ok, num_instances, num_skipped, files)


def _count(views: Views) -> tuple[int, int]:
    ok, skipped = views.connection.sql(
        "SELECT count(*) FILTER (status = 'ok'), count(*) FILTER (status <> 'ok') FROM items"
    ).fetchall()[0]
    return int(ok), int(skipped)


def _write_file(views: Views, destination: str) -> tuple[int, int]:
    root, key = split_uri(destination)
    if not key:
        raise UsageError(
            f"{destination} is a folder; coco is one file", hint=f"{destination.rstrip('/')}/instances.json"
        )
    store = open_store(root)
    if any(info.key == key or info.key.startswith(f"{key}/") for info in _held(store, key)):
        raise _taken(destination)
    return write_coco(views, store, key), 1


def _write_folder(views: Views, to: str, destination: str) -> tuple[int, int]:
    store = open_store(destination)
    if _held(store, ""):
        raise _taken(destination)
    write: Callable[[Views, Store], tuple[int, int]] = write_yolo if to == "yolo" else write_flat
    return write(views, store)


def _held(store: Store, prefix: str) -> list[ObjectInfo]:
    """The first object below a prefix, or nothing; a folder that is not there yet holds nothing."""
    try:
        return [next(iter(store.list(prefix)))]
    except StopIteration:
        return []
    except BucketMissing:
        if is_local(store.uri):
            return []
        raise


def _taken(destination: str) -> UsageError:
    return UsageError(f"{destination} holds something already", hint="choose another destination, or remove it first")
