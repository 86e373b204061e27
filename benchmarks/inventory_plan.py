"""How long inventory and plan take for N objects, and how much memory.

    python -m benchmarks.inventory_plan [--objects 10000 100000 1000000] [--kinds parquet csv s3-inventory objects]

For each size and kind of source a process of its own takes the inventory, makes plan 1, commits all its shards (parts
that hold nothing), changes 1 % of the etags and makes plan 2 by the anti-join. Reported: seconds of each step; CPU
seconds of inventory and plan 1 together (on a busy machine they say more than seconds); and the peak resident memory
of the process, with the interpreter and its libraries, which are printed in the first line. ``objects`` is a listing
that arrives object by object from a store, as a bucket's LIST does, without the network.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infra.store import ObjectInfo, Store, open_store
from tasks.ingest import sources
from tasks.ingest.inventory import Inventory, take_inventory
from tasks.ingest.plan import Plan, PlanOptions, open_plan
from tasks.output.layout import make_version, part_key
from tasks.records import Version

KINDS = ("parquet", "csv", "s3-inventory", "objects")
CHUNK = 50_000
CHANGED_EVERY = 100  # every 100th object has another etag in the second listing


def synthetic_objects(count: int, generation: int) -> Iterator[ObjectInfo]:
    """``count`` JPEGs of 20 to 220 kB with keys as cameras write them, in key order."""
    for index in range(count):
        changed = generation if index % CHANGED_EVERY == 0 else 0
        key = f"camera-{index // 10_000:05d}/2026/03/14/frame_{index:012d}.jpg"
        yield ObjectInfo(key, 20_000 + (index * 7919) % 200_000, f"{index * 2654435761 % 2**128 + changed:032x}")


def write_listing(kind: str, folder: Path, count: int, generation: int) -> str:
    """Write the synthetic listing in the given form; returns the source to name."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = _chunks(synthetic_objects(count, generation))
    if kind == "parquet":
        path = folder / "listing.parquet"
        with pq.ParquetWriter(
            path, pa.schema([("uri", pa.string()), ("etag", pa.string()), ("size", pa.int64())])
        ) as out:
            for chunk in chunks:
                columns = [
                    [f"s3://bench/{o.key}" for o in chunk],
                    [o.etag for o in chunk],
                    [o.size_bytes for o in chunk],
                ]
                out.write_batch(pa.RecordBatch.from_arrays([pa.array(c) for c in columns], schema=out.schema))
        return str(path)
    if kind == "csv":
        path = folder / "listing.csv"
        with path.open("w", newline="") as text:
            lines = csv.writer(text)
            lines.writerow(["uri", "etag", "size"])
            for chunk in chunks:
                lines.writerows((f"s3://bench/{o.key}", o.etag, o.size_bytes) for o in chunk)
        return str(path)
    if kind == "s3-inventory":
        (folder / "data").mkdir(exist_ok=True)
        with gzip.open(folder / "data" / "1.csv.gz", "wt", newline="", compresslevel=1) as text:
            lines = csv.writer(text, quoting=csv.QUOTE_ALL)
            for chunk in chunks:
                lines.writerows(("bench", o.key.replace("/", "%2F"), o.size_bytes, o.etag) for o in chunk)
        manifest = {
            "sourceBucket": "bench",
            "destinationBucket": "arn:aws:s3:::bench",
            "fileFormat": "CSV",
            "fileSchema": "Bucket, Key, Size, ETag",
            "files": [{"key": "inventory/data/1.csv.gz"}],
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return str(folder / "manifest.json")
    return f"{count}/{generation}"  # made on the fly


def _chunks(objects: Iterable[ObjectInfo]) -> Iterator[list[ObjectInfo]]:
    iterator = iter(objects)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        yield chunk


class _SyntheticStore:
    """A bucket that exists only as a listing."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def uri_of(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        count, generation = prefix.rstrip("/").split("/")
        return synthetic_objects(int(count), int(generation))

    def info(self, key: str) -> ObjectInfo:
        from infra.errors import ObjectGone

        raise ObjectGone(key)


def measure(kind: str, count: int, folder: Path) -> dict[str, object]:
    """Both rounds in this process. The listings are expected in ``folder``, so writing them costs no memory here."""
    version = make_version("segments", model="bench@0", model_digest="0" * 64, parameters={}, schema="segments.v1")
    output = open_store(str(folder / "out"))
    (folder / "out").mkdir()
    result: dict[str, object] = {"kind": kind, "objects": count}
    if kind == "objects":
        sources.open_store = _synthetic_or_real  # type: ignore[assignment]
    for generation in (0, 1):
        source = source_of(kind, folder, count, generation)
        began = time.perf_counter()
        cpu_began = time.process_time()
        inventory = take_inventory(source, folder=folder / f"work{generation}")
        taken = time.perf_counter()
        plan = _plan(output, version, inventory)
        cpu_s = time.process_time() - cpu_began
        name = "first" if generation == 0 else "second"
        result |= {
            f"{name}_inventory_s": round(taken - began, 2),
            f"{name}_plan_s": round(time.perf_counter() - taken, 2),
            f"{name}_cpu_s": round(cpu_s, 2),
            f"{name}_entries": plan.num_entries,
            f"{name}_shards": plan.num_shards,
        }
        if generation == 0:
            result["first_peak_rss_mib"] = _peak_rss_mib()
            for shard_id in plan.shard_ids():
                path = folder / "out" / part_key(version, shard_id)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"part")
            began = time.perf_counter()
            shards = sum(1 for _ in plan.shards())
            result["read_back_s"] = round(time.perf_counter() - began, 2)
            assert shards == plan.num_shards
    return result | {"peak_rss_mib": _peak_rss_mib()}


def source_of(kind: str, folder: Path, count: int, generation: int) -> str:
    """What to name as SOURCE for a listing written by :func:`write_listing`."""
    names = {"parquet": "listing.parquet", "csv": "listing.csv", "s3-inventory": "manifest.json"}
    if kind == "objects":
        return f"s3://synthetic/{count}/{generation}"
    return str(folder / f"listing{generation}" / names[kind])


def _synthetic_or_real(uri: str) -> Store:
    return _SyntheticStore(uri) if uri.startswith("s3://synthetic") else open_store(uri)  # type: ignore[return-value]


def _plan(output: Store, version: Version, inventory: Inventory) -> Plan:
    plan = open_plan(output, version, inventory, PlanOptions())
    if plan is None:
        raise SystemExit("there should have been something to plan")
    return plan


def _peak_rss_mib() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1 << 20 if sys.platform == "darwin" else 1 << 10)


def main() -> None:
    """Run the table; prints one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--measure", nargs=3, metavar=("KIND", "OBJECTS", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        kind, count, folder = arguments.measure
        print(json.dumps(measure(kind, int(count), Path(folder))))
        return
    baseline, load = _peak_rss_mib(), os.getloadavg()[0]
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    print(f"{machine}; load {load:.1f} at the start; {baseline} MiB before any work", file=sys.stderr)
    heads = ("kind", "objects", "inventory", "plan 1", "CPU of both", "plan 2", "shards", "peak")
    print("{:14}{:>11}{:>11}{:>9}{:>12}{:>9}{:>8}{:>10}".format(*heads), file=sys.stderr)
    results = []
    for kind, count in itertools.product(arguments.kinds, arguments.objects):
        with tempfile.TemporaryDirectory(prefix="visionmill-bench-") as folder:
            for generation in (0, 1):
                write_listing(kind, Path(folder) / f"listing{generation}", count, generation)
            command = [sys.executable, "-m", "benchmarks.inventory_plan", "--measure", kind, str(count), folder]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(done.stdout)
        results.append(row)
        print(
            f"{kind:14}{count:>11,}{row['first_inventory_s']:>9.2f} s{row['first_plan_s']:>7.2f} s"
            f"{row['first_cpu_s']:>10.2f} s{row['second_plan_s']:>7.2f} s"
            f"{row['first_shards']:>8,}{row['peak_rss_mib']:>6} MiB",
            file=sys.stderr,
        )
    print(json.dumps({"benchmark": "inventory_plan", "baseline_rss_mib": baseline, "load": load, "results": results}))


if __name__ == "__main__":
    main()
