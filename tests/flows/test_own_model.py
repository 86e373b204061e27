"""``--model package.module:function``: the example of the docs as it is printed, and what its code means for rows."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.command import ROOT, SERIAL, ask, end, refused, segment, start, visionmill
from tests.flows.scenes import write_scenes

PAGE = (ROOT / "docs" / "models.md").read_text("utf-8")
CODE = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "FunctionPredictor" in code)
COMMAND = re.search(r"PYTHONPATH=\. (visionmill segment .*)", PAGE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where ``bright.py`` and ``photos`` are, as for somebody who reads the page."""
    write_scenes(tmp_path / "photos", 3)
    (tmp_path / "bright.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
        yield tmp_path
    for name in ("bright", "nested", "nested.inner"):
        importlib.sys.modules.pop(name, None)  # type: ignore[attr-defined]


OWN = (*SERIAL[:-2], "--model", "bright:model")


def test_the_example_of_the_docs_runs_as_it_is_printed(folder: Path) -> None:
    assert COMMAND is not None
    assert len(CODE.splitlines()) <= 18
    _, *words = shlex.split(COMMAND[1])
    said = visionmill(*words, *SERIAL[:-2], "--json").summary
    assert said["items"]["ok"] == 3 and said["model"].startswith("bright:model@")
    found = ask("results", "SELECT DISTINCT name, mask_area(rle) = area AS same FROM instances ORDER BY ALL")
    assert {row["name"] for row in found} == {"bright", "dark"} and all(row["same"] for row in found)
    assert visionmill("verify", "results", "--deep", "--json").summary["problems"] == []
    visionmill("export", "results", "found.json", "--to", "coco", "--min-score", "0")
    judged = visionmill("evaluate", "bright:model", "found.json", "--images-root", "photos", "--json").summary
    assert judged["metrics"]["mask"]["ap"] == 1.0, "against what it found itself"


def test_a_function_may_load_a_known_model(folder: Path) -> None:
    body = CODE[: CODE.index("def model")] + (
        "def model(job):\n"
        "    limit = job.model_options['min_score']\n"
        "    return modelkit.load('digitscape_mask_rcnn', device=job.device, min_score=limit)\n"
    )
    (folder / "bright.py").write_text("import modelkit\n" + body)
    segment("photos", "results", *OWN)
    segment("photos", "named", *SERIAL[:-2], "--model", "digitscape_mask_rcnn")
    every = "SELECT name, score, mask_area(rle) AS area FROM instances ORDER BY ALL"
    own, known = (ask(where, every) for where in ("results", "named"))
    assert known and own == known


def test_its_code_and_its_weights_are_part_of_the_version(folder: Path) -> None:
    first = segment("photos", "results", *OWN)
    assert segment("photos", "results", *OWN)["outcome"] == "nothing_to_do"
    (folder / "bright.py").write_text(CODE.replace("170", "171"))
    assert "--new-version" in refused(1, "segment", "photos", "results", *OWN)
    (folder / "bright.py").write_text(CODE)
    (folder / "w.bin").write_bytes(b"1")
    weighed = segment("photos", "results", *OWN, "--weights", str(folder / "w.bin"), "--new-version")
    assert weighed["version"] != first["version"] and weighed["items"]["ok"] == 3
    (folder / "w.bin").write_bytes(b"2")
    assert "--new-version" in refused(1, "segment", "photos", "results", *OWN, "--weights", str(folder / "w.bin"))


def test_a_package_counts_whole_and_wrong_names_are_said(folder: Path) -> None:
    (folder / "nested").mkdir()
    for name, text in (("__init__", ""), ("helper", "X = 1\n"), ("inner", f"from nested.helper import X\n{CODE}")):
        (folder / "nested" / f"{name}.py").write_text(text)
    words = ("segment", "photos", "results", *SERIAL[:-2], "--model")
    visionmill(*words, "nested.inner:model")
    (folder / "nested" / "helper.py").write_text("X = 2\n")
    assert "--new-version" in refused(1, *words, "nested.inner:model")
    assert "no function 'nested.inner:modle'" in refused(2, *words, "nested.inner:modle")
    assert "no function 'nowhere.at_all:model'" in refused(2, *words, "nowhere.at_all:model")
    assert "'brihgt:model' is neither a known model" in refused(2, *words, "brihgt:model")


@pytest.mark.ray
def test_workers_of_ray_run_it_too(folder: Path) -> None:
    (folder / "many").mkdir()
    write_scenes(folder / "many", 8)
    words = ("segment", folder / "many", folder / "out", "--no-prefect", "--no-report", "--workers", "2", "--json")
    said = end(start(*words, "--model", "bright:model", PYTHONPATH=f"{ROOT}:{folder}")).summary
    assert said["items"]["ok"] == 8
