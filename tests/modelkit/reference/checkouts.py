"""Where reference implementations lie: ``VISIONMILL_REFERENCE_DIR/<repository>``, checked out by whoever tests.

Their code never enters this repository (several licences forbid it). Tests marked ``reference`` are skipped without it.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

VARIABLE = "VISIONMILL_REFERENCE_DIR"


@contextmanager
def reference(repository: str, *, absent: Sequence[str] = (), bare: Sequence[str] = ()) -> Iterator[Path]:
    """Make a reference repository importable, and forget its modules afterwards; skips the test where it is absent.

    Args:
        repository: folder name, e.g. "Pytorch-UNet".
        absent: modules that it imports without our needing them (data sets, logging); empty ones stand in.
        bare: packages of it whose own ``__init__`` would import too much; only their modules are to be had.
    """
    root = os.environ.get(VARIABLE)
    if not root or not (Path(root) / repository).is_dir():
        pytest.skip(f"needs {VARIABLE} with a checkout of {repository} in it")
    folder, before = (Path(root) / repository).resolve(), dict(sys.modules)
    sys.path.insert(0, str(folder))
    for name in (*absent, *bare):
        sys.modules[name] = types.ModuleType(name)
        if name in bare:
            sys.modules[name].__path__ = [str(folder.joinpath(*name.split(".")))]
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - set(before):
            source = getattr(sys.modules[name], "__file__", None) or ""
            if name in absent or name in bare or source.startswith(str(folder)):
                del sys.modules[name]
        sys.modules.update(before)
