"""What a landmark job is asked with."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from tasks.parameters import CHANGES_ROWS, MODEL, JobParameters, LookParameters

DEFAULT_MODEL = "keypointrcnn_resnet50_fpn"
"""With its published weights: people and the 17 keypoints of COCO (eyes, shoulders, knees, ...)."""


class LandmarkParameters(LookParameters, JobParameters):
    """Parameters of ``landmark_dataset``."""

    model: Annotated[str, Field(min_length=1, description=MODEL)] = DEFAULT_MODEL
    score_threshold: Annotated[float, CHANGES_ROWS, Field(ge=0, le=1, description="Weaker objects are dropped.")] = 0.05


def model_options(parameters: LandmarkParameters) -> dict[str, Any]:
    """Keywords of ``modelkit.load``."""
    return {"min_score": parameters.score_threshold, **parameters.look_options()}
