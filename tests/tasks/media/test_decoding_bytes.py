"""Memory that decoding takes is told before it begins, from the header alone, and kept to."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import tasks.engine.items as items_module
from infra.machine import malloc_environment
from tasks.engine.job import Assignment
from tasks.engine.worker import Worker
from tasks.media.images import decoding_bytes
from tasks.records import Entry
from tests.tasks.engine.fakes import job_for, shards_of

WIDTH, HEIGHT = 400, 300


def encoded(kind: str, mode: str = "RGB", size_wh: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.new("RGB", size_wh).convert(mode)
    if mode == "RGBA":
        image.putalpha(7)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = 6
    return exif


def science(dtype: str, bands: int) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((HEIGHT, WIDTH, bands), dtype), photometric="rgb")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "at_least"),  # bytes a pixel, as measured on 16 and 25 megapixels
    [
        (encoded("JPEG"), 3.01),
        (encoded("JPEG", exif=turned()), 6.0),
        (encoded("JPEG", progressive=True, subsampling=0), 9.01),
        (encoded("JPEG", "CMYK"), 11.6),
        (encoded("PNG"), 7.7),
        (encoded("PNG", "P"), 8.6),
        (encoded("PNG", "RGBA"), 20.1),
        (encoded("TIFF", "F"), 28.3),
        (science("uint16", 3), 16.4),
        (science("float32", 3), 84.4),
        (encoded("WEBP"), 16.3),
        (encoded("WEBP", "RGBA"), 29.7),
        (encoded("JPEG2000"), 20.1),
        (encoded("JPEG2000", "RGBA"), 25.5),
        (encoded("AVIF"), 9.9),
        (encoded("AVIF", "RGBA"), 24.7),
    ],
    ids="jpeg turned progressive cmyk png palette alpha float rgb16 rgb32f webp webp-a jp2 jp2-a avif avif-a".split(),
)
def test_a_header_tells_at_least_what_was_measured_and_not_much_more(data: bytes, at_least: float) -> None:
    assert at_least <= decoding_bytes(data) / (WIDTH * HEIGHT) <= 1.4 * at_least


def test_what_is_no_image_takes_nothing() -> None:
    assert decoding_bytes(b"") == decoding_bytes(b"not an image") == decoding_bytes(encoded("PNG")[:12]) == 0


def test_images_whose_decoding_takes_more_than_there_is_go_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, lock = items_module.decode_fetched, threading.Lock()
    inside, most = [0], [0]

    def watched(*arguments: Any) -> Any:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        frames = list(honest(*arguments))
        with lock:
            inside[0] -= 1
        yield from frames

    monkeypatch.setattr(items_module, "decode_fetched", watched)
    entries = []
    for index in range(6):
        path = tmp_path / f"{index}.png"
        path.write_bytes(encoded("PNG"))
        status = path.stat()
        entries.append(Entry(str(path), f"{status.st_mtime_ns}-{status.st_size}", status.st_size, "image"))
    job = job_for(tmp_path / "out", memory_bytes=WIDTH * HEIGHT * 8, decode_threads=4)
    worker = Worker(job, own_process=False)
    try:
        (shard,) = shards_of(entries, 6)
        outcome = worker.process(Assignment(shard, attempt_id="attempt-0000000000001"))
    finally:
        worker.close()
    assert outcome.receipt is not None and outcome.receipt.ok == 6
    assert most[0] == 1


_GROWTH = """
import psutil, sys, threading
from pathlib import Path
from tasks.engine.job import Assignment
from tasks.engine.worker import Worker
from tasks.records import Entry
from tests.tasks.engine.fakes import job_for, shards_of

def entry(path):
    status = path.stat()
    return Entry(str(path), f"{status.st_mtime_ns}-{status.st_size}", status.st_size, "image")

folder, out, memory_bytes = sys.argv[1:]
small, *large = map(entry, sorted(Path(folder).iterdir()))
worker = Worker(job_for(out, memory_bytes=int(memory_bytes), memory_is_limit=True), own_process=False)
first, second = shards_of([small], 1) + shards_of(large, len(large))
worker.process(Assignment(first, attempt_id="attempt-0000000000001"))
before, most, done, process = psutil.Process().memory_info().rss, 0, threading.Event(), psutil.Process()

def watch():
    global most
    while not done.wait(0.002):
        most = max(most, process.memory_info().rss)

watcher = threading.Thread(target=watch)
watcher.start()
receipt = worker.process(Assignment(second, attempt_id="attempt-0000000000002")).receipt
done.set()
watcher.join()
print(receipt.ok, receipt.failed, (most - before) >> 20, receipt.error_sample[:1])
"""


@pytest.mark.parametrize(("memory_mib", "fits"), [(128, True), (48, False)])
def test_a_worker_grows_by_no_more_than_it_may_and_says_which_images_it_has_no_room_for(
    tmp_path: Path, memory_mib: int, fits: bool
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "0.jpg").write_bytes(encoded("JPEG"))
    for index in range(1, 9):
        (folder / f"{index}.jpg").write_bytes(encoded("JPEG", size_wh=(5000, 4000)))  # 57 MiB of pixels each
    command = [sys.executable, "-c", _GROWTH, str(folder), str(tmp_path / "out"), str(memory_mib << 20)]
    run = subprocess.run(command, env=os.environ | malloc_environment(), capture_output=True, text=True, check=True)
    ok, failed, grown_mib, why = run.stdout.split(maxsplit=3)
    assert (int(ok), int(failed)) == ((8, 0) if fits else (0, 8))
    assert int(grown_mib) <= memory_mib
    assert fits or ("--memory-bytes 50331648 is too little, 102400000 is enough" in why)
