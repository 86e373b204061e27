"""Models of one's own, without a fork: ``--model package.module:function`` names what makes the predictor.

The function gets the :class:`tasks.engine.job.JobSpec` (``device``, ``model_options``) and returns a predictor:
``prepare``, ``infer`` and ``finish`` as ``modelkit.Predictor`` has them, or a ``modelkit.FunctionPredictor``. It may
state its kind (``function.kind = "semantic"``). Rows are told apart by the digest of its code: every Python file of the
module's package, or the module alone, and the file given as ``--weights``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path

import modelkit
from infra.by_name import resolve
from infra.errors import UsageError
from tasks.product import Product, default_product

_NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):[A-Za-z_]\w*")


def is_own_model(model: str) -> bool:
    """Whether a name means a function: "module:function" of a module that exists, or any with a dotted module.

    A model of modelkit's comes first: "lraspp_mobilenet_v3_large:COCO_V1" names weights.
    """
    found = _NAME.fullmatch(model)
    if found is None or Path(model).exists():
        return False
    module = found[1]
    if "." in module:
        return True
    return all(module != info.name for info in modelkit.list_models()) and importlib.util.find_spec(module) is not None


def own_record(model: str, weights: str | None, product: Product | None = None) -> modelkit.Weights:
    """The record of such a model; its digest is that of its code and its weights.

    Raises:
        UsageError: there is no such function.
    """
    function = resolve(model)
    kind = getattr(function, "kind", None) or next(iter((product or default_product()).kinds))
    files = code_files(model)
    lineage = {"kind": "code", "function": model, "files": len(files), "weights": weights}
    return modelkit.Weights(
        name=model,
        architecture=model,
        config={},
        kind=str(kind),
        classes=(),
        preprocessing={},
        digest=code_digest(model, weights),
        num_parameters=0,
        lineage=lineage,
        record_counts=False,  # the digest is of all that there is
    )


def code_digest(model: str, weights: str | None = None) -> str:
    """SHA-256, hex, of names and contents of its files, and of the weights: of the file, or of their name."""
    digest = hashlib.sha256(model.encode())
    for name, path in code_files(model).items():
        digest.update(f"\0{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    if weights is not None:
        path = Path(weights)
        digest.update(f"\0weights\0{_file_digest(path) if path.is_file() else weights}".encode())
    return digest.hexdigest()


def code_files(model: str) -> dict[str, Path]:
    """Name -> file of the package that the function's module belongs to, or of the module alone."""
    top = model.partition(":")[0].partition(".")[0]
    spec = importlib.util.find_spec(top)
    if spec is None or (spec.origin is None and not spec.submodule_search_locations):
        raise UsageError(f"no module {top!r}", hint="Install it, or put its folder into PYTHONPATH.")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not folders:
        return {f"{top}.py": Path(str(spec.origin))}
    found = {str(path.relative_to(folder)): path for folder in folders for path in folder.rglob("*.py")}
    return dict(sorted(found.items()))


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
