"""Generic code names no product and no kind: each is one folder below ``tasks/products``, and found by name.

What sentences say is nobody's business here; what code compares, looks up or calls something is.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tasks.product import products

ROOT = Path(__file__).parents[2]
OWN = "tasks/products/"  # where they are at home; modelkit's families, which are not looked at here, state their kind
EXCUSED = {
    # words of the field that mean something else
    "tasks/labels/coco.py": "COCO calls one of its formats panoptic, and its lists segments_info",
    "tasks/labels/coco_panoptic.py": "the reader of that format",
    "tasks/labels/digitscape.py": "and so is the second file called that scenes are labelled by",
    "tasks/training/recipe.py": "modelkit's record calls the points of objects so",
    "tasks/media/jpeg.py": "a JPEG file is made of segments",
}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


def forbidden() -> set[str]:
    """Names of the products that come along, and of their kinds."""
    ours = [product for product in products().values() if (ROOT / "tasks" / "products" / product.name).is_dir()]
    return {name for product in ours for name in (product.name, *product.kinds)}


def docstrings_of(tree: ast.AST) -> set[int]:
    """Ids of the constants that are prose: docstrings, and the texts that stand below an attribute."""
    return {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def words_of(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, identifier or text, word in it) of a file."""
    tree = ast.parse(path.read_text("utf-8"))
    prose = docstrings_of(tree)
    for node in ast.walk(tree):
        if id(node) in prose:
            continue
        for text in texts_of(node):
            for word in _WORD.findall(text):
                yield getattr(node, "lineno", 0), text, word.lower()


def texts_of(node: ast.AST) -> Iterator[str]:
    """Identifiers of a node, and texts that are no sentences."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        if not re.search(r"\s", node.value.strip()):
            yield node.value
    elif isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.arg | ast.keyword):
        yield node.arg or ""
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.alias):
        yield node.name
        yield node.asname or ""


def hits() -> dict[str, list[str]]:
    """File of generic code -> where it names a product or a kind."""
    names, found = forbidden(), {}
    assert {"segments", "instance", "semantic", "panoptic", "detection"} <= names
    for package in ("tasks", "flows"):
        for path in sorted((ROOT / package).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            lines = [f"{place}:{line} {text!r}" for line, text, word in words_of(path) if word in names]
            if lines and not place.startswith(OWN):
                found[place] = list(dict.fromkeys(lines))
    return found


def test_generic_code_names_no_product_and_no_kind() -> None:
    found = hits()
    new = [line for place, lines in found.items() if place not in EXCUSED for line in lines]
    assert not new, "\n".join(new)
    assert set(EXCUSED) <= set(found), f"no excuse is needed any more for {sorted(set(EXCUSED) - set(found))}"
