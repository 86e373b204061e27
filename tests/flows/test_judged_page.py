"""``visionmill evaluate --page``: what was measured stands on the page, the worst first, and nothing else is harmed."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra.store import open_store
from tests.flows.command import refused, visionmill
from tests.flows.page_models import CLASSES, EVIL, POINTS
from tests.tasks.products.landmarks.test_point_suspects import BOX, scene
from tests.tasks.report.test_report_browser import CHROMIUM, browse, requested_by_pages

Square = tuple[str, int, int]
"""Colour or class, x and y of a square of 16 pixels."""
SIDE, SQUARE = 64, 16
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "grey": (128, 128, 128)}
PICTURES: dict[str, tuple[Sequence[Square], Sequence[Square]]] = {  # what is painted, and what is labelled
    "right.png": ([("red", 4, 4)], [("cup", 4, 4)]),
    "other <b>.png": ([("red", 4, 4), ("green", 40, 40)], [(EVIL, 4, 4)]),
    "missed.png": ([("grey", 4, 4)], [("cup", 4, 4)]),
    "placed.png": ([("red", 4, 4)], [("cup", 12, 4)]),
}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One find is right, one of another class beside a thing that nobody labelled, one lacks, and one is off."""
    folder = tmp_path_factory.mktemp("squares")
    ids = {each.name: each.id for each in CLASSES}
    images, annotations = [], []
    for number, (name, (painted, labels)) in enumerate(PICTURES.items()):
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
        for colour, x, y in painted:
            pixels[y : y + SQUARE, x : x + SQUARE] = COLOURS[colour]
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
        for label, x, y in labels:
            corners = [x, y, x + SQUARE, y, x + SQUARE, y + SQUARE, x, y + SQUARE]
            annotations.append(
                {
                    "id": len(annotations), "image_id": number, "category_id": ids[label], "iscrowd": 0,
                    "bbox": [x, y, SQUARE, SQUARE], "area": SQUARE**2, "segmentation": [corners],
                }
            )  # fmt: skip
    return written(folder / "labels.json", images, annotations, [{"id": k, "name": name} for name, k in ids.items()])


def written(path: Path, images: Any, annotations: Any, categories: Any) -> Path:
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def judged(model: str, labels: Path, where: str | Path, *options: str) -> tuple[str, Mapping[str, Any]]:
    """The page, and what programs are told."""
    said = visionmill(
        "evaluate", f"tests.flows.page_models:{model}", labels, "--page", where, *options, "--json"
    ).summary
    folder, _, name = said["page"].rpartition("/")
    return open_store(folder).get(name).decode(), said


def rows_of(page: str) -> list[list[str]]:
    """The cells of all tables, as they are read."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [[html.unescape(re.sub("<svg.*?</svg>|<[^>]*>", "", cell)) for cell in
             re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)] for row in rows]  # fmt: skip


def captions(page: str) -> list[tuple[str, str]]:
    """(file, what is said) below each picture, in order."""
    found = re.findall(r'<bdi>(.*?)</bdi>.*?<span class="what">(.*?)</span>', page, re.DOTALL)
    return [(html.unescape(uri).rpartition("/")[2], html.unescape(words)) for uri, words in found]


@pytest.mark.parametrize("model", ["objects", "boxes", "corners"])
def test_of_objects_it_says_what_became_of_each_and_shows_wrong_images_only(
    model: str, labelled: Path, tmp_path: Path
) -> None:
    page, said = judged(model, labelled, tmp_path)
    assert said["page"] == f"{tmp_path}/evaluation.html" and said["metrics"]["images"] == 4
    assert (
        f"{next(iter(said['metrics'][said['metrics_group']].values())):.3f}" in page
        if "metrics_group" in said
        else True
    )
    table = {row[0]: row[1:7] for row in rows_of(page) if len(row) == 8}
    assert table["cup"] == ["3", "1", "0", "1", "1", "0"] and table[EVIL] == ["1", "0", "1", "0", "0", "1"]
    shown = captions(page)
    assert shown[0] == ("other <b>.png", "0 right, 1 missed, misplaced or of another class, 1 made up")
    assert {name for name, _ in shown[1:]} == {"missed.png", "placed.png"}
    assert page.count("data:image/webp") == 3 and EVIL not in page and html.escape(EVIL) in page


def test_images_of_a_group_are_drawn_together(labelled: Path, tmp_path: Path) -> None:
    said, rng = json.loads(labelled.read_text()), np.random.default_rng(0)
    for each in said["images"]:  # unlike each other, so that none is a near-duplicate
        Image.fromarray(rng.integers(0, 64, (SIDE, SIDE, 3), np.uint8)).save(tmp_path / each["file_name"])
    alone = written(tmp_path / "alone.json", said["images"], said["annotations"], said["categories"])
    named = [{**each, "group": f"place {each['id'] // 2}"} for each in said["images"]]
    in_two = written(tmp_path / "in_two.json", named, said["annotations"], said["categories"])
    for labels, options, groups in (
        (alone, (), "in 4 groups"),
        (in_two, (), "in 2 groups"),
        (in_two, ("--group-rule", "item"), "in 2 groups"),
        (alone, ("--group-rule", "folder"), "in 1 group<"),
    ):
        page, _ = judged("objects", labels, tmp_path / "groups.html", *options)
        assert groups in page
        assert ("no interval is known" in page) == (groups == "in 1 group<")
        assert ("each image is one" in page) == (groups == "in 4 groups")


def test_of_maps_it_says_what_is_taken_for_what(labelled: Path, tmp_path: Path) -> None:
    page, said = judged("maps", labelled, tmp_path / "maps.html")
    figures = said["metrics"]["semantic"]
    assert f">{figures['miou']:.3f}<" in page and "95 % interval" in page
    assert html.escape(f"{EVIL} → cup") in page and f"{EVIL} → background" not in html.unescape(page)
    assert captions(page)[0] == (
        "other <b>.png",
        f"0.88 of the pixels are right; 0.06 are background taken for {EVIL}",
    )
    assert "right.png" not in dict(captions(page))


def test_of_segments_it_shows_where_the_quality_is_lowest(labelled: Path, tmp_path: Path) -> None:
    page, said = judged("segments", labelled, tmp_path / "new" / "page.html")
    assert f">{said['metrics']['panoptic']['pq']:.3f}<" in page
    shown = dict(captions(page))
    assert shown["missed.png"] == "quality 0.00; 0 segments right, 1 missed, 0 made up" and "right.png" not in shown


@pytest.fixture(scope="module")
def dots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve objects; all heels are labelled 4 pixels to the left of where they are, and one middle is far off."""
    folder = tmp_path_factory.mktemp("dots")
    images, annotations = [], []
    for k in range(12):
        uri, xyv = scene(folder, k + 40, is_unsure=False)
        xyv[:, :2] -= 0.5  # COCO counts from the centres of pixels
        xyv[1, 0] -= 4
        if k == 7:
            xyv[2, :2] = (14, 34)
        x0, y0, x1, y1 = BOX
        images.append({"id": k, "file_name": uri, "width": SIDE, "height": SIDE})
        box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": 2304, "iscrowd": 0, "num_keypoints": 3}
        annotations.append({"id": k, "image_id": k, "category_id": 1, "keypoints": xyv.ravel().tolist(), **box})
    thing = {"id": 1, "name": "thing", "keypoints": list(POINTS.names)}
    return written(folder / "labels.json", images, annotations, [thing])


@pytest.fixture(scope="module")
def points_page(dots: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, Any]]:
    page = tmp_path_factory.mktemp("page") / "points.html"
    return page, judged("points", dots, page)[1]


def test_of_points_it_says_how_far_and_which_way_each_is_off(points_page: tuple[Path, Mapping[str, Any]]) -> None:
    page, said = points_page[0].read_text(), points_page[1]
    diagonal = np.hypot(48, 48)
    table = {row[0]: row[1:] for row in rows_of(page) if len(row) == 9 and row[0] != "Point"}
    assert {name: tuple(row[:2]) for name, row in table.items()} == dict.fromkeys(POINTS.names, ("12", "0"))
    (heel_x, heel_y), (tip_x, tip_y) = ([float(value) for value in table[name][-2:]] for name in ("heel", EVIL))
    assert heel_x - tip_x == pytest.approx(4 / diagonal, abs=0.005) and heel_y == pytest.approx(tip_y, abs=0.005)
    first = captions(page)[0]
    assert first[0] == "047.png" and re.fullmatch(r"mean error 0\.1\d; middle 0\.\d+, heel 0\.0\d, .*", first[1])
    figures = said["metrics"]["box_diagonal"]
    assert f"points: {figures['pck']:.3f} up to 0.1, area {figures['auc']:.3f}" in page
    assert f"objects, by their mean: {1 - figures['failure_rate']:.3f} up to 0.1" in page
    assert "By point" in page and EVIL not in page and page.count("data:image/webp") == 12


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_it_opens_in_a_browser_and_asks_nobody_for_anything(
    points_page: tuple[Path, Mapping[str, Any]], tmp_path: Path
) -> None:
    seen = browse(points_page[0], tmp_path, "--window-size=1280,1600", "--dump-dom")
    assert "CONSOLE" not in seen.stderr, seen.stderr
    assert requested_by_pages(tmp_path) == set() and "Largest errors" in seen.stdout


def test_a_page_is_written_anew_and_nothing_else_is_overwritten(labelled: Path, store_uri: str) -> None:
    store = open_store(store_uri)
    store.put("sub/page.html", b"<!doctype html>\n<title>mine</title>")
    words = ("evaluate", "tests.flows.page_models:objects", labelled, "--page")
    message = refused(2, *words, f"{store_uri}/sub/page.html")
    assert "is there already, and no page of evaluate" in message
    assert store.get("sub/page.html") == b"<!doctype html>\n<title>mine</title>"
    for _ in range(2):
        assert "Most wrong" in judged("objects", labelled, f"{store_uri}/sub")[0]
    assert {info.key for info in store.list("sub/")} == {"sub/page.html", "sub/evaluation.html"}
    assert "carries credentials" in refused(2, *words, "s3://key:secret@bucket/page.html")
