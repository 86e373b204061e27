"""Who may import whom: the four packages have one rule each (see docs/architecture.md)."""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"flows", "tasks", "modelkit", "infra"}
ALLOWED = {
    "flows": {"flows", "tasks", "modelkit", "infra"},
    "tasks": {"tasks", "modelkit", "infra"},
    "modelkit": {"modelkit"},
    "infra": {"infra"},
}
FORBIDDEN_OUTSIDE = {
    "modelkit": {"ray", "prefect", "fsspec", "s3fs", "duckdb", "pyarrow", "typer", "rich", "pydantic"},
    "infra": {"torchvision", "duckdb", "typer"},
    "tasks": {"prefect", "typer"},
}


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno} imports relatively"
            yield node.lineno, node.module or ""


@pytest.mark.parametrize("package", sorted(OURS))
def test_package_imports_only_what_its_rule_allows(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package} has no modules"
    wrong = []
    for path in files:
        for line, module in imported_modules(path):
            top = module.split(".")[0]
            if top in OURS - ALLOWED[package] or top in FORBIDDEN_OUTSIDE.get(package, set()):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", ["flows", "infra", "tasks"])
def test_no_files_of_a_package_import_each_other_in_a_circle(package: str) -> None:
    """Imports inside functions count, too: a file should be understood after those that it imports."""
    modules = {_module_name(path): path for path in (ROOT / package).rglob("*.py")}
    imports = {name: _imported_files(path) & modules.keys() - {name} for name, path in modules.items()}
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_no_file_takes_the_name_of_somebody_elses_module() -> None:
    """Prefect puts the folder of the flow that it loads first in ``sys.path``: ``flows/inspect.py`` was everybody's."""
    taken = {*sys.stdlib_module_names, *importlib.metadata.packages_distributions()} - OURS
    files = [path for package in [*OURS, "tests", "benchmarks"] for path in (ROOT / package).rglob("*.py")]
    wrong = [path for path in files if path.stem in taken and path.stem != "__init__"]
    assert [str(path.relative_to(ROOT)) for path in wrong] == []


def _module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imported_files(path: Path) -> set[str]:
    """Names that may be modules: of ``from a import b`` both ``a`` and ``a.b``, but ``a`` only where b is no module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = any((ROOT / full.replace(".", "/")).with_suffix(end).exists() for end in (".py", ""))
                found.add(full if is_module else str(node.module))
    return found


def test_flows_use_only_public_names_of_modelkit() -> None:
    """Whatever the form of the import: no module below modelkit, and of modelkit itself what it offers."""
    import modelkit

    wrong = []
    for path in sorted((ROOT / "flows").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names = [f"{node.value.id}.{node.attr}"]
            public = {"modelkit", *(f"modelkit.{name}" for name in modelkit.__all__)}
            wrong += [
                f"{path.relative_to(ROOT)}:{node.lineno} {name}"
                for name in names
                if name.split(".")[0] == "modelkit" and name not in public
            ]
    assert not wrong, f"not in modelkit.__all__: {wrong}"


def test_no_pickle_is_read_and_torch_load_is_always_weights_only() -> None:
    wrong = []
    for package in OURS:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                name = ast.unparse(node.func)
                if name in {"pickle.load", "pickle.loads", "cloudpickle.loads", "yaml.load"}:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
                if name == "torch.load" and "weights_only=True" not in ast.unparse(node):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} torch.load without weights_only=True")
    assert not wrong, "\n".join(wrong)
