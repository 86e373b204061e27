"""Toys are known while their own tests run, and forgotten afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from modelkit.registry import temporary_registrations
from tasks import product
from tests.toys import dominant_colour


@pytest.fixture(autouse=True, scope="module")
def _toys() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, temporary_registrations():
        patch.setattr(product, "_KINDS", dict(product._KINDS))
        dominant_colour.register()
        yield
