"""No module imports, directly or through others, a module that imports it: modules can be read and moved one by one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def modules_of(package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_at_the_top(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """What runs when the module is imported: not inside of functions, not for type checkers alone."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def imported(path: Path, known: set[str]) -> set[str]:
    """Modules among ``known`` that a file imports; ``from a import b`` is ``a.b`` where that is a module."""
    names = set()
    for node in imports_at_the_top(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inside & known) or {node.module or ""}
    return names & known


@pytest.mark.parametrize("package", ["modelkit", "infra"])
def test_no_module_imports_itself_through_others(package: str) -> None:
    modules = modules_of(package)
    assert modules
    graph = {name: imported(path, set(modules)) - {name} for name, path in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_the_checker_sees_a_circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ring").mkdir()
    (tmp_path / "ring" / "__init__.py").write_text("")
    (tmp_path / "ring" / "a.py").write_text("if True:\n    from ring import b\n")
    (tmp_path / "ring" / "b.py").write_text("import ring.a\n\ndef f():\n    import ring.c\n")
    (tmp_path / "ring" / "c.py").write_text("import ring.b\n")
    monkeypatch.setattr("tests.contracts.test_cycles.ROOT", tmp_path)
    with pytest.raises(pytest.fail.Exception, match=r"ring\.a"):
        test_no_module_imports_itself_through_others("ring")
    (tmp_path / "ring" / "b.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ring.a\n")
    test_no_module_imports_itself_through_others("ring")
