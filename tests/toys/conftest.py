"""Toys are known while their own tests run, and forgotten afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import pytest

from modelkit import registry
from modelkit.carriers.targets import FIELDS
from tasks import product
from tests.toys import dominant_colour


@pytest.fixture(autouse=True, scope="module")
def _toys() -> Iterator[None]:
    with product.temporary_registrations(), registry.temporary_registrations(), patch.dict(FIELDS):
        dominant_colour.register()
        yield
