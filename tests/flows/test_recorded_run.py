"""One run as in production: a bucket, workers in Ray, recorded by Prefect; and what of it must be found nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from infra.seaweedfs import S3Endpoint
from infra.store import open_store
from tests.flows.command import DIGITS, ask, end, start
from tests.flows.deployments import prefect_client
from tests.flows.scenes import put_scenes
from tests.videos import make_video

pytestmark = [pytest.mark.s3, pytest.mark.prefect, pytest.mark.ray, pytest.mark.timeout(600)]


def flow_runs(api_url: str, output: str) -> list[dict[str, Any]]:
    """The runs that Prefect has on record for an output, oldest first."""
    with prefect_client(api_url) as api:
        query = {"flows": {"name": {"any_": ["segment-dataset"]}}, "sort": "START_TIME_ASC", "limit": 100}
        found = api.post("/flow_runs/filter", json=query).raise_for_status().json()
        runs = [run for run in found if run["parameters"]["parameters"]["output"] == output]
        for run in runs:
            logs = api.post("/logs/filter", json={"logs": {"flow_run_id": {"any_": [run["id"]]}}, "limit": 200})
            run["logs"] = logs.raise_for_status().json()
            query = {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}, "limit": 50}
            found = api.post("/artifacts/filter", json=query).raise_for_status().json()
            run["artifacts"] = {artifact["key"]: artifact for artifact in found}
        return runs


def test_a_run_on_ray_recorded_by_prefect_a_rerun_and_a_refusal_and_no_secret_anywhere(
    s3_server: S3Endpoint, s3_bucket: str, prefect_api: str, services_dir: Path
) -> None:
    source, output = f"{s3_bucket}/in", f"{s3_bucket}/out"
    store = open_store(source)
    put_scenes(store, 6)
    store.put("clip.mp4", make_video("mp4", "libx264", frames=8))
    store.put("broken.jpg", b"this was never an image\n")
    command = ("segment", source, output, "--workers", "2", "--shard-items", "3", "--compile", "off", "--json", *DIGITS)

    first = end(start(*command))
    assert len(first.stdout.splitlines()) == 1, "stdout is for programs"
    assert (first.summary["items"]["ok"], first.summary["items"]["failed"]) == (14, 1)
    assert first.summary["shards"]["committed_here"] >= 3
    assert "14 ok, 1 failed" in first.stderr
    assert open_store(output).get("report/index.html")
    second = end(start(*command))
    assert second.summary["outcome"] == "nothing_to_do"
    third = end(start(*command, "--score-threshold", "0.5"), exit_code=1)
    assert "score_threshold: 0.05 here, 0.5 asked for" in third.summary["error"]
    assert third.stderr.count("\nerror: ") == 1

    runs = flow_runs(prefect_api, output)
    assert [run["state_type"] for run in runs] == ["COMPLETED", "COMPLETED", "FAILED"]
    assert ask(output, "SELECT count(*) AS n FROM items") == [{"n": 15}]
    told, shown = runs[0], runs[0]["artifacts"]
    assert told["name"].startswith("segment ") and told["name"].endswith("/in into " + "/".join(output.split("/")[-2:]))
    assert set(told["tags"]) == {"segments", "model: digitscape_mask_rcnn"}
    assert told["state"]["message"].startswith("14 ok, 1 failed, 0 quarantined in ")
    assert f"({first.summary['items_per_s']:.1f} items/s)" in told["state"]["message"] and "items/s)" in first.stderr
    assert f"/runs/flow-run/{told['id']}\n" in first.stderr.partition("visionmill ui ")[2], "to be copied"
    assert f"Beginning flow run '{told['name']}'" in first.stderr, "no name of Prefect's own before"
    by_class = json.loads(shown["found"]["data"])
    found = ask(output, "SELECT name, count(*) AS n FROM instances WHERE score >= 0.5 GROUP BY name")
    assert {each["name"]: each["n"] for each in by_class} == {each["name"]: each["n"] for each in found}
    [failure] = json.loads(shown["failures"]["data"])
    assert (failure["error_type"], failure["items"]) == ("NotAnImage", 1)
    assert f"{output}/report/index.html" in shown["report"]["data"]
    assert (shown["visionmill-progress"]["data"], shown["visionmill-progress"]["description"]) == (100.0, "done")
    assert any("opened plan 1: " in line["message"] for line in told["logs"])

    secret = s3_server.secret_key
    spoken = {
        f"stdout and stderr of run {i}": said.stdout + said.stderr for i, said in enumerate((first, second, third))
    }
    recorded = {"Prefect's runs and their logs": str(runs)}
    results = open_store(output)
    written = {info.key: results.get(info.key) for info in results.list()}
    rows = {key: str(pq.read_table(results.open(key)).to_pylist()) for key in written if key.endswith(".parquet")}
    kept = {str(path): path.read_bytes() for path in (services_dir / "prefect").rglob("*") if path.is_file()}
    kept |= {str(path): path.read_bytes() for path in services_dir.rglob("*.log")}
    assert any(key.startswith("_runs/") for key in written) and rows
    assert any(name.endswith(".db") for name in kept)
    for name, text in (spoken | recorded | rows).items():
        assert secret not in text, name
    for name, data in (written | kept).items():
        assert secret.encode() not in data, name
