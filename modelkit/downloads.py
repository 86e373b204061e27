"""Published weights as files: where they are, where they are kept here, how they get from there to here; no torch."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from modelkit.errors import WeightsUnavailableError

TRANSLATION = 2  # to be raised when the importer makes something else of a published file
_TIMEOUT_S = 20.0
_TELL_EVERY_S = 5.0
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """One published checkpoint: of which model, under which name, at which address."""

    model: str
    weights: str
    url: str

    @property
    def digest_prefix(self) -> str:
        """First eight digits of the file's SHA-256, which torchvision puts into its name."""
        return self._name.stem.rsplit("-", 1)[-1]

    @property
    def path(self) -> Path:
        """Where it is looked for and put: torch's own cache of checkpoints."""
        return hub_folder() / "checkpoints" / self._name.name

    @property
    def _name(self) -> Path:
        return Path(urllib.parse.urlparse(self.url).path)


def hub_folder() -> Path:
    """``torch.hub.get_dir()``, found by the same rules where torch is not imported."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return Path(torch.hub.get_dir())
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TORCH_HOME") or Path(caches) / "torch").expanduser() / "hub"


def cache_folder() -> Path:
    """Where translated published weights are kept, below torch's own cache: a folder for each way of translating, or
    machines that translated them before would go on computing by the old rules.
    """
    return hub_folder() / "visionmill" / f"translation-{TRANSLATION}"


def fetch(file: PublishedFile) -> Path:
    """The published file, from torch's checkpoint cache or downloaded into it, its digest checked.

    What is downloaded, how much of it is here and where it goes is told on stderr every few seconds.

    Raises:
        WeightsUnavailableError: when it cannot be downloaded; names the file to put in place and what comes along.
    """
    path = file.path
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".partial", delete=False) as scratch:
        try:
            digest = hashlib.sha256()
            for chunk in _chunks(file):
                scratch.write(chunk)
                digest.update(chunk)
            scratch.flush()
            if not digest.hexdigest().startswith(file.digest_prefix):
                raise _unavailable(file, f"arrived damaged (SHA-256 {digest.hexdigest()[:12]}...)")
            os.chmod(scratch.name, 0o644)
            os.replace(scratch.name, path)
        except OSError as error:  # URLError, timeouts and broken connections are all of them
            raise _unavailable(file, f"could not be downloaded ({error})") from error
        finally:
            Path(scratch.name).unlink(missing_ok=True)
    return path


def _chunks(file: PublishedFile) -> Iterator[bytes]:
    with urllib.request.urlopen(file.url, timeout=_TIMEOUT_S) as answer:
        total = int(answer.headers.get("Content-Length") or 0)
        size = f" ({total / 2**20:.0f} MiB)" if total else ""
        _tell(f"downloading {file.url}{size} to {file.path}")
        yield from _told(answer, total)


def _told(answer: BinaryIO, total: int) -> Iterator[bytes]:
    received, told_at = 0, time.monotonic()
    while chunk := answer.read(_CHUNK):
        received += len(chunk)
        if time.monotonic() - told_at > _TELL_EVERY_S:
            told_at = time.monotonic()
            share = f", {100 * received / total:.0f} %" if total else ""
            _tell(f"  {received / 2**20:.0f} MiB are here{share}")
        yield chunk


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _unavailable(file: PublishedFile, reason: str) -> WeightsUnavailableError:
    from modelkit.catalogue import come_along  # which knows this module

    return WeightsUnavailableError(
        f"weights {file.weights} of {file.model} {reason} from {file.url}; download that file "
        f"elsewhere and put it at {file.path}{come_along(file.model)}"
    )
