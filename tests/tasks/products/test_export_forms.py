"""What of the results is exported, and forms of which people look at the files: read back by other libraries."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
from PIL import Image

from infra.errors import DatasetError, UsageError
from infra.store import open_store
from modelkit.rle import decode
from tasks.labels.reading import read_label_set
from tasks.output.views import views_of
from tasks.report.drawing import colour_of
from tasks.report.export import export
from tasks.report.panels import panels_of
from tasks.report.report_samples import choose_and_load
from tests.tasks.output.fake_output import FakeOutput, Item, masks_of, picture_of, with_sources


@pytest.fixture
def many(output: FakeOutput) -> FakeOutput:
    """Two pictures with seven instances each, scores 0.95 to 0.35; one with none; one that failed."""
    items = [Item(f"d/{name}.jpg", num_instances=7) for name in "ab"]
    output.commit([*items, Item("d/none.jpg", num_instances=0), Item("d/broken.jpg", status="failed")])
    return output


@pytest.fixture
def seen(output: FakeOutput, tmp_path: Path) -> FakeOutput:
    """Results whose sources are there: a picture of odd sides and a tracked clip."""
    wanted = [Item("odd.png", size_hw=(47, 63)), *[Item("v/c.avi", frame=n, pts_s=n / 4, track=True) for n in range(6)]]
    (tmp_path / "in" / "v").mkdir(parents=True)
    output.commit(with_sources(tmp_path / "in", wanted), num_shards=2)
    return output


def first_picture(output: FakeOutput) -> bytes:
    """Of the report's gallery."""
    views = views_of(output.store)
    picture = choose_and_load(views, panels_of(views), 1)[0].samples[0].picture
    return base64.b64decode(picture.partition(",")[2])


def rows_of(output: FakeOutput, to: str, path: Path, **chosen: object) -> pd.DataFrame:
    export(output.store.uri, "csv", str(path), **chosen)  # type: ignore[arg-type]
    return pd.read_csv(path)


class TestChoice:
    def test_weak_things_are_left_out_unless_they_are_asked_for_and_stuff_stays(
        self, many: FakeOutput, tmp_path: Path
    ) -> None:
        shown, all_of_it = (rows_of(many, "csv", tmp_path / f"{least}.csv", min_score=least) for least in (0.5, 0.0))
        assert len(all_of_it) == 14
        weak = all_of_it[(all_of_it.score < 0.5) & all_of_it.is_thing]
        assert len(weak) == 2 and len(shown) == 12 and (shown[~shown.is_thing].score >= 0.4).all()
        merged = shown.merge(all_of_it, on=["uri", "frame", "instance"], suffixes=("", "_stored"))
        assert len(merged) == 12 and (merged.score == merged.score_stored).all(), "an instance keeps its number"

    def test_items_of_which_nothing_is_left_stay(self, many: FakeOutput, tmp_path: Path) -> None:
        summary = export(many.store.uri, "coco", str(tmp_path / "c.json"), min_score=0.99)
        assert (summary.num_items, summary.num_skipped) == (3, 1)
        content = json.loads((tmp_path / "c.json").read_text())
        assert {each["category_id"] for each in content["annotations"]} == {2}, "sky, which is stuff"

    def test_a_condition_on_instances_takes_those_and_their_items(self, many: FakeOutput, tmp_path: Path) -> None:
        where = "name = 'disc' AND uri LIKE '%/a.jpg' -- and nothing else"
        summary = export(many.store.uri, "coco", str(tmp_path / "c.json"), where=where)
        assert (summary.num_items, summary.num_found) == (1, 2)
        for annotation, place in zip(json.loads((tmp_path / "c.json").read_text())["annotations"], (0, 3), strict=True):
            found = decode(annotation["segmentation"]["counts"].encode(), (48, 64)).astype(bool)
            assert (found == masks_of(Item("d/a.jpg", num_instances=7))[place]).all()

    def test_a_condition_on_items_takes_them_whole(self, many: FakeOutput, tmp_path: Path) -> None:
        summary = export(many.store.uri, "coco", str(tmp_path / "y.json"), where="len(labels) = 0 OR uri LIKE '%b.jpg'")
        assert (summary.num_items, summary.num_found, summary.num_skipped) == (2, 6, 0)

    @pytest.mark.parametrize(
        ("where", "says"),
        [
            ("true); SELECT (1", "one SQL statement"),
            ("colour = 'red'", "no condition over items or instances"),
            ("score >", "not understood"),
            ("score > 2", "no result fulfils"),
            ("score = 'much'", "not understood"),
        ],
    )
    def test_what_is_no_condition_is_named_before_anything_is_written(
        self, many: FakeOutput, tmp_path: Path, where: str, says: str
    ) -> None:
        with pytest.raises(UsageError, match=says):
            export(many.store.uri, "csv", str(tmp_path / "x.csv"), where=where)
        assert not (tmp_path / "x.csv").exists()


class TestPng:
    def test_maps_hold_class_ids_and_numbers_of_instances(self, seen: FakeOutput, tmp_path: Path) -> None:
        summary = export(seen.store.uri, "png", str(tmp_path / "png"), images=True)
        assert (summary.num_items, summary.num_found, summary.files) == (7, 21, 7 * 3 + 3)
        by_class, by_instance = (np.asarray(Image.open(tmp_path / "png" / each / "odd.png"))
                                 for each in ("masks", "instances"))  # fmt: skip
        masks = masks_of(Item("odd.png", size_hw=(47, 63)))
        assert by_instance.dtype == np.uint16 and by_class.shape == by_instance.shape == (47, 63)
        expected = np.zeros((47, 63), int)
        for number in (3, 2, 1):  # stuff lies below, the surest on top
            expected[masks[number - 1]] = number
        assert (by_instance == expected).all()
        assert (by_class == np.where(expected > 0, expected - 1, 255)).all()

    def test_every_value_is_explained(self, seen: FakeOutput, tmp_path: Path) -> None:
        export(seen.store.uri, "png", str(tmp_path / "png"))
        lines = list(csv.DictReader((tmp_path / "png/instances.csv").open()))
        explained = {(line["file"], int(line["value"])) for line in lines}
        for path in (tmp_path / "png/instances").rglob("*.png"):
            name = str(path.relative_to(tmp_path / "png"))
            assert {(name, value) for value in np.unique(np.asarray(Image.open(path))) if value} <= explained
        assert {line["track_id"] for line in lines if "c.avi" in line["uri"]} == {"1", "2", "3"}
        palette = Image.open(tmp_path / "png/masks/odd.png").getpalette()
        described = json.loads((tmp_path / "png/palette.json").read_text())
        assert palette is not None and described["void"] == 255
        for each in described["classes"]:
            assert palette[3 * each["id"] : 3 * each["id"] + 3] == each["rgb"]

    def test_label_readers_take_the_folder_as_it_is(self, seen: FakeOutput, tmp_path: Path) -> None:
        export(seen.store.uri, "png", str(tmp_path / "png"), images=True)
        labels = read_label_set(str(tmp_path / "png"))
        assert labels.table.num_rows == 7
        assert {name for names in labels.table["names"].to_pylist() for name in names} <= {"disc", "box", "sky"}

    def test_boxes_without_masks_are_refused(self, output: FakeOutput, tmp_path: Path) -> None:
        output.commit([Item("a.jpg", masks=False)])
        with pytest.raises(UsageError, match="boxes without masks"):
            export(output.store.uri, "png", str(tmp_path / "png"))

    def test_many_classes_need_16_bits(self, output: FakeOutput) -> None:
        from tasks.products.segments.export_png import maps

        row = {"height": 2, "width": 2, "labels": [300], "is_thing": [True], "scores": [1.0], "rles": [b"04"],
               "places": [41], "uri": "a"}  # fmt: skip
        by_class, by_instance = maps(row, 65_535)
        assert by_class.tolist() == [[300, 300], [300, 300]] and by_instance.tolist() == [[42, 42], [42, 42]]


class TestTables:
    def test_csv_holds_the_rows_of_the_view(self, filled: FakeOutput, tmp_path: Path) -> None:
        table = rows_of(filled, "csv", tmp_path / "x.csv")
        view = views_of(filled.store).connection.sql("SELECT * FROM instances ORDER BY uri, frame, instance").fetchall()
        assert len(table) == len(view) == 48
        assert list(table.columns[:9]) == [
            "uri",
            "etag",
            "media",
            "frame",
            "pts_s",
            "instance",
            "label",
            "name",
            "score",
        ]
        assert table.x1.tolist() == pytest.approx([row[11] for row in view])
        assert "rle" not in table.columns

    def test_flat_rows_lie_in_a_folder_of_their_class(self, output: FakeOutput, tmp_path: Path) -> None:
        output.commit([Item("a.jpg"), Item("b.jpg")])
        export(output.store.uri, "flat", str(tmp_path / "flat"))
        assert {path.name for path in (tmp_path / "flat").glob("[!.]*")} == {"name=disc", "name=box", "name=sky"}
        table = ds.dataset(tmp_path / "flat", partitioning="hive").to_table()
        assert sorted(zip(table["name"].to_pylist(), table["label"].to_pylist(), strict=True)) == [
            ("box", 1), ("box", 1), ("disc", 0), ("disc", 0), ("sky", 2), ("sky", 2)
        ]  # fmt: skip


class TestPictures:
    def test_annotated_images_show_the_picture_and_what_was_found(self, seen: FakeOutput, tmp_path: Path) -> None:
        summary = export(seen.store.uri, "images", str(tmp_path / "drawn"))
        assert (summary.num_found, summary.files) == (21, 7)
        drawn = np.asarray(Image.open(tmp_path / "drawn/odd.jpg").resize((63, 47), Image.Resampling.BOX), float)
        item = Item("odd.png", size_hw=(47, 63))
        plain, disc = picture_of(item).astype(float), masks_of(item)[0] & ~masks_of(item)[1]
        towards = np.linalg.norm(drawn[disc] - colour_of(0), axis=-1).mean()
        assert towards < 0.75 * np.linalg.norm(plain[disc] - colour_of(0), axis=-1).mean()
        assert max(Image.open(tmp_path / "drawn/odd.jpg").size) == 504, "small pictures are enlarged, eightfold at most"
        assert (tmp_path / "drawn/v/c.avi/000003.jpg").is_file()

    @pytest.mark.parametrize(("sample_range", "shown"), [("0:1000", 255), ("0:4000", 64)])
    def test_pictures_are_decoded_as_their_rows_were(self, tmp_path: Path, sample_range: str, shown: int) -> None:
        Image.fromarray(np.full((48, 64), 1000, np.uint16)).save(tmp_path / "deep.png")
        source = open_store(str(tmp_path))
        item = Item(source.uri_of("deep.png"), etag=source.info("deep.png").etag, num_instances=0)
        output = FakeOutput(open_store(str(tmp_path / "out")), parameters={"sample_range": sample_range})
        output.commit([item])
        export(output.store.uri, "images", str(tmp_path / "drawn"))
        (drawn,) = (tmp_path / "drawn").rglob("*.jpg")
        assert abs(np.asarray(Image.open(drawn), float).mean() - shown) < 3
        with Image.open(io.BytesIO(first_picture(output))) as picture:
            assert abs(np.asarray(picture.convert("L"), float).mean() - shown) < 5, "and so in the report"

    def test_a_video_is_written_with_its_frames_at_their_times(self, seen: FakeOutput, tmp_path: Path) -> None:
        summary = export(seen.store.uri, "video", str(tmp_path / "drawn"))
        assert (summary.num_found, summary.files) == (18, 1)
        with av.open(str(tmp_path / "drawn/v/c.mp4")) as clip:
            stream = clip.streams.video[0]
            frames = [(float(frame.pts * stream.time_base), frame.to_ndarray(format="rgb24"))
                      for frame in clip.decode(stream)]  # fmt: skip
            assert stream.codec_context.name == "h264" and clip.duration == pytest.approx(1.5e6, abs=2e3)
        assert [time for time, _ in frames] == pytest.approx([n / 4 for n in range(6)], abs=1e-4)
        item = Item("v/c.avi", frame=2, track=True)
        mask = masks_of(item)[1] & ~masks_of(item)[0]
        shown = np.asarray(Image.fromarray(frames[2][1]).resize((64, 48), Image.Resampling.BOX), float)
        plain = picture_of(item)[mask]
        by_track, by_class = (np.abs(shown[mask] - 0.58 * plain - 0.42 * np.array(colour)).mean()
                              for colour in (colour_of(2 + 101), colour_of(1)))  # fmt: skip
        assert by_track < by_class - 5, "in the track's own colour, not that of its class"

    def test_a_source_that_is_gone_is_told_when_all_else_is_written(self, seen: FakeOutput, tmp_path: Path) -> None:
        (tmp_path / "in" / "odd.png").unlink()
        with pytest.raises(DatasetError, match=r"1 images could not be written, the first is .*odd\.png"):
            export(seen.store.uri, "images", str(tmp_path / "drawn"))
        assert len(list((tmp_path / "drawn").rglob("*.jpg"))) == 6

    def test_without_videos_there_is_no_video(self, many: FakeOutput, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no video"):
            export(many.store.uri, "video", str(tmp_path / "drawn"))


def test_files_go_to_buckets_as_well(store_uri: str) -> None:
    output = FakeOutput(open_store(f"{store_uri}/out"))
    output.commit([Item("a.jpg"), Item("b.jpg")])
    export(output.store.uri, "png", f"{store_uri}/png", where="uri = 'a.jpg'")
    export(output.store.uri, "csv", f"{store_uri}/rows.csv", where="uri = 'a.jpg'")
    store = open_store(store_uri)
    assert {info.key for info in store.list("png/") if not info.key.startswith("png/.visionmill/")} == {
        "png/classes.json", "png/instances.csv", "png/instances/a.png", "png/masks/a.png", "png/palette.json"
    }  # fmt: skip
    assert len(pd.read_csv(io.BytesIO(store.get("rows.csv")))) == 3
