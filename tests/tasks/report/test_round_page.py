"""The report of a loop says what the tables say, shows what was decided, and is whole when its sources are gone."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from flows.cli.app import make_app
from infra.store import Store, open_store
from tasks.loop.audits import audit_table
from tasks.loop.calibration import fit_calibration
from tasks.loop.champion import Model, promote, record_candidate
from tasks.loop.differences import SURE, items_to_compare, sure_of_candidate, sure_of_champion
from tasks.loop.disagreements import find_disagreements, write_disagreements
from tasks.loop.gate import Criterion, Verdict
from tasks.loop.kinds import loop_kind
from tasks.loop.schemas import AUDITS, MODELS, PSEUDO_IMAGES, PSEUDO_LABELS, ROUNDS, THRESHOLD_SETS, VERDICTS
from tasks.loop.selection import Selection, select
from tasks.loop.splits import DEFAULT_SHARES, labelled_rows, split_groups, store_manifest
from tasks.output.tables import append, table_of
from tasks.products.segments.matching import match_candidates
from tasks.report import charts
from tasks.report.round_page import write_loop_report
from tests.tasks.loop.rows import candidate, candidates, identity, thresholds
from tests.tasks.loop.scenes import CLASSES, SIZE_HW, label_set, picture, rectangle, write
from tests.tasks.report.test_report_browser import CHROMIUM, browse, requested_by_pages

NOW = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)
METRICS = {"mask": {"ap": 0.61, "ap50": 0.9, "by_class": {"disc": 0.61}}}
EVIL = "<script>alert(1)</script>"


def history(*, pseudo: bool) -> list[dict[str, float]]:
    points = []
    for step in range(10, 101, 10):
        point = {"step": step, "class": 2 / step, "mask": 1.0, "norm": 3.0, "rate": 0.1}
        points.append(point | ({"unlabelled_mask": 0.25} if pseudo and step > 20 else {}))
    return points


def decide(folder: Path, run_id: str = "run-1") -> Selection:
    """Eight pictures: on each an accepted disc, an ignored one, and a rejected box of a class with a hostile name."""
    images = [write(folder, f"u{k}.png", picture(k, SIZE_HW)) for k in range(8)]
    rows = []
    for k, image in enumerate(images):
        rows += [
            candidate(image, 0, 0.8 + k / 100, [4, 4, 24, 24], run_id=run_id),
            candidate(image, 1, 0.5, [30, 10, 50, 40], run_id=run_id),
            candidate(image, 2, 0.1, [2, 30, 20, 46], label=2, name=EVIL, run_id=run_id),
        ]
    listed = [{"image_id": name, "uri": name, "group_id": name, "status": "ok"} for name in images]
    return select(candidates(rows), listed, thresholds=sets(), scores=identity(), quality=identity())


def sets():  # type: ignore[no-untyped-def]
    return thresholds({1: 0.7, 2: 0.7})


def record_round(
    store: Store,
    found: Selection,
    *,
    run_id: str = "run-1",
    hours: int = 0,
    passed: bool = False,
    metrics: dict[str, Any] = METRICS,
) -> Verdict:
    """All that a round leaves for its report."""
    number = 1
    labels = label_set([(f"g{k}", 1, [1]) for k in range(12)])
    items = labelled_rows(labels, split_groups(labels, DEFAULT_SHARES, salt="s"), None)
    manifest = store_manifest(
        store, items, label_set_id=labels.label_set_id, class_map_sha256="c", salt="s", shares=DEFAULT_SHARES,
        leakage={"sha256 vs gate": 3},
    )  # fmt: skip
    kind = found.labels["kind"][0].as_py()
    append(store, PSEUDO_LABELS, found.labels, round_number=number, kind=kind)
    append(store, PSEUDO_IMAGES, found.images, round_number=number, kind=kind)
    append(store, THRESHOLD_SETS, sets().to_table())
    models = []
    for role, name in (("teacher", "teacher@1"), ("student", "student@2"), ("baseline", "baseline@3")):
        weights = {"lineage": {"history": history(pseudo=role == "student")}}
        store.put(f"weights/{role}.json", json.dumps(weights).encode())
        models.append(
            {"model_id": name, "weights_sha256": "aa" * 32, "weights_uri": store.uri_of(f"weights/{role}.safetensors"),
             "role": role, "kind": "instance", "run_id": run_id, "round": number, "seed": 1, "code_commit": "c0ffee",
             "class_map_sha256": "c", "created_at": NOW}
        )  # fmt: skip
    append(store, MODELS, table_of(MODELS, models))
    criteria = (
        Criterion("better: gain over the champion", 0.05, ">=", 0.003),
        Criterion("calibration: D-ECE", 0.2, "<=", 0.1),
        Criterion("audit: labels looked at", None, ">=", 103, "too few"),
    )
    criteria = criteria[:1] if passed else criteria
    verdict = Verdict(run_id, number, None if passed else "teacher@1", "student@2", criteria, NOW)
    append(store, VERDICTS, verdict.to_table())
    model = Model("student@2", store.uri_of("weights/student.safetensors"), "aa" * 32, run_id, number)
    record_candidate(store, verdict, model, needs_approval=passed, at=NOW)
    looked = {name: k > 0 for k, name in enumerate(found.accepted["label_id"].to_pylist()[:5])}
    append(store, AUDITS, audit_table(found.accepted, looked, train_set_id="set-1", reviewers=["ann"]))
    record = {
        "run_id": run_id, "round": number, "kind": kind, "champion_in": "teacher@1", "champion_out": "teacher@1",
        "candidate_id": "student@2", "splits_manifest_sha256": manifest.manifest_sha256, "leakage_report": "{}",
        "train_set_id": "set-1", "threshold_set_id": sets().threshold_set_id, "n_human": 6,
        "n_pseudo": found.accepted.num_rows, "accept_rate": 1 / 3, "training": json.dumps({"loop": {"steps": 100}}),
        "augmentation": "{}", "seeds": [1], "environment": "{}", "metrics_gate": json.dumps(metrics),
        "metrics_baseline": json.dumps(metrics), "verdict_id": verdict.verdict_id, "promoted": False, "looks_used": 1,
        "alpha_spent": 0.0167, "finished_at": NOW + dt.timedelta(hours=hours),
        "code_commit": "c0ffee",
    }  # fmt: skip
    append(store, ROUNDS, table_of(ROUNDS, [record]))
    return verdict


def shifted(found: Selection) -> pa.Table:
    """The accepted objects as another model sees them: each a good way to the right."""
    rows = [{**row, "rle": rectangle(30, 4, 50, 24), "teacher_model_id": "student@2"}
            for row in found.accepted.to_pylist()]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=found.accepted.schema)


@pytest.fixture
def loop(store_uri: str, tmp_path: Path) -> Store:
    store = open_store(store_uri)
    found = decide(tmp_path / "pictures")
    record_round(store, found)
    exported = find_disagreements(found.accepted, shifted(found), at_most=5)
    write_disagreements(store, exported, loop_kind("instance"), "run-1", 1)
    return store


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[str] = []
        self.text = ""
        self.feed(text)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if tag == "a" else []
        self.images += [values["src"]] if tag == "img" else []

    def handle_data(self, data: str) -> None:
        self.text += "" if self.tags[-1:] == ["style"] else data


def page_of(store: Store, key: str = "report/rounds/run-1-0001.html") -> Page:
    return Page(store.get(key).decode())


def test_the_page_of_a_round_says_what_the_tables_say(loop: Store) -> None:
    written = write_loop_report(loop.uri)
    assert written.index_uri == loop.uri_of("report/index.html")
    page = page_of(loop)
    assert "script" not in page.tags, "names from data are text"
    for wanted in (
        "Round 1 of", "refused", "1 of 3", "accepted 8", "ignored 8", "rejected 8", EVIL,  # counts by class and reason
        "certified", "below t lo", "calibration: D-ECE", "<= 0.1", "not measured", "too few",  # the gate
        "champion 0.560, baseline 0.610", "0.800", "ann", "sha256 vs gate", "disc",  # reached: 4 of 5 are right
        "8 accepted labels teach their class, 8 the box, 8 the mask.",
    ):  # fmt: skip
        assert wanted in page.text, wanted
    assert len(page.ids) == len(set(page.ids)), "an address leads to one place"
    assert all(each.startswith("data:image/webp;base64,") for each in page.images)
    assert len(page.images) == 4 * 6 + 5, "four galleries of decisions, one of disagreements"


def test_the_index_leads_to_every_round_and_a_round_to_its_disagreements(loop: Store, tmp_path: Path) -> None:
    record_round(loop, decide(tmp_path / "pictures", "run-2"), run_id="run-2", hours=1)
    write_loop_report(loop.uri, samples=0, last_only=True)
    pages = [info.key for info in loop.list("report/rounds/")]
    assert pages == ["report/rounds/run-2-0001.html"], "what was written when earlier rounds ended stays as it is"
    write_loop_report(loop.uri, samples=0)
    links = page_of(loop, "report/index.html").links
    assert links == ["rounds/run-2-0001.html", "rounds/run-1-0001.html"]
    first = page_of(loop)
    exported = [link for link in first.links if link.startswith("../../")]
    assert len(exported) == 3 and not first.images
    for link in exported:
        assert loop.get(link.removeprefix("../../"))
    assert "agree on everything" in page_of(loop, "report/rounds/run-2-0001.html").text


def test_pictures_whose_source_is_gone_say_so(loop: Store, tmp_path: Path) -> None:
    for path in (tmp_path / "pictures").iterdir():
        path.unlink()
    write_loop_report(loop.uri)
    page = page_of(loop)
    assert not page.images and "No picture" in page.text and "accepted 8" in page.text


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_pages_open_in_a_browser_without_a_message_and_without_a_request(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "loop"))
    found = decide(tmp_path / "pictures")
    record_round(store, found)
    exported = find_disagreements(found.accepted, shifted(found), at_most=5)
    write_disagreements(store, exported, loop_kind("instance"), "run-1", 1)
    write_loop_report(store.uri)
    seen = browse(tmp_path / "loop" / "report" / "rounds" / "run-1-0001.html", tmp_path, "--dump-dom")
    assert "CONSOLE" not in seen.stderr, seen.stderr
    assert requested_by_pages(tmp_path) == set()
    assert "Precision, promised and reached" in seen.stdout


def test_the_command_writes_the_report_of_a_loop(loop: Store) -> None:
    done = CliRunner().invoke(make_app(), ["report", loop.uri, "--samples", "0"])
    assert done.exit_code == 0, done.output
    assert "Round 1" in page_of(loop, "report/index.html").text


def test_a_semantic_round_is_counted_in_pixels(store_uri: str, tmp_path: Path) -> None:
    store = open_store(store_uri)
    image = write(tmp_path / "pictures", "u.png", picture(3, SIZE_HW))
    regions = [
        candidate(image, 0, 0.9, [0, 0, 20, 40], kind="semantic", tta_spec='["0.75x", "hflip"]'),
        candidate(image, 1, 0.5, [20, 0, 23, 41], kind="semantic", tta_spec='["0.75x", "hflip"]'),
    ]
    listed = [{"image_id": image, "uri": image, "group_id": image, "status": "ok"}]
    found = select(candidates(regions), listed, thresholds=sets(), scores=identity())
    record_round(store, found, metrics={"task": "semantic", "semantic": {"miou": 0.5, "by_class": {"disc": 0.5}}})
    write_loop_report(store.uri, samples=0)
    page = page_of(store).text
    for wanted in ("Pixels accepted", "of 923 pixels on 1 items", "accepted 800", "ignored 123", "mean IoU",
                   "1 accepted regions", "at the plain view and at 0.75x, hflip"):  # fmt: skip
        assert wanted in page, wanted
    assert "1 regions" in page_of(store, "report/index.html").text, "of what the student was trained on"


def test_a_candidate_that_a_person_promoted_later_is_told_as_promoted(store_uri: str, tmp_path: Path) -> None:
    store = open_store(store_uri)
    verdict = record_round(store, decide(tmp_path / "pictures"), passed=True)
    write_loop_report(store.uri, samples=0)
    assert "waiting" in page_of(store, "report/index.html").text
    promote(store, verdict.verdict_id, approver="ann", reason="looked at it", at=NOW)
    write_loop_report(store.uri, samples=0)
    text = page_of(store, "report/index.html").text
    assert "waiting" not in text and "looked at it" in text


def test_curves_keep_their_scale_and_leave_gaps() -> None:
    svg = charts.lines("Loss", [("labelled", "red", [(0, 1.5), (50, math.nan), (100, 0.0)])])
    assert svg.count("<polyline") == 2
    assert ">2<" in svg and ">0.5<" in svg, "quarters of the next round number"
    assert "labelled from 1.5 to 0" in svg
    assert "no values" in charts.lines("Loss", [("labelled", "red", [])])


def test_both_models_are_asked_for_what_they_are_sure_of(tmp_path: Path) -> None:
    found = decide(tmp_path)
    items = items_to_compare(found, CLASSES, 6)
    assert len(items) == 6
    assert items.table.equals(items_to_compare(found, CLASSES, 6).table), "the same items each time"
    mine = sure_of_champion(found, items)
    assert set(mine["image_id"].to_pylist()) == set(items.table["image_id"].to_pylist())
    assert min(mine["score_calibrated"].to_pylist()) >= SURE

    labels = label_set([("g", 40, [1])])  # truth at 4 i, 2, 4 i + 4, 8
    names = labels.table["image_id"].to_pylist()
    right = [candidate(name, 0, 0.9, [0, 2, 4, 8]) for name in names]
    wrong = [candidate(name, 1, 0.3, [40, 20, 60, 40]) for name in names]
    on_items = candidates([candidate("x", 0, 0.9, [0, 0, 9, 9]), candidate("x", 1, 0.3, [20, 20, 40, 40])])
    calibration = fit_calibration(match_candidates(candidates(right + wrong), labels.table))
    sure = sure_of_candidate(on_items, calibration)
    assert [(row["seq"], row["score_calibrated"]) for row in sure.to_pylist()] == [(0, 1.0)], "calibrated, then cut"
    assert sure_of_candidate(on_items, None).num_rows == 0, "who finds nothing on held-out labels is sure of nothing"
