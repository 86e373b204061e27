"""``docs/models.md`` says what is: its table is the registry's, its code runs.

``python -m tests.modelkit.test_docs`` renews the table.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from modelkit import list_models
from modelkit.catalogue import CATALOGUE
from modelkit.listing import catalogue_text
from modelkit.registry import temporary_registrations

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
_TABLE = re.compile(r"(<!-- models:begin -->\n).*?(<!-- models:end -->)", re.DOTALL)
_CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def table() -> str:
    """The models as a Markdown table."""
    lines = ["| name | architecture | kind | parameters | weights |", "|---|---|---|---:|---|"]
    for info in list_models():
        weights = "embedded" if info.embedded else ", ".join(info.weights) or "–"
        lines.append(f"| `{info.name}` | {info.architecture} | {info.kind} | {info.num_parameters:,} | {weights} |")
    return "\n".join(lines) + "\n"


def test_the_table_is_the_registrys() -> None:
    found = _TABLE.search(PAGE.read_text())
    assert found is not None
    assert found[0] == f"{found[1]}{table()}{found[2]}", "run: python -m tests.modelkit.test_docs"


def test_what_is_told_without_torch_is_the_registrys() -> None:
    assert CATALOGUE.read_text("utf-8") == catalogue_text(), "run: make catalogue"


@pytest.mark.parametrize("code", _CODE.findall(PAGE.read_text()), ids=lambda code: code.strip().splitlines()[-1][:30])
def test_the_code_runs(code: str) -> None:
    with temporary_registrations():
        exec(compile(code, str(PAGE), "exec"), {"__name__": "page"})


def renew() -> None:
    """Write the table into the page."""
    PAGE.write_text(_TABLE.sub(lambda found: f"{found[1]}{table()}{found[2]}", PAGE.read_text()))


if __name__ == "__main__":
    renew()
