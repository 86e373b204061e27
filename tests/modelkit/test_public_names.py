"""What modelkit offers is exactly what it says; and it drags nothing along that a notebook has not."""

from __future__ import annotations

import subprocess
import sys
import types

import modelkit


def test_all_is_exactly_what_is_public() -> None:
    public = {
        name
        for name, value in vars(modelkit).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert sorted(public) == sorted(modelkit.__all__)
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
