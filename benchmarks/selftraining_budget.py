"""The other budget: a supervised model that looks at as many images as the student did, all of them labelled.

A student's step has the baseline's labelled images and as many pseudo-labelled ones beside them, so it looks at twice
the images in the same steps. Here the baseline's labelled images are twice as many a step, and nothing else changes:
what is left of a gain over *this* model did not come from looking more often.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.selftraining_data import ensure_data, truth_of
from flows.retrain import divide
from flows.round_steps import Running, train_supervised
from flows.steps import plain_steps
from infra.store import open_store
from tasks.evaluation.evaluate import evaluate_predictor
from tasks.labels.reading import read_label_set
from tasks.loop.judging import load_predictor
from tasks.loop.loops import open_loop

if TYPE_CHECKING:  # it imports this module
    from benchmarks.selftraining import Setting


def measure_equal_images(settings: Sequence[Setting], work: Path) -> list[dict[str, Any]]:
    """One model for each setting, those of earlier invocations included."""
    from benchmarks.selftraining import keep_record, known_record

    found = []
    for setting in settings:
        key = f"equal-images-{setting.name}"
        record = known_record(work, key)
        if record is None:
            record = {"task": setting.task, "split": setting.split, "seed": setting.seed, **_carry_out(setting, work)}
            keep_record(work, key, record)
            shutil.rmtree(work / "loops" / key)
        found.append(record)
    return found


def _carry_out(setting: Setting, work: Path) -> dict[str, Any]:
    """Train it as the loop trains its teacher, which is the baseline, and judge it on sealed labels; resumable."""
    from benchmarks.selftraining import parameters_of

    data, output = ensure_data(setting.task, work), work / "loops" / f"equal-images-{setting.name}"
    parameters = parameters_of(setting, data, output)
    recipe = json.loads(Path(parameters.recipe or "").read_text())
    images = 2 * recipe["batch_size"]
    output.mkdir(parents=True, exist_ok=True)
    stated = output / "recipe.json"
    stated.write_text(json.dumps({**recipe, "batch_size": images}))
    parameters = parameters.model_copy(update={"recipe": str(stated)})
    store = open_store(str(output))
    divided = divide(parameters, store)
    loop = open_loop(parameters, store, divided, f"equal-images-{setting.name}")
    running = Running(parameters, loop, plain_steps, None)
    uri, _ = train_supervised(running, divided.split("train"), role="teacher")
    judged = evaluate_predictor(load_predictor(uri), read_label_set(str(truth_of(data, "test"))))
    return {"images_a_step": images, "test": judged.main_figure}
