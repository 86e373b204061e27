from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.ndimage import gaussian_filter, label
from skimage import draw

from infra.errors import UsageError
from infra.store import Store, open_store
from modelkit.rle import encode, to_polygons
from tasks.output.runs import RunRecord, write_run
from tasks.output.views import views_of
from tasks.products.segments.export_flat import write_flat
from tasks.products.segments.export_yolo import data_yaml, joined, label_lines
from tasks.report.export import export
from tests.tasks.output.fake_output import FakeOutput, Item, masks_of


@pytest.fixture
def taken(store_uri: str) -> FakeOutput:
    """A filled output in a folder and in a bucket; exports go beside it."""
    output = FakeOutput(open_store(f"{store_uri}/out"))
    items = [Item(f"s3://pictures/{index:02d}.jpg", size_hw=(48, 64)) for index in range(5)]
    items += [Item("s3://pictures/clips/a.mp4", frame=frame, pts_s=frame / 4, track=True) for frame in range(2)]
    items += [Item("s3://pictures/broken.jpg", status="failed"), Item("s3://pictures/none.jpg", num_instances=0)]
    output.commit(items, num_shards=3)
    output.commit([Item("s3://pictures/00.jpg", etag="e2", num_instances=1)])
    return output


def opened(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


class TestCoco:
    @pytest.fixture
    def coco(self, taken: FakeOutput, store_uri: str, tmp_path: Path) -> COCO:
        summary = export(taken.store.uri, "coco", f"{store_uri}/exports/pre dictions.json")
        assert (summary.num_items, summary.num_found, summary.num_skipped, summary.files) == (8, 19, 1, 1)
        path = tmp_path / "copy.json"
        path.write_bytes(open_store(store_uri).get("exports/pre dictions.json"))
        return opened(path)

    def test_opens_in_pycocotools_with_masks_that_are_the_pixels(self, coco: COCO) -> None:
        assert len(coco.imgs) == 8
        assert len(coco.anns) == 19
        for image in coco.imgs.values():
            item = Item(image["uri"], frame=image.get("frame", 0))
            wanted = masks_of(item)
            for index, annotation in enumerate(coco.imgToAnns[image["id"]]):
                assert (coco.annToMask(annotation).astype(bool) == wanted[index]).all()
                assert annotation["area"] == wanted[index].sum()
                ys, xs = np.nonzero(wanted[index])
                box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
                assert annotation["bbox"] == box
                assert annotation["iscrowd"] == 0

    def test_names_are_relative_and_frames_have_their_own(self, coco: COCO) -> None:
        names = [image["file_name"] for image in coco.imgs.values()]
        assert names == [*(f"0{n}.jpg" for n in range(5)), "clips/a.mp4/000000.jpg", "clips/a.mp4/000001.jpg",
                         "none.jpg"]  # fmt: skip
        assert [image["pts_s"] for image in coco.imgs.values() if "pts_s" in image] == [0.0, 0.25]

    def test_predictions_score_perfectly_against_themselves(self, coco: COCO) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(coco, coco.loadRes(list(coco.anns.values())), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1.0)

    def test_tracks_are_kept(self, coco: COCO) -> None:
        clip = next(image for image in coco.imgs.values() if "frame" in image)
        assert [annotation["track_id"] for annotation in coco.imgToAnns[clip["id"]]] == [1, 2, 3]


def test_coco_is_the_same_file_each_time(filled: FakeOutput, tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        export(filled.store.uri, "coco", str(tmp_path / name))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_categories_are_the_models_classes_also_those_never_found(filled: FakeOutput, tmp_path: Path) -> None:
    export(filled.store.uri, "coco", str(tmp_path / "c.json"))
    categories = json.loads((tmp_path / "c.json").read_text())["categories"]
    assert [(each["id"], each["name"]) for each in categories] == [(0, "disc"), (1, "box"), (2, "sky"), (3, "moon")]


class TestYolo:
    @pytest.fixture
    def labels(self, taken: FakeOutput, store_uri: str) -> Store:
        summary = export(taken.store.uri, "yolo", f"{store_uri}/exports/yolo")
        assert (summary.num_items, summary.num_found, summary.num_skipped, summary.files) == (8, 19, 1, 10)
        return open_store(f"{store_uri}/exports/yolo")

    def test_every_item_has_a_label_file_named_as_its_image(self, labels: Store) -> None:
        assert sorted(info.key for info in labels.list()) == [
            "data.yaml",
            "images.csv",
            *(f"labels/0{n}.txt" for n in range(5)),
            "labels/clips/a.mp4/000000.txt",
            "labels/clips/a.mp4/000001.txt",
            "labels/none.txt",
        ]
        table = pd.read_csv(io.BytesIO(labels.get("images.csv")))
        assert table.to_dict("records")[5] == {
            "label_file": "labels/clips/a.mp4/000000.txt",
            "uri": "s3://pictures/clips/a.mp4",
            "frame": 0,
        }

    def test_polygons_give_the_masks_again(self, labels: Store) -> None:
        lines = labels.get("labels/03.txt").decode().splitlines()
        for line, mask in zip(lines, masks_of(Item("s3://pictures/03.jpg")), strict=True):
            polygon = np.array([float(value) for value in line.split()[1:]]).reshape(-1, 2) * [64, 48]
            drawn = coco_mask.decode(coco_mask.frPyObjects([polygon.reshape(-1).tolist()], 48, 64))[..., 0].astype(bool)
            assert (drawn == mask).mean() > 0.99

    def test_an_image_without_instances_has_an_empty_label_file(self, labels: Store) -> None:
        assert labels.get("labels/none.txt").decode().split() == []


def test_yolo_labels_of_images_that_differ_in_extension_only_do_not_collide(output: FakeOutput, tmp_path: Path) -> None:
    output.commit([Item("d/x.jpg"), Item("d/x.png"), Item("d/y.jpg"), Item("d/../d/y.jpg"), Item("d//y.jpg")])
    export(output.store.uri, "yolo", str(tmp_path / "yolo"))
    names = pd.read_csv(tmp_path / "yolo/images.csv").label_file.tolist()
    assert len(set(names)) == 5
    assert {"labels/x.jpg.txt", "labels/x.png.txt", "labels/y.txt"} <= set(names)
    assert all((tmp_path / "yolo" / name).is_file() for name in names)


def blobs(rng: np.random.Generator) -> np.ndarray:
    """A random mask of smooth shapes, with holes and thin places, in a picture of any size."""
    size = rng.integers(8, 100, 2)
    field = gaussian_filter(rng.normal(size=size), rng.uniform(0.6, 5))
    return np.asarray(field > np.quantile(field, rng.uniform(0.3, 0.95)))


def as_trainers_fill(points: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """What ``cv2.fillPoly`` does with int32 points, as Ultralytics calls it: what they enclose, and the outline."""
    whole = points.astype(np.int32)
    filled = draw.polygon2mask(size_hw, whole[:, ::-1])
    for (x0, y0), (x1, y1) in zip(whole, np.roll(whole, -1, axis=0), strict=True):
        filled[draw.line(y0, x0, y1, x1)] = True
    return np.asarray(filled, bool)


def test_outlines_give_the_masks_again_to_trainers_and_to_coco() -> None:
    """A line of YOLO is text, then float32; masks of one part with any number of holes come back whole."""
    rng = np.random.default_rng(0)
    pieces = 0
    for _ in range(60):
        mask = blobs(rng)
        parts, _ = label(mask)  # pieces touch along edges
        for number in range(1, parts.max() + 1):
            part = parts == number
            height, width = part.shape
            row = {"height": height, "width": width, "labels": [7], "rles": [encode(part)], "boxes_xyxy": [[0] * 4]}
            [text] = label_lines(row, {7: 0})
            fractions = np.array(text.split()[1:], np.float32).reshape(-1, 2)
            points = fractions * np.array([width, height], np.float32)
            by_trainer = as_trainers_fill(points, (height, width))
            drawn = coco_mask.frPyObjects([points.reshape(-1).tolist()], height, width)
            by_coco = coco_mask.decode(drawn)[..., 0].astype(bool)
            assert (by_trainer & part).sum() >= 0.97 * (by_trainer | part).sum()
            assert (by_coco & part).sum() >= 0.99 * (by_coco | part).sum()
            pieces += 1
    assert pieces > 300


def test_exports_say_that_a_model_made_them_and_which(filled: FakeOutput, tmp_path: Path) -> None:
    import yaml

    export(filled.store.uri, "coco", str(tmp_path / "c.json"))
    export(filled.store.uri, "yolo", str(tmp_path / "yolo"))
    content = json.loads((tmp_path / "c.json").read_text())
    described = yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())
    assert {each["source"] for each in content["annotations"]} == {"model"}
    for said in (content["info"], described):
        assert said["source"] == "model" and said["model"] == filled.version.model
    assert described["train"] == described["val"] == "images" and "path" not in described, "beside the file, wherever"
    assert "not how good a model is" in (tmp_path / "yolo/data.yaml").read_text()


def test_categories_have_the_ids_of_the_labels_that_the_model_learnt_from(filled: FakeOutput, tmp_path: Path) -> None:
    version = {"fingerprint": filled.version.fingerprint}
    weights = {"lineage": {"file_ids": {"0": 10, "1": "b", "2": 12, "3": 13}}}
    times = {"started_at": "", "finished_at": "", "seconds": 0.0}
    record = RunRecord("20260101T000000Z-000000", "segments", "in", "out", version, 1, False, outcome="done",
                       exit_code=0, weights=weights, **times)  # fmt: skip
    write_run(filled.store, record)
    export(filled.store.uri, "coco", str(tmp_path / "c.json"))
    content = json.loads((tmp_path / "c.json").read_text())
    assert [each["id"] for each in content["categories"]] == [10, "b", 12, 13]
    assert {each["category_id"] for each in content["annotations"]} <= {10, "b", 12, 13}


def test_parts_of_an_instance_are_joined_to_one_polygon_that_draws_the_same() -> None:
    mask = np.zeros((40, 60), bool)
    mask[3:10, 4:12] = mask[20:35, 8:20] = mask[5:30, 40:50] = True
    mask[8:12, 42:46] = False
    parts = to_polygons(encode(mask), (40, 60))
    assert len(parts) == 3
    path = joined(parts)
    drawn = coco_mask.decode(coco_mask.frPyObjects([path.reshape(-1).tolist()], 40, 60))[..., 0].astype(bool)
    assert (drawn & mask).sum() == mask.sum()
    assert (drawn != mask).sum() < 60  # pycocotools draws the bridges one pixel wide


def test_class_names_cannot_break_the_yaml() -> None:
    import yaml

    names = ["plain", "no", "a: b", 'it\'s "quoted"', "ünï\n code", "#"]
    assert yaml.safe_load(data_yaml(names))["names"] == dict(enumerate(names))


class TestFlat:
    def test_one_row_per_instance_under_its_class(self, taken: FakeOutput, store_uri: str, tmp_path: Path) -> None:
        summary = export(taken.store.uri, "flat", f"{store_uri}/exports/flat")
        assert (summary.num_items, summary.num_found, summary.num_skipped, summary.files) == (8, 19, 1, 3)
        store = open_store(f"{store_uri}/exports/flat")
        for info in store.list():
            target = tmp_path / "copy" / info.key
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(store.get(info.key))
        found = duckdb.sql(
            f"SELECT label, name, count(*), sum(area) FROM read_parquet('{tmp_path}/copy/**/*.parquet') GROUP BY ALL"
            " ORDER BY ALL"
        ).fetchall()
        connection = views_of(taken.store).connection
        assert (
            found
            == connection.sql(
                "SELECT label, name, count(*), sum(area) FROM instances GROUP BY ALL ORDER BY ALL"
            ).fetchall()
        )

    def test_a_small_buffer_makes_more_parts_of_the_same_rows(self, output: FakeOutput, tmp_path: Path) -> None:
        output.commit([Item(f"{n:05d}.jpg", size_hw=(16, 16), num_instances=4) for n in range(200)], num_shards=4)
        views = views_of(output.store)
        rows, files = write_flat(views, open_store(str(tmp_path / "flat")), buffer_bytes=10_000)
        assert rows == 800
        assert files > 3
        table = pd.concat([pd.read_parquet(path) for path in (tmp_path / "flat").rglob("*.parquet")])
        assert len(table) == 800
        assert table.groupby("uri").size().eq(4).all()

    def test_parts_hold_one_class_each_and_its_name_stands_in_the_folder_only(
        self, filled: FakeOutput, tmp_path: Path
    ) -> None:
        export(filled.store.uri, "flat", str(tmp_path / "flat"))
        for path in (tmp_path / "flat").rglob("*.parquet"):
            file = pq.ParquetFile(path)
            assert "name" not in file.schema_arrow.names
            assert len(set(file.read(["label"])["label"].to_pylist())) == 1


class TestRefusals:
    @pytest.mark.parametrize("to", ["coco", "yolo", "flat"])
    def test_a_destination_that_is_taken_is_left_alone(self, filled: FakeOutput, tmp_path: Path, to: str) -> None:
        target = tmp_path / "export"
        target.mkdir()
        (target / "mine.txt").write_text("hello")
        destination = target / "mine.txt" if to == "coco" else target
        with pytest.raises(UsageError, match="holds something already"):
            export(filled.store.uri, to, str(destination))
        assert [path.name for path in target.iterdir()] == ["mine.txt"]

    def test_an_unknown_form_names_the_known(self, filled: FakeOutput, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="unknown export 'voc'") as caught:
            export(filled.store.uri, "voc", str(tmp_path / "x"))
        assert "coco, yolo, png, flat, csv, images, video" in caught.value.hint

    def test_nothing_to_export_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="holds no results"):
            export(str(tmp_path), "coco", str(tmp_path / "x.json"))
