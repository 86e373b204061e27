"""The columns of ``docs/querying.md``, from the schema: ``python -m tasks.output.schema_docs FILE`` renews them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from tasks.output.schema import COMMON
from tasks.product import products

BEGIN, END = "<!-- columns of {} -->", "<!-- end of columns -->"


def columns_markdown(fields: Iterable[pa.Field]) -> str:
    """A Markdown table of columns: name, type, unit and meaning of every one."""
    lines = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    for each in fields:
        metadata = {key.decode(): value.decode() for key, value in (each.metadata or {}).items()}
        kind = _readable(each.type) + ("" if each.nullable else ", never null")
        lines.append(f"| `{each.name}` | {kind} | {metadata.get('unit', '')} | {metadata.get('meaning', '')} |")
    return "\n".join(lines)


def _readable(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {_readable(kind.value_type)}"
    if pa.types.is_struct(kind):
        return f"record of {', '.join(f'{field.name} ({_readable(field.type)})' for field in kind)}"
    if pa.types.is_timestamp(kind):
        return "time (UTC, µs)"
    return {"double": "float64", "float": "float32", "string": "text", "binary": "bytes"}.get(str(kind), str(kind))


def renewed(text: str) -> str:
    """The document with its tables of columns as the schemas are now.

    Of each product the first schema is shown whole, later ones by what they have beside it.

    Raises:
        ValueError: when the document has no place for columns, or one without an end or of an unknown schema.
    """
    places = re.findall(BEGIN.format(r"(\S+)"), text)
    if not places:
        raise ValueError(f"the document must hold {BEGIN.format('SCHEMA')!r} and, after it, {END!r}")
    tables = dict(_tables())
    for name in places:
        if name not in tables:
            raise ValueError(f"there is no schema {name!r}; there are {', '.join(tables)}")
        text = _with_table(text, name, tables[name])
    return text


def _tables() -> Iterator[tuple[str, list[pa.Field]]]:
    for product in products().values():
        (first, own), *others = product.schemas().items()
        yield first, [*COMMON, *own]
        for name, fields in others:
            yield name, [each for each in fields if each not in own]


def _with_table(text: str, name: str, fields: Iterable[pa.Field]) -> str:
    begin = BEGIN.format(name)
    before, _, rest = text.partition(begin)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"after {begin!r} the document must hold {END!r}")
    return f"{before}{begin}\n{columns_markdown(fields)}\n{END}{after}"


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(renewed(document.read_text()))
