"""Load a compiled graph and run it once, in a process of its own, so that a graph that crashes takes nobody along.

    python -P graph_trial.py PATH DEVICE CONTIGUOUS|CHANNELS_LAST N 3 H W

Run as a file, for it needs torch and nothing of this package; ``-P`` keeps this folder's names from those of others.
"""

from __future__ import annotations

import sys

import torch
import torch._inductor


def main(path: str, device: str, layout: str, *shape: str) -> None:
    """As the worker will do it."""
    graph = torch._inductor.aoti_load_package(path, run_single_threaded=True)
    batch = torch.zeros([int(side) for side in shape], device=device)
    if layout == "CHANNELS_LAST":
        batch = batch.contiguous(memory_format=torch.channels_last)
    for value in graph(batch).values():
        value.cpu()  # a GPU reports what went wrong when its results are asked for


if __name__ == "__main__":
    main(*sys.argv[1:])
