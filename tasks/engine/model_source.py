"""Where a model's weights come from: names and local paths pass through, remote URIs are fetched once per machine.

Workers on other machines call this too, so that a job's description holds only the URI and never the tensors.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from infra.errors import DatasetError
from infra.settings import settings
from infra.store import Store, open_store, split_uri
from modelkit.catalogue import to_be_fetched
from modelkit.downloads import PublishedFile

TENSORS, RECORD = ".safetensors", ".json"


def local_model(model: str) -> str:
    """A name or path that ``modelkit.load`` understands.

    Args:
        model: a registered name, a local path, or ``s3://.../name.safetensors`` or the folder that holds one such file
            with its record beside it.

    Returns:
        ``model`` itself for names and local paths; else the path of the cached copy, complete and never half-written.

    Raises:
        DatasetError: when the URI does not name one pair of tensor file and record.
        StoreError: when the store refuses.
    """
    if "://" not in model:
        return model
    root_uri, key = split_uri(model)
    store = open_store(root_uri)
    tensors = _tensor_key(store, key, model)
    record = tensors.removesuffix(TENSORS) + RECORD
    etags = "|".join(store.info(name).etag for name in (tensors, record))
    folder = settings().cache_dir / "weights" / hashlib.sha256(f"{model}|{etags}".encode()).hexdigest()[:16]
    for name in (record, tensors):  # the tensors last: their presence says that the pair is whole
        _copy_once(store, name, folder / Path(name).name)
    return str(folder / Path(tensors).name)


def not_here_yet(model: str) -> PublishedFile | None:
    """The published weights that a name means, where this machine has to download them first."""
    return to_be_fetched(model)


def _tensor_key(store: Store, key: str, model: str) -> str:
    if key.endswith(TENSORS):
        return key
    prefix = key.rstrip("/") + "/" if key else ""
    found = [entry.key for entry in store.list(prefix) if entry.key.endswith(TENSORS)]
    if len(found) != 1:
        raise DatasetError(
            f"{model} must hold one {TENSORS} file, found {len(found)}",
            hint=f"name the {TENSORS} file itself; its record ({RECORD}) lies beside it",
        )
    return found[0]


def _copy_once(store: Store, key: str, path: Path) -> None:
    """Write beside the target and rename: two workers of one machine may race, readers see all or nothing."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(store.get(key))
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
