"""A predictor as one graph, written as ONNX or as a program of ``torch.export``.

    image  (H, W, 3) uint8 RGB, any size  ->  results by name, in pixels of the image

The network's input has the shape that images of one size get (``source_hw``); see ``modelkit.exporting.preprocessing``
for the others.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modelkit.carriers import SizeHW
from modelkit.errors import ConfigError
from modelkit.exporting.canvas import Canvas
from modelkit.exporting.preprocessing import Preparation
from modelkit.predictor import Predictor
from modelkit.records import write_whole
from modelkit.video import VideoModel

FORMS = ("onnx", "torch")
USUAL_SOURCE_HW = (480, 640)
_EXTRA = "pip install 'visionmill[onnx]'"
_LEAST_SIDE, _MOST_SIDE = 2, 1 << 15


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Args:
        path: of the file. form: of ``FORMS``.
        outputs: name -> number format.
        network_hw: rows and columns of the network's input.
        left_to_caller: what of a result the graph does not hold; "" where it is whole.
    """

    path: Path
    form: str
    outputs: dict[str, str]
    network_hw: SizeHW
    left_to_caller: str


class ImageProgram(nn.Module):
    """The graph as a module: preprocessing, network, decoding.

    Args:
        predictor: on the CPU; its record's way of running (autocast, memory format) does not count.
        source_hw: size of the images that the network's shape is chosen for.

    Raises:
        ConfigError: a model that cannot be exported, with the reason.
    """

    def __init__(self, predictor: Predictor, source_hw: SizeHW = USUAL_SOURCE_HW) -> None:
        super().__init__()
        if isinstance(predictor.model, VideoModel):
            raise ConfigError("it remembers earlier frames, and a graph of single images would drop what it is for")
        if not predictor.model.has_graph:
            predictor.model.traced({}, Canvas(source_hw, torch.zeros(2), source_hw))  # says why
        self.model = predictor.model
        self.preparation = Preparation(predictor.model.transform, source_hw)
        self.eval()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(H, W, 3) uint8 RGB to results by name."""
        batch, canvas = self.preparation(image)
        raw = {
            name: each.float() if each.is_floating_point() else each for name, each in self.model.dense(batch).items()
        }
        return self.model.traced(raw, canvas)


def export_model(predictor: Predictor, path: Path | str, form: str, source_hw: SizeHW = USUAL_SOURCE_HW) -> Exported:
    """Write a predictor as a file that needs none of this code.

    Args:
        predictor: on the CPU.
        path: of the file; replaced, whole or not at all.
        form: "onnx" (opset 20, for onnxruntime and others) or "torch" (``torch.export.load``).
        source_hw: see ``ImageProgram``.

    Raises:
        ConfigError: an unknown form, a model that cannot be exported, or a package that is missing.
    """
    if form not in FORMS:
        raise ConfigError(f"there is no form {form!r}: {', '.join(FORMS)}")
    if form == "onnx" and (missing := [each for each in ("onnx", "onnxscript") if not importlib.util.find_spec(each)]):
        raise ConfigError(f"ONNX needs the packages {', '.join(missing)}: {_EXTRA}")
    reference = predictor.weights.reference
    try:
        module = ImageProgram(predictor, source_hw)
        program = _traced(module, source_hw)
    except ConfigError as error:
        raise ConfigError(f"{reference} cannot be exported: {error}") from error
    record = {**predictor.weights.to_json(), "left_to_caller": module.model.left_to_caller}
    content = _as_onnx(program, record) if form == "onnx" else _as_torch(program, record)
    write_whole(Path(path), content)
    outputs = _described(program)
    return Exported(Path(path), form, outputs, module.preparation.padded_hw, module.model.left_to_caller)


def _traced(module: ImageProgram, source_hw: SizeHW) -> torch.export.ExportedProgram:
    rows, columns = (torch.export.Dim(name, min=_LEAST_SIDE, max=_MOST_SIDE) for name in ("height", "width"))
    example = torch.zeros((*source_hw, 3), dtype=torch.uint8)
    with torch.no_grad(), _quiet():
        return torch.export.export(module, (example,), dynamic_shapes=({0: rows, 1: columns},), strict=False)


def _as_torch(program: torch.export.ExportedProgram, record: dict[str, Any]) -> bytes:
    import io

    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"record.json": json.dumps(record)})
    return file.getvalue()


def _as_onnx(program: torch.export.ExportedProgram, record: dict[str, Any]) -> bytes:
    names = list(_described(program))
    with _quiet():
        made = torch.onnx.export(
            program, dynamo=True, opset_version=20, input_names=["image"], output_names=names, verbose=False
        )
    assert made is not None
    proto = made.model_proto
    for key, value in record.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = f"visionmill.{key}", value if isinstance(value, str) else json.dumps(value)
    return proto.SerializeToString()


def _described(program: torch.export.ExportedProgram) -> dict[str, str]:
    """Name of each output -> its number format."""
    nodes = program.graph.output_node().args[0]
    spec = program.call_spec.out_spec
    assert spec is not None
    names = list(torch.utils._pytree.tree_unflatten(list(nodes), spec))  # type: ignore[arg-type]
    return {name: f"{node.meta['val'].dtype}"[6:] for name, node in zip(names, nodes, strict=True)}  # type: ignore


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters tell developers of torch much that is nobody else's."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
