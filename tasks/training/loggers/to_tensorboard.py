"""Figures as TensorBoard's event files, written by torch's own writer: ``--log tensorboard:FOLDER``."""

from __future__ import annotations

import json
from collections.abc import Mapping

from tasks.training.run_log import LoggedRun, Logger, absolute

LOGGER = Logger("tensorboard", "FOLDER", f"{__name__}:open_run", "tensorboard", "tensorboard", absolute)


class TensorBoardRun:
    """One run: the folder ``FOLDER/NAME-FINGERPRINT``, so that several lie beside each other in the viewer.

    A run that goes on hides what an earlier process wrote beyond the checkpoint, as TensorBoard has it (purge step).
    """

    def __init__(self, folder: str, run: LoggedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = f"{folder.rstrip('/')}/{run.name}-{run.fingerprint}"
        self._writer = SummaryWriter(place, purge_step=run.begins_at + 1 if run.begins_at else None, flush_secs=10)
        if not run.begins_at:
            self._writer.add_text("recipe", f"```json\n{json.dumps(run.recipe, indent=1)}\n```")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """One scalar each."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def end(self, state: str) -> None:
        """Write what is left."""
        self._writer.close()


def open_run(where: str, run: LoggedRun) -> TensorBoardRun:
    """The run in a folder (or an address that TensorBoard itself can write to)."""
    return TensorBoardRun(where, run)
