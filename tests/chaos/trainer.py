"""A training run as a process of its own, to be killed: python -m tests.chaos.trainer OUTPUT LABELLED_SET STEPS."""

from __future__ import annotations

import dataclasses
import sys

from tasks.training.job import prepare_training
from tasks.training.run import train_here
from tests.tasks.training.scenes import recipe


def main() -> int:
    """Train to the end; prints the URI of the weights."""
    output, labelled, steps = sys.argv[1:]
    plan = recipe()
    plan = dataclasses.replace(plan, loop=dataclasses.replace(plan.loop, steps=int(steps)))
    print(train_here(prepare_training(output, plan, labelled))[0], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
