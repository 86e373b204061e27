"""A product of two pages: the five main colours of an image. ``tasks/products/README.md`` goes through it by number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor, nn

from infra.store import Store
from modelkit import VisionModel
from modelkit.transform import Geometry, ImageTransform
from tasks.output.tables import column
from tasks.output.views import Views
from tasks.parameters import CHANGES_ROWS, JobParameters
from tasks.product import Exporter, Product
from tasks.report.panels import Panels, Ranking, Tile


@dataclass(frozen=True)
class Palette:
    """1. The carrier: colours (n, 3) uint8 and shares (n,) float32 of the image, the largest first."""

    size_hw: tuple[int, int]
    colours: np.ndarray
    shares: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.colours.nbytes + self.shares.nbytes

    def __len__(self) -> int:
        return len(self.colours)

    def chosen(self, places: np.ndarray) -> Palette:
        return Palette(self.size_hw, self.colours[places], self.shares[places])

    def cpu(self) -> Palette:
        return self

    def finish(self, min_share: float = 0.0) -> Palette:
        return self.chosen(np.flatnonzero(self.shares >= min_share))


class MainColours(VisionModel):
    """2. A model that gives it, of the kind "palette": counts pixels in 64 cells of the colour cube."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.loss_weights = {}
        self.transform = ImageTransform(64, 64, mean=(0, 0, 0), std=(1, 1, 1), size_divisible=8)

    def forward(self, images: Sequence[Tensor], targets: Any = None) -> dict[str, Tensor]:
        return {}

    def dense(self, batch: Tensor) -> dict[str, Tensor]:
        return {"cells": (batch * self.gain * 3.999).floor()}

    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[Palette]:
        return [self._palette(cells, geometry) for cells, geometry in zip(raw["cells"], geometries, strict=True)]

    def _palette(self, cells: Tensor, geometry: Geometry) -> Palette:
        height, width = geometry.resized_hw
        found, counts = cells[:, :height, :width].flatten(1).unique(dim=1, return_counts=True)
        first = counts.argsort(descending=True, stable=True)[:5]
        colours = (found[:, first].T * 64 + 32).to(torch.uint8).numpy()
        return Palette(geometry.source_hw, colours, (counts[first] / counts.sum()).numpy())


class PaletteParameters(JobParameters):
    """3. What a job is asked with."""

    model: str = "main_colours"
    weights: str | None = "random:0"
    min_share: Annotated[float, CHANGES_ROWS, Field(ge=0, le=1, description="Rarer colours are dropped.")] = 0.01


def schemas() -> dict[str, list[pa.Field]]:
    """4. The columns beside the common ones."""
    shares = column("shares", pa.list_(pa.float32()), "share of the image, per colour", unit="[0, 1]")
    return {"palette.v1": [column("colours", pa.list_(pa.string()), "#rrggbb, the largest share first"), shares]}


def columns(found: Sequence[Palette | None], class_names: Mapping[int, str]) -> dict[str, list[Any]]:
    """5. From carriers to columns."""
    return {
        "colours": [one and [f"#{bytes(colour).hex()}" for colour in one.colours] for one in found],
        "shares": [one and one.shares.tolist() for one in found],
    }


def check(found: pa.Table) -> Iterator[str]:
    """6. What cannot be."""
    for uri, shares in zip(found["uri"].to_pylist(), found["shares"].to_pylist(), strict=True):
        if sum(shares) > 1.001 or sorted(shares, reverse=True) != shares:
            yield f"row of {uri!r}: shares {shares}"


COLOURS = """
SELECT uri, frame, colours[i] AS colour, shares[i] AS share, version
FROM (SELECT *, unnest(range(1, len(colours) + 1)) AS i FROM items WHERE status = 'ok')
"""  # 7. a row per thing


def write_css(views: Views, store: Store, key: str) -> int:
    """8. Another tool's form."""
    rows = views.connection.sql("SELECT DISTINCT colour FROM colours ORDER BY colour").fetchall()
    store.put(key, "".join(f".c{n} {{ color: {colour}; }}\n" for n, (colour,) in enumerate(rows)).encode())
    return len(rows)


def overlay(image: np.ndarray, row: Mapping[str, Any], *, in_strip: bool = False) -> np.ndarray:
    """9. A picture with its colours as a bar along its lower edge."""
    drawn, width = image.copy(), image.shape[1] // 5
    for place, colour in enumerate(row["colours"]):
        drawn[-max(1, len(image) // 8) :, place * width : (place + 1) * width] = list(bytes.fromhex(colour[1:]))
    return drawn


def panels(views: Views) -> Panels:
    """10. The report's own part."""
    [(count,)] = views.connection.sql("SELECT count(DISTINCT colour) FROM colours").fetchall()
    return Panels(
        title="Palettes",
        query=PRODUCT.query,
        tiles=(Tile("Colours", str(count)),),
        rankings=(Ranking("Plainest", "items whose first colour covers most", "shares[1] DESC"),),
        summary=lambda row: ", ".join(row["colours"]),
    )


PRODUCT = Product(
    name="palette", verb="paint", doing="painting", unit="colours", kinds={"palette": None},
    schema="palette.v1", schemas=schemas, parameters=PaletteParameters, columns=columns, check=check,
    options=lambda parameters: {"min_score": parameters.min_share}, categories=("colours.list.element",),
    views={"colours": COLOURS}, query="SELECT colour, sum(share) AS images FROM colours GROUP BY 1 ORDER BY 2 DESC",
    exporters={"css": Exporter("a class per colour", write_css, "colours.css")}, overlay=overlay, panels=panels,
)  # fmt: skip
