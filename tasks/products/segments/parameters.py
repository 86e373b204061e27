"""What a segmentation job is asked with."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from tasks.parameters import CHANGES_ROWS, MODEL, JobParameters, LookParameters

DEFAULT_MODEL = "maskrcnn_resnet50_fpn_v2"
"""With its published weights: the 80 kinds of things of COCO (people, vehicles, animals, furniture, food, ...)."""


class SegmentParameters(LookParameters, JobParameters):
    """Parameters of ``segment_dataset``."""

    model: Annotated[str, Field(min_length=1, description=MODEL)] = DEFAULT_MODEL
    score_threshold: Annotated[float, CHANGES_ROWS, Field(ge=0, le=1, description="Weaker instances are dropped.")] = (
        0.05
    )


def model_options(parameters: SegmentParameters) -> dict[str, Any]:
    """Keywords of ``modelkit.load``."""
    return {"min_score": parameters.score_threshold, **parameters.look_options()}
