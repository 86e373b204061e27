"""A self-training loop as a process of its own, to be killed: python -m tests.chaos.loop PARAMETERS_JSON."""

from __future__ import annotations

import json
import sys

from flows.loop_parameters import RetrainParameters
from flows.retrain import run_retrain
from infra.problems import checked


def main() -> int:
    """Carry the loop out, and say what came of it."""
    print(json.dumps(run_retrain(checked(RetrainParameters, **json.loads(sys.argv[1])), orchestrated=False)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
