"""What modelkit offers is exactly what it says; and it drags nothing along that a notebook has not."""

from __future__ import annotations

import subprocess
import sys

import pytest

import modelkit
from modelkit import _public


def test_all_is_exactly_what_is_public() -> None:
    assert sorted(name for name in dir(modelkit) if not name.startswith("_")) == sorted(modelkit.__all__)
    assert sorted(_public.__all__) == sorted(modelkit.__all__)
    assert all(getattr(modelkit, name) is getattr(_public, name) for name in modelkit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = modelkit.nonsense
    assert modelkit.__all__ == sorted(modelkit.__all__, key=lambda name: (not name[0].isupper(), name))


def test_every_public_name_is_documented() -> None:
    undocumented = [name for name in modelkit.__all__ if not getattr(modelkit, name).__doc__]
    assert not undocumented


def test_importing_it_and_building_a_model_imports_no_cluster_flow_or_storage() -> None:
    program = (
        "import sys, modelkit; modelkit.list_models(); "
        "foreign = 'ray prefect fsspec s3fs pyarrow duckdb pydantic flows tasks infra'.split(); "
        "print(sorted(sys.modules.keys() & set(foreign)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_reading_masks_and_records_and_carrying_results_imports_no_torch() -> None:
    program = (
        "import sys, modelkit.rle, modelkit.carriers, tasks.output.encoding, tasks.output.query; "
        "modelkit.rle.area(modelkit.rle.compress([2, 2])); modelkit.list_models(); "
        "modelkit.is_video_model(modelkit.describe('digitscape_mask_rcnn')); print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


@pytest.mark.parametrize("first", ["modelkit.registry", "modelkit.detection"])
def test_models_are_registered_whatever_is_imported_first(first: str) -> None:
    program = f"import {first}; from modelkit.registry import create_model as c; print(c('mask_rcnn').config['name'])"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "mask_rcnn"
