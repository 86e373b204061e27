from __future__ import annotations

import errno
from pathlib import Path

import duckdb
import pytest

from infra.errors import NoSpaceLeft
from tasks.ingest.spill import local_disk, workbench

LARGE_SORT = "SELECT hash(range)::VARCHAR || repeat('x', 90) AS s FROM range(3_000_000) ORDER BY s"  # 330 MB
# Two threads pin about 100 MB whatever the limit is (at 96 MB one try in seven fails), so a tighter one tests luck.
MEMORY_BYTES = 192 << 20


def test_the_workbench_leaves_nothing_behind(tmp_path: Path) -> None:
    with workbench(tmp_path) as (connection, scratch):
        connection.execute("CREATE TABLE t AS SELECT range AS i FROM range(1000)").fetchall()
        assert connection.execute("SELECT sum(i) FROM t").fetchall() == [(499500,)]
        assert scratch.is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_sort_larger_than_its_memory_spills_and_is_right(tmp_path: Path) -> None:
    with workbench(tmp_path, MEMORY_BYTES) as (connection, scratch):
        out = scratch / "sorted.parquet"
        connection.execute(f"COPY ({LARGE_SORT}) TO '{out}' (FORMAT parquet)").fetchall()
        assert connection.execute(f"SELECT count(*), count(DISTINCT s) FROM '{out}'").fetchall() == [
            (3_000_000, 3_000_000)
        ]


def test_a_full_spill_space_is_one_clear_error(tmp_path: Path) -> None:
    def overflow() -> None:
        with workbench(tmp_path, MEMORY_BYTES) as (connection, scratch):
            connection.execute("SET max_temp_directory_size = '1MB'").fetchall()
            connection.execute(f"COPY ({LARGE_SORT}) TO '{scratch}/sorted.parquet' (FORMAT parquet)").fetchall()

    with pytest.raises(NoSpaceLeft, match="no space left for work files"):
        overflow()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Quota exceeded"),
        duckdb.IOException("IO Error: Could not write file: No space left on device"),
    ],
)
def test_a_full_disk_is_one_clear_error(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(NoSpaceLeft, match=str(tmp_path)), local_disk(tmp_path):
        raise error


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "denied"), duckdb.IOException("IO Error: cannot open")])
def test_other_errors_pass(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)), local_disk(tmp_path):
        raise error
