"""The columns of ``docs/querying.md``, from the schema: ``python -m tasks.output.schema_docs FILE`` renews them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from tasks.output.schema import schema_of
from tasks.records import Product

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
    if pa.types.is_timestamp(kind):
        return "time (UTC, µs)"
    return {"double": "float64", "float": "float32", "string": "text", "binary": "bytes"}.get(str(kind), str(kind))


def renewed(text: str, product: Product = "segments") -> str:
    """The document with its tables of columns as the schemas are now; the measured one shows what it has on top.

    Raises:
        ValueError: when the document has no such places.
    """
    schema_id, schema = schema_of(product)
    measured_id, measured = schema_of(product, measured=True)
    for name, fields in ((schema_id, list(schema)), (measured_id, [each for each in measured if each not in schema])):
        begin = BEGIN.format(name)
        if begin not in text or END not in text.partition(begin)[2]:
            raise ValueError(f"the document must hold {begin!r} and, after it, {END!r}")
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(END)
        text = f"{before}{begin}\n{columns_markdown(fields)}\n{END}{after}"
    return text


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(renewed(document.read_text()))
