"""Names of what training leaves below an output: the one place that spells them.

training/sets/<id>.parquet                       what was trained on
training/runs/<fingerprint>/run.json             the recipe and the sets
training/runs/<fingerprint>/checkpoint.safetensors   the last checkpoint; gone when the run is done
training/runs/<fingerprint>/best.safetensors     the best student so far of a run with a validation set; gone as well
training/runs/<fingerprint>/curves.html          losses, rate and held-out figures over steps; written while it runs
training/runs/<fingerprint>/NAME.safetensors     the weights, with their record NAME.json beside them
training/validation/<label set id>.parquet       labels that a run is judged by and does not learn from
"""

from __future__ import annotations

RUNS_FOLDER = "training/runs/"


def run_key(fingerprint: str) -> str:
    """The description of a run."""
    return f"{RUNS_FOLDER}{fingerprint}/run.json"


def checkpoint_key(fingerprint: str) -> str:
    """The last checkpoint of a run."""
    return f"{RUNS_FOLDER}{fingerprint}/checkpoint.safetensors"


def best_key(fingerprint: str) -> str:
    """The best student of a run so far."""
    return f"{RUNS_FOLDER}{fingerprint}/best.safetensors"


def curves_key(fingerprint: str) -> str:
    """The page of a run."""
    return f"{RUNS_FOLDER}{fingerprint}/curves.html"


def validation_key(label_set_id: str) -> str:
    """Labels that runs are judged by."""
    return f"training/validation/{label_set_id}.parquet"


def weights_keys(fingerprint: str, name: str) -> tuple[str, str]:
    """Tensors and record of the weights of a run."""
    stem = f"{RUNS_FOLDER}{fingerprint}/{name}"
    return f"{stem}.safetensors", f"{stem}.json"
