"""The floors of ``tasks`` (docs/architecture.md): a room imports from its own floor and from those below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = (
    "records", "media", "parameters", "product", "output", "ingest", "engine", "labels", "evaluation", "training",
    "loop", "report", "products",
)  # fmt: skip


def rooms() -> list[str]:
    """What lies in ``tasks``: modules and folders."""
    return sorted(path.stem for path in (ROOT / "tasks").iterdir() if path.stem not in ("__init__", "__pycache__"))


def imports_of(path: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Every import of a file at any depth, also those for types only, with the module it names."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def room_of(module: str) -> str | None:
    """``tasks.output.encoding.Row`` -> ``output``; None for what is not in ``tasks``."""
    parts = module.split(".")
    return parts[1] if parts[0] == "tasks" and len(parts) > 1 else None


def test_every_room_has_a_floor() -> None:
    assert rooms() == sorted(FLOORS)


@pytest.mark.parametrize("room", FLOORS)
def test_a_room_imports_from_its_own_floor_and_from_below(room: str) -> None:
    place = ROOT / "tasks" / room
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    upwards = [
        f"{path.relative_to(ROOT)}:{node.lineno} {module}"
        for path in files
        for node, module in imports_of(path)
        if (other := room_of(module)) is not None and FLOORS.index(other) > FLOORS.index(room)
    ]
    assert not upwards, "\n".join(upwards)


def test_generic_code_imports_no_product() -> None:
    outside = [
        path
        for package in ("tasks", "flows", "modelkit", "infra")
        for path in sorted((ROOT / package).rglob("*.py"))
        if ROOT / "tasks" / "products" not in path.parents
    ]
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {module}"
        for path in outside
        for node, module in imports_of(path)
        if module.startswith("tasks.products.") and (ROOT / "tasks" / "products" / module.split(".")[2]).is_dir()
    ]
    assert not found, "\n".join(found)


def test_a_product_imports_no_other_product() -> None:
    folder = ROOT / "tasks" / "products"
    found = []
    for product in (path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"):
        own = f"tasks.products.{product.name}"
        for path in sorted(product.rglob("*.py")):
            for node, module in imports_of(path):
                if module.startswith("tasks.products.") and not f"{module}.".startswith(f"{own}."):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} {module}")
    assert not found, "\n".join(found)


def test_an_import_inside_a_function_says_why() -> None:
    """Of our own modules: there they only save a start of seconds, as a comment on the line or above it says."""
    found = []
    for path in sorted((ROOT / "tasks").rglob("*.py")):
        lines = path.read_text("utf-8").splitlines()
        functions = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.FunctionDef)]
        for node in {inner.lineno: inner for each in functions for inner in ast.walk(each)
                     if isinstance(inner, ast.Import | ast.ImportFrom)}.values():  # fmt: skip
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            ours = any(name.split(".")[0] in ("tasks", "modelkit", "infra", "flows") for name in names)
            if ours and "#" not in lines[node.lineno - 1] + lines[node.lineno - 2]:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {lines[node.lineno - 1].strip()}")
    assert not found, "\n".join(found)
