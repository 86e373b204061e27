"""What users get equals what transformers' own processor, model and ``post_process_*`` give for the same picture.

Models are tiny and random; queries of many shapes are drawn besides. Needs the extra ``hf``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from modelkit import load
from modelkit.registry import temporary_registrations
from modelkit.transform import Geometry
from tests.modelkit.builders import picture
from tests.modelkit.huggingface.transformers_models import SEEDS, SQUARE, saved
from tests.modelkit.parity.from_transformers import compare, compare_reading

SEGFORMER, *QUERIES = SEEDS
CASES = [(SEGFORMER, "semantic"), *((name, kind) for name in QUERIES for kind in ("semantic", "instance", "panoptic"))]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    with temporary_registrations():
        yield


@pytest.mark.parametrize(("architecture", "kind"), CASES)
def test_a_predictor_gives_what_transformers_gives(architecture: str, kind: str, tmp_path: Path) -> None:
    location, theirs = saved(tmp_path, architecture, 5)
    predictor = load(f"hf:{kind}:{location}")
    for size_hw in ((50, 90), (140, 101)):  # one is enlarged, one shrunk
        difference = compare(location, theirs, predictor, picture(*size_hw, 4))
        assert difference.compared > 0
        assert difference.within(score=2e-6, box=0.0, mask=0.0), difference


def test_a_processor_that_resizes_by_cubic_curves_is_followed(tmp_path: Path) -> None:
    location, theirs = saved(tmp_path, SEGFORMER, 5, SQUARE | {"resample": 3})
    predictor, image = load(f"hf:{location}"), picture(140, 101, 4)
    assert compare(location, theirs, predictor, image).missed == 0
    prepared = predictor.prepare(image)
    with Image.fromarray(image) as whole:
        by_pillow = np.asarray(whole.resize((64, 64), Image.Resampling.BICUBIC), np.int64)
    assert np.abs(prepared.pixels - by_pillow).max() <= 1


@pytest.mark.parametrize(("architecture", "kind"), [case for case in CASES if case[0] != SEGFORMER])
def test_queries_of_many_shapes_are_read_as_transformers_reads_them(
    architecture: str, kind: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    location, _ = saved(tmp_path, architecture, 133)
    predictor = load(f"hf:{kind}:{location}")
    predictor.min_score = 0.5 if kind == "instance" else 0.0
    processor = transformers.AutoImageProcessor.from_pretrained(location)
    is_detr = architecture.startswith("Detr")
    names = ("logits", "pred_masks") if is_detr else ("class_queries_logits", "masks_queries_logits")
    generator = torch.Generator().manual_seed(7)
    found = 0
    for size_hw in ((61, 83), (96, 64), (5, 7), (1, 7)):
        classes, masks = drawn_queries(generator, 134)
        geometry = Geometry(size_hw, (64, 96), (64, 96))
        ours = predictor.finish(predictor.model.decode({"classes": classes, "masks": masks}, [geometry])[0])
        outputs = SimpleNamespace(**dict(zip(names, (classes, masks), strict=True)))
        difference = compare_reading(processor, outputs, predictor, ours, size_hw)
        found += len(ours)
        assert difference.within(score=2e-6, box=0.0, mask=0.0), difference
    assert found > 8, "enough of them, stuff that is merged among them"


def drawn_queries(generator: torch.Generator, num_logits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (1, 24, num_logits) of few classes, mostly sure, and (1, 24, 16, 24) of discs that overlap."""
    labels = torch.randint(0, 6, (24,), generator=generator)
    labels = torch.where(labels < 3, labels, labels + 97)  # things and stuff of COCO
    labels[::8] = num_logits - 1
    classes = torch.randn((24, num_logits), generator=generator)
    classes[torch.arange(24), labels] += 4 + 8 * torch.rand(24, generator=generator)
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(24.0), indexing="ij")
    y, x, radius = (side * torch.rand((24, 1, 1), generator=generator) for side in (16, 24, 5))
    discs = 4 * (radius - ((rows - y) ** 2 + (columns - x) ** 2).sqrt())
    return classes[None], (discs + 0.5 * torch.randn((24, 16, 24), generator=generator))[None]
