"""A product with files: every picture once more, as a PNG of its own; with the model of the engine's tests."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from tasks.engine.job import JobSpec
from tasks.output.layout import make_version
from tasks.output.tables import column
from tasks.parameters import JobParameters
from tasks.product import FileSink, Product, StoredFile, register
from tests.tasks.engine.fakes import FakePredictor, FakePrepared

COLUMNS = ("file_key", "file_sha256", "file_bytes")


@dataclass(frozen=True)
class Copy:
    """The pixels of a picture; once they are stored, the file that holds them."""

    size_hw: tuple[int, int]
    pixels: np.ndarray | None
    file: StoredFile | None = None

    @property
    def nbytes(self) -> int:
        return 0 if self.pixels is None else self.pixels.nbytes

    def __len__(self) -> int:
        return 1

    def chosen(self, places: np.ndarray) -> Copy:
        return self


class Copier(FakePredictor):
    """Obeys the colour of a picture as the fake does, and gives it back."""

    def finish(self, raw: FakePrepared) -> Copy:  # type: ignore[override]
        super().finish(raw)
        return Copy(raw.size_hw, np.full((*raw.size_hw, 3), raw.rgb, np.uint8))


def make(job: JobSpec) -> Copier:
    """The factory that jobs name; it makes the product known in a worker's process, as an installed package would."""
    register(PRODUCT)
    return Copier(**job.model_options)


def png(copy: Copy) -> dict[str, bytes]:
    sink = io.BytesIO()
    Image.fromarray(copy.pixels).save(sink, "PNG")
    return {"png": sink.getvalue()}


def named(row: Mapping[str, Any]) -> list[StoredFile]:
    return [] if row["file_key"] is None else [StoredFile(*(row[name] for name in COLUMNS))]


def columns(found: Sequence[Copy | None], class_names: Mapping[int, str]) -> dict[str, list[Any]]:
    files = [one and one.file for one in found]
    return {name: [file and getattr(file, field) for file in files]
            for name, field in zip(COLUMNS, ("key", "sha256", "size_bytes"), strict=True)}  # fmt: skip


def schemas() -> dict[str, list[pa.Field]]:
    kinds = (pa.string(), pa.string(), pa.int64())
    return {"copies.v1": [column(*each, "of the copy") for each in zip(COLUMNS, kinds, strict=True)]}


PRODUCT = Product(
    name="copies", verb="copy", doing="copying", unit="copies", schema="copies.v1", schemas=schemas,
    parameters=JobParameters, columns=columns,
    sink=FileSink(png, lambda copy, files: replace(copy, pixels=None, file=files["png"]), COLUMNS, named),
)  # fmt: skip
VERSION = make_version("copies", model="fake@0", model_digest="0" * 64, parameters={}, schema="copies.v1")
