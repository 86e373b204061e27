"""DuckDB as a bounded workbench: sorts and joins of any size inside a fixed memory, spilling to a folder."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from infra.errors import NoSpaceLeft

MEMORY_BYTES = 384 << 20
THREADS = 2  # every thread has sort buffers of its own


@contextmanager
def local_disk(folder: Path) -> Iterator[None]:
    """Turn a full disk under ``folder`` into one clear error, whichever library notices it."""
    hint = "Free space, or point the work folder to a larger disk; running again resumes."
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoSpaceLeft(f"no space left for work files in {folder}", hint=hint) from error
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        words = str(error).lower()
        if "no space left" not in words and "max_temp_directory_size" not in words:
            raise
        raise NoSpaceLeft(f"no space left for work files in {folder}", hint=hint) from error


@contextmanager
def workbench(folder: Path, memory_bytes: int = MEMORY_BYTES) -> Iterator[tuple[duckdb.DuckDBPyConnection, Path]]:
    """A connection and a scratch folder below ``folder``; both are gone afterwards.

    Tables live in a file, not in memory. Nothing is downloaded: extensions are neither installed nor loaded.
    """
    with local_disk(folder), tempfile.TemporaryDirectory(prefix="workbench-", dir=folder) as name:
        scratch = Path(name)
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": f"{memory_bytes}B",
            "temp_directory": str(scratch / "spill"),
            "threads": THREADS,
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        connection = duckdb.connect(str(scratch / "tables.duckdb"), config=config)
        try:
            yield connection, scratch
        finally:
            connection.close()
