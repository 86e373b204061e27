from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco

from infra.errors import UsageError
from tasks.output.query import run_query
from tasks.output.views import open_views
from tests.tasks.output.fake_output import FakeOutput, Item, masks_of

SIZE_HW = (48, 64)


def test_area_equals_the_column_and_the_pixels(filled: FakeOutput) -> None:
    rows = run_query(filled.store.uri, "SELECT uri, frame, area, mask_area(rle) AS pixels FROM instances ORDER BY ALL")
    for row in rows.to_pylist():
        masks = masks_of(Item(row["uri"], frame=row["frame"]))
        assert row["pixels"] == row["area"]
        assert row["pixels"] in [int(mask.sum()) for mask in masks]


def test_iou_equals_counting_pixels(filled: FakeOutput) -> None:
    rows = run_query(
        filled.store.uri,
        "SELECT a.instance AS i, b.instance AS j, mask_iou(a.rle, b.rle, a.height, a.width) AS iou"
        " FROM instances a JOIN instances b USING (uri, frame) WHERE a.uri LIKE '%/05.jpg'",
    ).to_pylist()
    masks = masks_of(Item("s3://pictures/05.jpg"))
    assert len(rows) == 9
    for row in rows:
        one, other = masks[row["i"]], masks[row["j"]]
        assert row["iou"] == pytest.approx((one & other).sum() / (one | other).sum())


def test_polygons_are_rings_that_cover_the_mask(filled: FakeOutput) -> None:
    rows = run_query(
        filled.store.uri,
        "SELECT rle, mask_polygon(rle, height, width) AS rings, to_json(mask_polygon(rle, height, width)) AS text"
        " FROM instances",
    ).to_pylist()
    assert len(rows) == 48
    for row in rows:
        assert all(len(ring) >= 6 and len(ring) % 2 == 0 for ring in row["rings"])
        assert json.loads(row["text"]) == row["rings"]
        drawn = coco.decode(coco.merge(coco.frPyObjects(row["rings"], *SIZE_HW))).astype(bool)
        mask = coco.decode({"size": list(SIZE_HW), "counts": row["rle"]}).astype(bool)
        assert (drawn == mask).all()


def test_null_in_gives_null_out(filled: FakeOutput) -> None:
    sql = "SELECT mask_area(NULL), mask_iou(NULL, 'x'::BLOB, 1, 1), mask_polygon('x'::BLOB, NULL, 1)"
    assert open_views(filled.store.uri).sql(sql).fetchall() == [(None, None, None)]


def test_functions_see_batches_of_every_size(output: FakeOutput) -> None:
    output.commit([Item(f"{n:04d}", num_instances=2, size_hw=(16, 16)) for n in range(3000)])
    found = run_query(output.store.uri, "SELECT sum(mask_area(rle)) AS a, sum(area) AS b, count(*) AS n FROM instances")
    assert found.to_pylist()[0]["n"] == 6000
    assert np.diff(list(found.to_pylist()[0].values())[:2]) == 0


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELECT mask_iou(rle, rle, 3, 3) FROM instances", "a mask of 3072 pixels cannot lie on an image of 9"),
        ("SELECT mask_area('hello, world'::BLOB)", "not compressed COCO run lengths"),
    ],
)
def test_a_mask_that_is_none_is_one_clear_message(filled: FakeOutput, sql: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        run_query(filled.store.uri, sql)
    assert "Traceback" not in caught.value.message
