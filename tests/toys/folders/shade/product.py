"""The record; nothing that it names is imported before it is needed."""

from __future__ import annotations

from infra.by_name import lazily
from tasks.parameters import JobParameters
from tasks.product import Product


class ShadeParameters(JobParameters):
    """What a job is asked with."""

    model: str = "mean_grey"
    weights: str | None = "random:0"


_HERE = "tasks.products.shade"

PRODUCT = Product(
    name="shade",
    verb="meter",
    doing="metering",
    unit="images",
    schema="shade.v1",
    schemas=lazily(f"{_HERE}.rows:schemas"),
    parameters=ShadeParameters,
    columns=lazily(f"{_HERE}.rows:columns"),
    kinds={"shade": None},
    models=f"{_HERE}.models",
    query="SELECT avg(shade) AS mean FROM items",
)
