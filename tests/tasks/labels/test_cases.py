"""Files of labels that once went wrong, with the values that pycocotools or the tool itself gives them."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import modelkit
from infra.errors import DatasetError
from modelkit import Instances
from modelkit.metrics.precision import coco_results
from modelkit.predictor import Prepared
from tasks.evaluation.evaluate import evaluate_predictor, predictions
from tasks.labels.label_sets import LabelSet
from tasks.labels.reading import read_label_set

CASES = Path(__file__).parents[2] / "cases" / "formats"
PLAIN = CASES / "base" / "base_plain.json"


def case(name: str, **options: Any) -> LabelSet:
    return read_label_set(str(CASES / name), **options)


def variant(folder: Path, change: Callable[[int, dict[str, Any]], dict[str, Any]], first_id: int = 1) -> Path:
    """The twelve scenes of the plain file with every annotation changed, and category ids from ``first_id`` on."""
    content = json.loads(PLAIN.read_text())
    content["annotations"] = [each | change(k, each) for k, each in enumerate(content["annotations"])]
    for each in content["categories"]:
        each["id"] += first_id - 1
    path = folder / "variant.json"
    path.write_text(json.dumps(content))
    return path


def read_variant(path: Path, **options: Any) -> LabelSet:
    return read_label_set(str(path), images_root=str(PLAIN.parent), **options)


def loose(k: int, each: dict[str, Any]) -> dict[str, Any]:
    x, y, width, height = each["bbox"]
    return {"bbox": [x - 3, y - 3, width + 6, height + 6]}


class Remembering:
    """The shipped model, which looks at every image once."""

    def __init__(self) -> None:
        self._predictor = modelkit.load("digitscape_mask_rcnn")
        self.weights, self.model = self._predictor.weights, self._predictor.model
        self._known: dict[bytes, Instances] = {}

    def prepare(self, image: np.ndarray) -> Prepared:
        return self._predictor.prepare(image)

    def infer(self, prepared: Sequence[Prepared]) -> list[Instances]:
        for each in prepared:
            if each.pixels.tobytes() not in self._known:
                [raw] = self._predictor.infer([each])
                self._known[each.pixels.tobytes()] = self._predictor.finish(raw)
        return [self._known[each.pixels.tobytes()] for each in prepared]

    def finish(self, found: Instances) -> Instances:
        return found


@pytest.fixture(scope="module")
def predictor() -> Any:
    return Remembering()


@pytest.fixture(scope="module")
def found(predictor: Any) -> list[Instances]:
    """What the shipped model finds in the twelve scenes."""
    return [instances for _, instances in predictions(predictor, case("base/base_plain.json").table.to_pylist())]


def by_pycocotools(path: Path, found: list[Instances], kind: str) -> float:
    """AP of the same finds by pycocotools on the file as it is."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        numbers = {each["file_name"]: each["id"] for each in truth.dataset["images"]}
        entries = [
            {key: value for key, value in entry.items() if kind == "bbox" or key != "bbox"}
            for name, instances in zip(sorted(numbers), found, strict=True)
            for entry in coco_results(numbers[name], instances)
        ]
        evaluator = COCOeval(truth, truth.loadRes(entries), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return float(evaluator.stats[0])


@pytest.mark.parametrize(
    ("name", "box_ap", "mask_ap"), [("plain", 0.746, 0.626), ("loose", 0.435, 0.626), ("poly", 0.759, 0.626)]
)
def test_average_precision_is_that_of_cocoeval_on_the_same_file(
    name: str, box_ap: float, mask_ap: float, predictor: Any, found: list[Instances], tmp_path: Path
) -> None:
    """Loose boxes have a margin of 3 px around the masks, those of polygons are real numbers: the file says, not we."""
    path = {"plain": PLAIN, "poly": PLAIN.with_name("base_poly.json")}.get(name) or variant(tmp_path, loose)
    figures = evaluate_predictor(predictor, read_variant(path)).figures
    assert (figures["box"]["ap"], figures["mask"]["ap"]) == pytest.approx((box_ap, mask_ap), abs=5e-4)
    assert figures["box"]["ap"] == pytest.approx(by_pycocotools(path, found, "bbox"), abs=1e-9)
    assert figures["mask"]["ap"] == pytest.approx(by_pycocotools(path, found, "segm"), abs=1e-9)


def test_one_object_without_a_mask_leaves_the_others_their_mask_ap_and_is_told(predictor: Any, tmp_path: Path) -> None:
    path = variant(tmp_path, lambda k, each: {"segmentation": []} if k == 5 else {})
    judged = evaluate_predictor(predictor, read_variant(path))
    assert judged.figures["mask"]["ap"] == pytest.approx(0.623, abs=5e-4)
    assert judged.figures["box"]["ap"] == pytest.approx(0.746, abs=5e-4)
    assert judged.notes == ("1 of 36 objects have a box but no mask: they count neither way in AP of masks",)
    assert judged.resample(np.ones((1, 12))).overall == pytest.approx([judged.main_figure])


def test_category_ids_from_0_are_classes_like_any_other_and_the_map_is_remembered(
    predictor: Any, tmp_path: Path
) -> None:
    labels = read_variant(variant(tmp_path, lambda k, each: {"category_id": each["category_id"] - 1}, first_id=0))
    assert [(each.id, each.name) for each in labels.classes] == [(k + 1, str(k)) for k in range(10)]
    assert labels.file_ids == {k + 1: k for k in range(10)}
    assert labels.table["labels"].equals(case("base/base_plain.json").table["labels"])
    assert evaluate_predictor(predictor, labels).main_figure == pytest.approx(0.626, abs=5e-4)


@pytest.mark.parametrize(
    "change",
    [
        lambda k, each: {"image_id": str(each["image_id"])},
        lambda k, each: {"category_id": float(each["category_id"])},
        lambda k, each: {"area": None},
        lambda k, each: {"source": "annotated by Kim"},
        lambda k, each: {"track_id": None},
    ],
    ids=["image ids as text", "category ids as real numbers", "no area", "another tool's source", "no track"],
)
def test_what_pycocotools_reads_is_read(change: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    labels, plain = read_variant(variant(tmp_path, change)), case("base/base_plain.json")
    for column in ("labels", "rles", "boxes_xyxy", "areas", "sources"):
        assert labels.table[column].equals(plain.table[column]), column
    assert not labels.skipped


def test_text_track_ids_are_numbered(tmp_path: Path) -> None:
    labels = read_variant(variant(tmp_path, lambda k, each: {"track_id": f"t{each['id']}"}))
    numbers = [track for row in labels.table["track_ids"].to_pylist() for track in row]
    assert sorted(numbers) == list(range(1, 37))
    assert case("track_id_str.json").table["track_ids"].to_pylist() == [[1]]


def test_labels_that_are_all_crowds_are_refused_unless_allowed(tmp_path: Path) -> None:
    path = variant(tmp_path, lambda k, each: {"iscrowd": 1})
    with pytest.raises(DatasetError, match="all 36 objects are crowds") as caught:
        read_variant(path)
    assert "--allow-dropped" in caught.value.hint
    assert len(read_variant(path, allow_dropped=True)) == 12


@pytest.mark.parametrize("name", ["poly_one_degenerate_part_2pts.json", "poly_empty_inner.json"])
def test_parts_of_a_polygon_without_area_do_not_cost_the_object(name: str) -> None:
    assert case(name).table["areas"].to_pylist() == [[1600.0]]
    assert [modelkit.rle.area(mask) for mask in case(name).table["rles"].to_pylist()[0]] == [1600]


@pytest.mark.parametrize(
    "name", ["ls_brush_alpha100.json", "ls_Labels_Rectangle_pair.json", "ls_mixed_sizes_null.json"]
)
def test_regions_of_label_studio_are_read_as_it_draws_them(name: str) -> None:
    """A brush that is not opaque, labels beside a bare rectangle, a region without a size: one object of 2400 px."""
    (row,) = case(name).table.to_pylist()
    assert (row["areas"], row["names"], row["boxes_xyxy"]) == ([2400.0], ["cat"], [[20, 20, 80, 60]])
    assert (row["height"], row["width"]) == (100, 200)


def test_names_of_label_studio_are_decoded_once() -> None:
    (uri,) = case("ls_localfiles_percent_file_50%25.jpg.json").table["uri"].to_pylist()
    assert uri == str(CASES / "dir" / "50%25.jpg")


def test_class_ids_of_cvat_do_not_depend_on_which_classes_occur() -> None:
    everything, without = case("cvat_all.xml"), case("cvat_without0.xml")
    assert everything.classes == without.classes
    assert [each.name for each in everything.classes] == [str(k) for k in range(10)]
    rows = {row["image_id"]: row["labels"] for row in everything.table.to_pylist()}
    assert all(rows[row["image_id"]] == row["labels"] for row in without.table.to_pylist())


@pytest.mark.parametrize(("name", "said"), [("nan_bbox.json", "nan, 1.0"), ("bbox_negative_size.json", "-40.0, -40.0")])
def test_boxes_that_are_none_are_refused_with_file_and_object(name: str, said: str) -> None:
    with pytest.raises(DatasetError) as caught:
        case(name)
    assert name in caught.value.message and "annotation 1 of" in caught.value.message and said in caught.value.message
    assert case(name, allow_dropped=True).table["labels"].to_pylist() == [[]]
