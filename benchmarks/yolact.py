"""YOLACT against the implementation of its authors: the same weights, the same picture, turn by turn.

    VISIONMILL_REFERENCE_DIR=FOLDER python -m benchmarks.yolact [--config yolact_resnet50] [--repeats 9]

FOLDER holds a checkout of dbolya/yolact under the name ``yolact``. One thread, float32. From the normalised picture to
compressed run lengths on a photograph of 640 x 427: the authors' way (masks stretched to the photograph, pycocotools),
once as they ran it on one GPU, with TorchScript, against ours, eager. The masks must be byte-equal.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.yolact_reference import PHOTOGRAPH_HW, digest, pictures
from modelkit.importing import import_weights
from modelkit.transform import Geometry
from modelkit.weights import load_weights

_VARIABLE = "VISIONMILL_REFERENCE_DIR"
_CONFIGS = {
    "yolact": "yolact_base_config",
    "yolact_resnet50": "yolact_resnet50_config",
    "yolact_darknet53": "yolact_darknet53_config",
}
_PARTS = ("network", "seconds")


def ours(name: str, checkpoint: Path) -> Callable[[], dict[str, Any]]:
    """What takes one picture through our model with the reference's weights, and answers as it does."""
    import_weights(name, checkpoint, checkpoint.parent / "ours")
    model: Any = load_weights(checkpoint.parent / "ours")[0].eval()
    side = model.transform.min_size
    batch, geometries = pictures(1, side), [Geometry(PHOTOGRAPH_HW, (side, side), (side, side))]

    @torch.inference_mode()
    def turn() -> dict[str, Any]:
        begin = time.perf_counter()
        raw = model.dense(batch)
        network = time.perf_counter() - begin
        masks = model.decode(raw, geometries)[0].finish().rles
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "network": network, "masks": len(masks), "digest": digest(masks)}

    return turn


def compare(name: str, folder: Path, repeats: int) -> str:
    """A table of medians; raises SystemExit when the masks differ."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "theirs.pth"
        command = [sys.executable, "-m", "benchmarks.yolact_reference", str(folder), _CONFIGS[name], str(checkpoint)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdin is not None
            assert child.stdout is not None

            def theirs() -> dict[str, Any]:
                print("go", file=child.stdin, flush=True)
                answer = child.stdout.readline()
                if not answer:
                    raise SystemExit("the reference stopped; its last words are above")
                return json.loads(answer)

            theirs()  # a first time, which compiles; and then its weights are there
            turns = {"the authors'": theirs, "ours": ours(name, checkpoint)}
            answers: dict[str, list[dict[str, Any]]] = {who: [] for who in turns}
            for turn in turns.values():
                turn()
            for _ in range(repeats):
                for who, turn in turns.items():
                    answers[who].append(turn())
            child.stdin.close()
    return _table(name, answers)


def _table(name: str, answers: dict[str, list[dict[str, Any]]]) -> str:
    digests = {each["digest"] for own in answers.values() for each in own}
    masks = {each["masks"] for own in answers.values() for each in own}
    if len(digests) != 1:
        raise SystemExit(f"the masks differ: {masks} of them")
    middle = {who: {part: median(each[part] for each in own) for part in _PARTS} for who, own in answers.items()}
    repeats = len(answers["ours"])
    lines = [f"{name}, {masks.pop()} masks, byte-equal; {repeats} repeats, medians, ms"]
    lines.append(f"{'':14s} {'network':>9s} {'the rest':>9s} {'in all':>9s}")
    for who, parts in middle.items():
        values = (parts["network"], parts["seconds"] - parts["network"], parts["seconds"])
        lines.append(f"{who:14s} " + " ".join(f"{1e3 * value:9.1f}" for value in values))
    (a, b), (c, d) = ((each["network"], each["seconds"]) for each in middle.values())
    lines.append(f"{'times faster':14s} {a / c:9.2f} {(b - a) / (d - c):9.2f} {b / d:9.2f}")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or what is missing for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="yolact_resnet50", choices=sorted(_CONFIGS))
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    folder = Path(os.environ.get(_VARIABLE, "")) / "yolact"
    if not os.environ.get(_VARIABLE) or not folder.is_dir():
        print(f"not measured: needs {_VARIABLE} with a checkout of dbolya/yolact in it, as 'yolact'")
        return
    torch.set_num_threads(1)
    print(compare(given.config, folder, given.repeats))


if __name__ == "__main__":
    main()
