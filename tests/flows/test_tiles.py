"""``--detections``, ``--tile``, ``--overlap``: part of the version where given, and limits are said where they bind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.dataset
import pytest
from PIL import Image

from flows.job import run_job
from flows.summary import limit_in_words
from infra.errors import UsageError
from infra.problems import checked
from modelkit import FunctionPredictor, Instances
from modelkit.digitscape import Digitscape, write_dataset
from tasks.engine.job import JobSpec
from tasks.evaluation.evaluate import evaluate_model, evaluate_predictor
from tasks.evaluation.objects import MOST_JUDGED
from tasks.labels.label_sets import LabelledObject
from tasks.labels.reading import read_label_set
from tasks.products.segments import PRODUCT
from tasks.products.segments.parameters import SegmentParameters, model_options
from tests.tasks.evaluation.test_evaluate import Oracle, answer, labels_of, square

MODEL = "digitscape_mask_rcnn"
GOOD = {"source": "in", "output": "out"}


def test_ways_of_looking_are_part_of_the_version_only_where_they_are_given() -> None:
    plain = checked(SegmentParameters, **GOOD)
    assert plain.row_settings() == {"score_threshold": 0.05}
    assert model_options(plain) == {"min_score": 0.05}
    tiled = checked(SegmentParameters, **GOOD, tile="512", detections=300)
    assert tiled.row_settings() == {"score_threshold": 0.05, "tile": 512, "overlap": 64, "detections": 300}
    assert model_options(tiled) == {"min_score": 0.05, "tile": 512, "overlap": 64, "detections": 300}
    assert checked(SegmentParameters, **GOOD, tile=0).row_settings() == {"score_threshold": 0.05, "tile": 0}


@pytest.mark.parametrize(
    ("asked", "named"),
    [({"overlap": 8}, "give tile"), ({"tile": 64, "overlap": 40}, "half of a tile"), ({"detections": 0}, "detections")],
)
def test_looks_that_make_no_sense_are_refused(asked: dict[str, int], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        checked(SegmentParameters, **GOOD, **asked)


def test_a_job_in_tiles_says_in_which_items_its_limit_was_reached(tmp_path: Path) -> None:
    source = Digitscape("test", (160, 160), seed=7, dense=False)
    scenes = [source.scene(index).image_rgb for index in range(4)]
    large = np.concatenate([np.concatenate(scenes[:2], 1), np.concatenate(scenes[2:], 1)])
    (tmp_path / "in").mkdir()
    Image.fromarray(large).save(tmp_path / "in" / "large.png")
    Image.fromarray(np.full((50, 60, 3), 128, np.uint8)).save(tmp_path / "in" / "small.png")
    asked = {"source": str(tmp_path / "in"), "output": str(tmp_path / "out"), "model": MODEL, "ray": "none"}
    parameters = checked(SegmentParameters, **asked, tile=160, overlap=80, detections=4, report=False)
    summary = run_job(PRODUCT, parameters, orchestrated=False)
    rows = pyarrow.dataset.dataset(tmp_path / "out" / "segments", partitioning=None).to_table().to_pylist()
    by_name = {row["uri"].rpartition("/")[2]: row for row in rows}
    assert (by_name["large.png"]["height"], by_name["large.png"]["width"]) == (320, 320)
    assert len(by_name["large.png"]["labels"]) > 4, "four in each tile, not in the picture"
    assert by_name["large.png"]["notes"] == ["detections: the limit of 4 was reached"]
    assert by_name["small.png"]["notes"] == []
    assert summary["items"]["at_limit"] == 1
    assert summary["notes"] == limit_in_words({"at_limit": 1})
    assert "1 item" in summary["notes"][0] and "--detections" in summary["notes"][0]


def nothing(job: JobSpec) -> FunctionPredictor:
    """A model of one's own, which no option of modelkit's reaches."""
    return FunctionPredictor(lambda image: Instances.empty(image.shape[:2]), ())


def test_models_that_cannot_look_so_are_refused_before_anything_is_started(tmp_path: Path) -> None:
    asked = {"source": str(tmp_path), "output": str(tmp_path / "out"), "ray": "none"}
    for model, change, said in (
        ("unet:random:0", {"detections": 5}, "no limit"),
        ("tests.flows.test_tiles:nothing", {"tile": 64}, "of your own"),
    ):
        with pytest.raises(UsageError, match=said):
            run_job(PRODUCT, checked(SegmentParameters, **asked, model=model, **change), orchestrated=False)
    assert not (tmp_path / "out" / "segments").exists()


def test_evaluate_counts_images_that_were_cut_short_and_says_what_coco_does_not_judge(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, Digitscape("test", (160, 160), seed=0, dense=False), 3, image_format="png")
    labels = read_label_set(str(path))
    notes = evaluate_model(MODEL, labels, looks={"detections": 2}).notes
    assert len(notes) == 1 and "of 3 images" in notes[0] and "(2)" in notes[0] and "--detections" in notes[0]
    assert evaluate_model(MODEL, labels).notes == ()
    one = LabelledObject(1, square(2, 2, 10, 10))
    (tmp_path / "full").mkdir()
    full = labels_of(tmp_path / "full", (one,) * (MOST_JUDGED + 1), (one,))
    notes = evaluate_predictor(Oracle("instance", [answer((1, 0.9, one.rle or b"")), answer()]), full).notes  # type: ignore[arg-type]
    assert len(notes) == 1 and notes[0].startswith(
        f"1 images have more than {MOST_JUDGED} labelled objects of one class"
    )
