"""The columns of ``docs/querying.md``, from the schema: ``python -m tasks.results.schema_docs FILE`` renews them."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa

from tasks.records import Product
from tasks.results.schema import schema_of

BEGIN, END = "<!-- columns of {} -->", "<!-- end of columns -->"


def columns_markdown(schema: pa.Schema) -> str:
    """A Markdown table of a schema: name, type, unit and meaning of every column."""
    lines = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    for each in schema:
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
    """The document with its table of columns as the schema is now.

    Raises:
        ValueError: when the document has no such place.
    """
    schema_id, schema = schema_of(product)
    begin = BEGIN.format(schema_id)
    if begin not in text or END not in text:
        raise ValueError(f"the document must hold {begin!r} and, after it, {END!r}")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(END)
    return f"{before}{begin}\n{columns_markdown(schema)}\n{END}{after}"


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(renewed(document.read_text()))
