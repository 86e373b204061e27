"""The product ``landmarks``: rows, views, functions, exports, pictures and panels of objects whose points are known."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from infra.store import Store, open_store
from modelkit.carriers.landmarks import Landmarks
from modelkit.metrics.keypoints import object_keypoint_similarity
from tasks.labels.reading import read_label_set
from tasks.output.schema_docs import renewed
from tasks.output.views import describe_views, views_of
from tasks.products.landmarks.checks import check
from tasks.products.landmarks.overlay import LEFT, MIDDLE, RIGHT, overlay, surface_colours
from tasks.products.landmarks.panels import collect
from tasks.products.landmarks.rows import columns
from tasks.products.landmarks.schema import LANDMARKS
from tasks.products.landmarks.surfaces import surface_from_png
from tasks.report.export import export
from tasks.report.verify import verify
from tests.tasks.products.landmark_output import ABSENT, POINTS, SIZE_HW, Found, Place, commit, people, surface_at

A = ((20.0, 20.0), (23.0, 24.0), (20.0, 30.0))  # 3-4-5, and straight down
B = ((40.0, 30.0), (44.0, 30.0), ABSENT)


@pytest.fixture
def output(tmp_path: Path) -> Store:
    """Two people, nobody, a failed item; and two frames in which a person is followed."""
    store = open_store(str(tmp_path / "out"))
    found: dict[str | Place, Found] = {
        "s3://pictures/a.jpg": people(A, B, surfaces=True),
        "s3://pictures/b.jpg": people(),
        "s3://pictures/broken.jpg": None,
        ("s3://pictures/c.mp4", 0): people(A, tracks=True),
        ("s3://pictures/c.mp4", 1): people(B, tracks=True),
    }
    commit(store, found)
    return store


@pytest.fixture
def connection(output: Store) -> Iterator[duckdb.DuckDBPyConnection]:
    """The views of it."""
    views = views_of(output)
    yield views.connection
    views.connection.close()


def rows(connection: duckdb.DuckDBPyConnection, sql: str) -> list[tuple[Any, ...]]:
    return connection.sql(sql).fetchall()


class TestRows:
    def test_absent_points_are_null_and_models_without_points_say_nothing_of_them(self) -> None:
        made = columns([people(B), None, Landmarks.empty(SIZE_HW, 0), Landmarks.empty(SIZE_HW, 2)], {})
        assert {each.name: made[each.name].type for each in LANDMARKS} == {each.name: each.type for each in LANDMARKS}
        assert made["keypoints_xy"].to_pylist() == [[[[40, 30], [44, 30], None]], None, [], []]
        assert made["visibility"].to_pylist()[0] == [[2, 1, 0]]
        assert made["names"].to_pylist()[0] == ["class 1"]
        said = made["keypoint_set"].to_pylist()
        assert said[0] == {
            "names": ["nose", "left_hand", "right_hand"],
            "flip_pairs": [[1, 2]],
            "skeleton": [[0, 1], [0, 2]],
            "sigmas": [0.05, 0.1, 0.1],
        }
        assert (said[1], said[2], said[3]["names"]) == (None, None, ["point 1", "point 2"])

    def test_surfaces_come_back_to_the_last_bit(self, connection: duckdb.DuckDBPyConnection) -> None:
        found = rows(connection, "SELECT surface, surface_origin_xy FROM objects WHERE uri LIKE '%a.jpg'")
        for (data, origin), (x, y) in zip(found, ((20, 20), (40, 30)), strict=True):
            surface, wanted = surface_from_png(data, tuple(origin)), surface_at(x, y)
            assert surface.origin_xy == wanted.origin_xy
            assert (surface.parts == wanted.parts).all()
            assert (surface.uv == wanted.uv).all()

    def test_verify_has_nothing_to_say(self, output: Store) -> None:
        assert verify(output.uri, deep=True).problems == ()

    @pytest.mark.parametrize(
        ("column", "wrong", "said"),
        [
            ("scores", [0.5], "scores is not as long as labels"),
            ("scores", [0.5, 1.5], "scores outside"),
            ("visibility", [[2, 1], [2, 1, 0]], r"object 0: \[2, 3\] keypoints, 3 are named"),
            ("visibility", [[2, 1, 0], [2, 1, 0]], "object 0: a keypoint is absent in one"),
            ("visibility", [[2, 1, 7], [2, 1, 0]], r"object 0: visibility \[1, 2, 7\]"),
            ("keypoint_scores", [[0.5, 0.5, -1], [0, 0, 0]], "object 0: keypoint_scores"),
            ("surfaces", [b"no picture"] * 2, "object 0: a surface of 10 bytes is no PNG$"),
            (
                "keypoint_set",
                {"names": ["a", "a", "b"], "flip_pairs": [], "skeleton": [], "sigmas": []},
                "called alike",
            ),
        ],
    )
    def test_what_cannot_be_is_told(self, output: Store, column: str, wrong: Any, said: str) -> None:
        table = views_of(output).connection.sql("SELECT * FROM items WHERE uri LIKE '%a.jpg'").to_arrow_table()
        row = table.to_pylist()[0] | {column: wrong}
        problems = list(check(pa.Table.from_pylist([row], schema=table.schema)))
        assert re.search(said, problems[0]), problems
        assert all("row of 's3://pictures/a.jpg', frame 0" in each for each in problems)


class TestViews:
    def test_an_object_is_a_row_with_its_points_by_name(self, connection: duckdb.DuckDBPyConnection) -> None:
        sql = "SELECT object, name, x0, y1, points['left_hand'], points['tail'], track_id FROM objects"
        assert rows(connection, f"{sql} WHERE media = 'image' ORDER BY uri, object") == [
            (0, "person", 10.0, 30.0, [23.0, 24.0], None, None),
            (1, "person", 30.0, 40.0, [44.0, 30.0], None, None),
        ]

    def test_a_keypoint_is_a_row(self, connection: duckdb.DuckDBPyConnection) -> None:
        shown = "object, keypoint, name, x, y, round(score::DOUBLE, 3), visibility, visible, object_name"
        assert rows(connection, f"SELECT {shown} FROM keypoints WHERE uri LIKE '%a.jpg' ORDER BY ALL") == [
            (0, 0, "nose", 20.0, 20.0, 0.8, 2, True, "person"),
            (0, 1, "left_hand", 23.0, 24.0, 0.6, 1, False, "person"),
            (0, 2, "right_hand", 20.0, 30.0, 0.2, 2, True, "person"),
            (1, 0, "nose", 40.0, 30.0, 0.8, 2, True, "person"),
            (1, 1, "left_hand", 44.0, 30.0, 0.6, 1, False, "person"),
            (1, 2, "right_hand", None, None, 0.0, 0, False, "person"),
        ]

    def test_tracks_are_named_by_video_and_id(self, connection: duckdb.DuckDBPyConnection) -> None:
        sql = "SELECT track_id, list(points['nose'] ORDER BY frame) FROM objects WHERE media = 'video' GROUP BY 1"
        assert rows(connection, sql) == [(5, [[20.0, 20.0], [40.0, 30.0]])]

    def test_distance_and_angle_are_those_of_a_ruler(self, connection: duckdb.DuckDBPyConnection) -> None:
        nose, left, right = "points['nose']", "points['left_hand']", "points['right_hand']"
        sql = f"""SELECT keypoint_distance({nose}, {left}), keypoint_angle({left}, {nose}, {right}),
                         keypoint_angle({nose}, {nose}, {right}), keypoint_distance({nose}, {right})
                  FROM objects WHERE uri LIKE '%a.jpg' ORDER BY object"""
        first, second = rows(connection, sql)
        assert first == pytest.approx((5.0, np.degrees(np.arctan2(3, 4)), None, 10.0))
        assert second == (4.0, None, None, None)

    def test_oks_is_cocos(self, connection: duckdb.DuckDBPyConnection) -> None:
        [(own, other)] = rows(
            connection,
            "SELECT keypoint_oks(a.keypoints_xy, a.keypoints_xy, 400, a.keypoint_set.sigmas),"
            " keypoint_oks(a.keypoints_xy, b.keypoints_xy, 400, a.keypoint_set.sigmas) FROM objects a, objects b"
            " WHERE a.uri LIKE '%a.jpg' AND a.object = 0 AND b.uri LIKE '%a.jpg' AND b.object = 1",
        )
        assert own == 1
        true = np.array([[[40, 30, 2], [44, 30, 1], [0, 0, 0]]])
        found = np.array([A])
        wanted = object_keypoint_similarity(found, true, np.array([400]), np.zeros((1, 4)), POINTS.sigmas)
        assert other == pytest.approx(wanted[0, 0])
        [(near,)] = rows(connection, "SELECT keypoint_oks([[1, 0], NULL], [[0, 0], [9, 9]], 100, [0.1, 0.1])")
        assert near == pytest.approx(np.exp(-1 / (2 * 100 * 0.04)) / 2), "what was not found counts as 0"


def opened(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def average_precision(truth: COCO, found: list[dict[str, Any]]) -> float:
    """Of all object sizes over OKS .5 to .95."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(found), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(POINTS.sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


class TestExports:
    @pytest.fixture
    def coco(self, output: Store, tmp_path: Path) -> COCO:
        summary = export(output.uri, "coco", str(tmp_path / "keypoints.json"))
        assert (summary.num_items, summary.num_found, summary.num_skipped) == (4, 4, 1)
        return opened(tmp_path / "keypoints.json")

    def test_coco_has_points_from_centres_of_pixels_and_a_skeleton_from_1(self, coco: COCO) -> None:
        [category] = coco.loadCats([1])
        assert category["keypoints"] == list(POINTS.names)
        assert category["skeleton"] == [[1, 2], [1, 3]]
        assert category["flip_pairs"] == [["left_hand", "right_hand"]]
        second = coco.anns[2]
        assert second["keypoints"] == [39.5, 29.5, 2, 43.5, 29.5, 1, 0, 0, 0]
        assert (second["num_keypoints"], second["bbox"], second["area"]) == (2, [30, 20, 20, 20], 400)
        assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == ["person", "dog"]

    def test_pycocotools_evaluates_it_by_oks(self, coco: COCO) -> None:
        found = list(coco.anns.values())
        assert average_precision(coco, [dict(each) for each in found]) == pytest.approx(1)
        moved = [
            {**each, "keypoints": [v + 3 * (k % 3 == 0) for k, v in enumerate(each["keypoints"])]} for each in found
        ]
        assert average_precision(coco, moved) < 0.6

    def test_csv_has_a_line_for_each_keypoint(self, output: Store, tmp_path: Path) -> None:
        assert export(output.uri, "csv", str(tmp_path / "points.csv")).num_found == 4
        table = pd.read_csv(tmp_path / "points.csv")
        assert len(table) == 12
        assert table.name.tolist()[:3] == list(POINTS.names)
        assert table[["x", "y"]].to_numpy()[:2].tolist() == [[20, 20], [23, 24]]
        assert table.x.isna().sum() == 2

    def test_label_studio_has_a_rectangle_with_its_points(self, output: Store, tmp_path: Path) -> None:
        export(output.uri, "label_studio", str(tmp_path / "tasks.json"))
        tasks = json.loads((tmp_path / "tasks.json").read_text())
        assert [len(task["predictions"][0]["result"]) for task in tasks] == [4 + 3, 0, 4, 3]
        box, nose, *_ = tasks[0]["predictions"][0]["result"]
        assert box["value"]["rectanglelabels"] == ["person"]
        assert (box["value"]["x"], box["value"]["height"]) == pytest.approx((100 * 10 / 64, 100 * 20 / 48))
        assert (nose["parentID"], nose["value"]["keypointlabels"]) == (box["id"], ["nose"])
        assert (nose["value"]["x"], nose["value"]["y"]) == pytest.approx((100 * 20 / 64, 100 * 20 / 48))
        assert tasks[2]["data"] == {"image": "s3://pictures/c.mp4", "frame": 0}

    def test_what_is_exported_is_read_as_labels_again(self, output: Store, tmp_path: Path) -> None:
        """As COCO, and as a person's annotations who took all of Label Studio's predictions over, but for one point."""
        export(output.uri, "coco", str(tmp_path / "keypoints.json"), where="uri LIKE '%a.jpg'")
        export(output.uri, "label_studio", str(tmp_path / "tasks.json"), where="uri LIKE '%a.jpg'")
        tasks = json.loads((tmp_path / "tasks.json").read_text())
        for number, task in enumerate(tasks):
            regions = json.loads(json.dumps(task["predictions"][0]["result"]))
            for region in regions[1:2]:  # the first one's nose
                region["value"]["x"] += 1
                region["origin"] = "prediction-changed"
            task |= {"id": number, "annotations": [{"id": number, "result": regions}]}
        (tmp_path / "taken.json").write_text(json.dumps(tasks))
        by_coco, by_people = (
            read_label_set(str(tmp_path / name), allow_dropped=True) for name in ("keypoints.json", "taken.json")
        )
        assert by_coco.points == POINTS
        wanted: Any = [[[*xy, v] for xy, v in zip(A, (2, 1, 2), strict=True)], [[40, 30, 2], [44, 30, 1], [0, 0, 0]]]
        [found, *_] = by_coco.table["keypoint_xyv"].to_pylist()
        assert np.allclose(found, wanted)
        assert by_people.points is not None and by_people.points.names == ("left_hand", "nose", "right_hand")
        [first, second] = by_people.table["keypoint_xyv"].to_pylist()[0]
        assert np.allclose(np.array(first)[:, :2], [A[1], (A[0][0] + 0.64, A[0][1]), A[2]])
        assert np.allclose(second, [[44, 30, 2], [40, 30, 2], [0, 0, 0]])
        [sources, *_] = by_people.table["sources"].to_pylist()
        assert sources[1] == "model", "nobody has changed it"

    def test_least_scores_narrow_objects_and_their_points_alike(self, output: Store, tmp_path: Path) -> None:
        assert export(output.uri, "csv", str(tmp_path / "sure.csv"), min_score=0.8).num_found == 3
        assert len(pd.read_csv(tmp_path / "sure.csv")) == 9


class TestDocs:
    """docs/landmarks.md: its columns are the schema's, its queries run, its views are as it says."""

    TEXT = (Path(__file__).parents[3] / "docs" / "landmarks.md").read_text()

    def test_the_columns_are_those_of_the_schema(self) -> None:
        assert renewed(self.TEXT) == self.TEXT, "run: python -m tasks.output.schema_docs docs/landmarks.md"

    def test_every_query_runs(self, connection: duckdb.DuckDBPyConnection) -> None:
        queries = re.findall(r"```sql\n(.*?)```", self.TEXT, re.DOTALL)
        assert len(queries) == 5
        answers = [rows(connection, query) for query in queries]
        assert [len(each) for each in answers[1:2] + answers[3:]] == [3, 1, 1]
        assert answers[3][0][3] == pytest.approx(np.hypot(20, 10) / 0.1), (
            "the nose goes from A to B in a tenth of a second"
        )

    def test_the_views_are_described_as_they_are(self, output: Store) -> None:
        views = describe_views(views_of(output))
        for name in ("objects", "keypoints"):
            described = re.search(rf"^\| `{name}` \|.*\| `(.*?)` \|$", self.TEXT, re.MULTILINE)
            assert described is not None
            assert described[1].split(", ") == views[name]


class TestPictures:
    def row(self, output: Store, **changed: Any) -> dict[str, Any]:
        table = views_of(output).connection.sql("SELECT * FROM items WHERE uri LIKE '%a.jpg'").to_arrow_table()
        return table.to_pylist()[0] | changed

    def test_points_have_the_colour_of_their_side_and_unsure_ones_are_rings(self, output: Store) -> None:
        row = self.row(output, surfaces=None)
        row["visibility"], row["keypoint_scores"] = [[2, 2, 2], [2, 2, 0]], [[0.9, 0.9, 0.1], [0.9, 0.9, 0]]
        picture = overlay(np.zeros((*SIZE_HW, 3), np.uint8), row, long_side_px=512)
        assert picture.shape == (384, 512, 3)
        for (x, y), colour in zip(A[:2], (MIDDLE, LEFT), strict=True):
            assert tuple(picture[int(y * 8), int(x * 8)]) == colour
        around = picture[int(A[2][1] * 8) - 5 : int(A[2][1] * 8) + 6, int(A[2][0] * 8)]
        assert (np.abs(around.astype(int) - RIGHT).sum(-1) < 40).any(), "the ring"

    def test_surfaces_are_painted_where_they_lie(self, output: Store) -> None:
        row = self.row(output, keypoint_set=None, labels=[], names=[], scores=[], boxes_xyxy=[])
        picture = overlay(np.zeros((*SIZE_HW, 3), np.uint8), row, long_side_px=64)
        wanted = surface_at(20, 20)
        inside = wanted.parts > 0
        shown = picture[20:24, 20:26]
        assert (shown.any(-1) == inside).all()
        colours = surface_colours(wanted.parts, wanted.uv)
        assert np.abs(shown[inside] - 0.65 * colours[inside]).max() <= 1
        assert picture[:, :20].max() == 0

    def test_the_report_counts_points_by_name(self, output: Store) -> None:
        facts = collect(views_of(output))
        assert (facts.objects, facts.ok_items, facts.empty_items, facts.tracks) == (4, 4, 1, 1)
        assert [(each.name, each.present, each.absent) for each in facts.keypoints] == [
            ("nose", 4, 0), ("left_hand", 4, 0), ("right_hand", 2, 2),
        ]  # fmt: skip
        assert facts.keypoints[0].mean_score == pytest.approx(0.8)
        assert facts.histogram[16] == 4, "of the noses"
        assert facts.per_item == (("0", 1), ("1", 2), ("2", 1))
