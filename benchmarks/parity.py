"""What users get through the ``Predictor`` beside what the models' own systems give on the same pictures, as a table.

    python -m benchmarks.parity [NAME ...]

Every torchvision name at the sizes that torchvision uses, and every family of Hugging Face with tiny networks behind
the processors that published checkpoints have; weights are random. The authors' own code (FCN, VainF's DeepLab,
YOLACT) is compared by ``pytest -m reference``; docs/benchmarks/2026-11-29-parity.md has the figures of all.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from modelkit import load
from modelkit.registry import temporary_registrations
from tests.modelkit.builders import picture
from tests.modelkit.huggingface.transformers_models import SEEDS, saved
from tests.modelkit.parity import from_torchvision, from_transformers
from tests.modelkit.parity.differences import Differences

SIZES_HW = ((427, 640), (640, 481))
# As published: SegFormer's square, Mask2Former's on ADE20K, MaskFormer's, DETR's.
PROCESSORS = {
    "SegformerForSemanticSegmentation": {"size": {"height": 512, "width": 512}},
    "Mask2FormerForUniversalSegmentation": {"size": {"shortest_edge": 512, "longest_edge": 2048}},
    "MaskFormerForInstanceSegmentation": {"size": {"shortest_edge": 640, "longest_edge": 2560}},
    "DetrForSegmentation": {"size": {"shortest_edge": 800, "longest_edge": 1333}},
}


def main() -> None:
    """Print a row for each model and picture, as it is there."""
    chosen = set(sys.argv[1:])
    print("| model | picture | compared | missed | score | box, px | mask |\n|---|---|---:|---:|---:|---:|---:|")
    for name in from_torchvision.NAMES:
        if not chosen or name in chosen:
            _print(name, of_torchvision(name))
    for architecture in SEEDS:
        kinds = ("semantic",) if architecture.startswith("Segformer") else ("semantic", "instance", "panoptic")
        for kind in kinds:
            if not chosen or architecture in chosen:
                _print(f"{architecture}, {kind}", of_transformers(architecture, kind))


def of_torchvision(name: str) -> Iterator[Differences]:
    """At the sizes that the importer gives the name, for each picture."""
    theirs = from_torchvision.reference(name)
    with tempfile.TemporaryDirectory() as folder:
        ours = from_torchvision.imported(name, theirs, Path(folder))
    for size_hw in SIZES_HW:
        yield from_torchvision.compare(name, theirs, ours, picture(*size_hw, 4))


def of_transformers(architecture: str, kind: str) -> Iterator[Differences]:
    """One tiny network behind a published processor, for each picture."""
    with tempfile.TemporaryDirectory() as folder, temporary_registrations():
        location, theirs = saved(Path(folder), architecture, 5, PROCESSORS[architecture])
        ours = load(f"hf:{kind}:{location}")
        for size_hw in SIZES_HW:
            yield from_transformers.compare(location, theirs, ours, picture(*size_hw, 4))


def _print(name: str, found: Iterator[Differences]) -> None:
    for (rows, columns), each in zip(SIZES_HW, found, strict=True):
        print(
            f"| {name} | {rows}x{columns} | {each.compared} | {each.missed:.2g} | {each.score:.1e} | {each.box:.1e} | "
            f"{each.mask:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
