"""Label sets as one Parquet object: the rows of ``labels.v1``, and in the footer what they are and their classes.

The footer holds ``visionmill.schema`` (``labels.v1``) and ``visionmill.classes``, JSON [[id, name, is_thing], ...].
"""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import DatasetError
from infra.store import open_store, split_uri
from modelkit import ClassInfo
from tasks.labels.label_sets import LabelSet
from tasks.labels.schema import LABELS
from tasks.output.tables import SCHEMA_KEY, checked

CLASSES_KEY = b"visionmill.classes"


def read_stored(uri: str) -> LabelSet:
    """The label set in a Parquet object. Raises DatasetError when it is none, as a job's own rows are."""
    root, key = split_uri(uri)
    try:
        table = pq.read_table(pa.BufferReader(open_store(root).get(key)))
        metadata = table.schema.metadata or {}
        if metadata.get(SCHEMA_KEY, b"").decode() != LABELS.schema_id:
            raise ValueError(f"it holds {metadata.get(SCHEMA_KEY, b'no schema of ours').decode()}")
        classes = tuple(ClassInfo(*each) for each in json.loads(metadata[CLASSES_KEY]))
        return LabelSet(checked(LABELS, table.replace_schema_metadata(None)), classes)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise DatasetError(f"{uri} is no stored label set: {error}") from error
