"""What a landmark job is asked with."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from tasks.parameters import (
    CHANGES_ROWS,
    MODEL,
    NO_CREDENTIALS,
    JobParameters,
    LookParameters,
    Option,
    refuse_secrets,
)

DEFAULT_MODEL = "keypointrcnn_resnet50_fpn"
"""With its published weights: people and the 17 keypoints of COCO (eyes, shoulders, knees, ...)."""


class LandmarkParameters(LookParameters, JobParameters):
    """Parameters of ``landmark_dataset``."""

    model: Annotated[str, Field(min_length=1, description=MODEL)] = DEFAULT_MODEL
    score_threshold: Annotated[float, CHANGES_ROWS, Field(ge=0, le=1, description="Weaker objects are dropped.")] = 0.05
    detector: Annotated[  # rows, by its digest
        str | None,
        Field(
            min_length=1,
            description="Detector whose objects a top-down model looks at: a name, or weights. Default: the whole "
            "image is one object.",
        ),
    ] = None
    boxes: Annotated[  # rows, by its version
        str | None,
        Field(
            min_length=1,
            json_schema_extra=NO_CREDENTIALS,
            description="Output of an earlier job whose boxes a top-down model looks at, instead of a detector's.",
        ),
    ] = None
    box_score: Annotated[  # rows, where there are boxes
        float, Field(ge=0, le=1, description="Boxes that score less are not looked at.")
    ] = 0.5
    box_classes: Annotated[  # rows, where there are boxes
        tuple[str, ...],
        Option(name="box-class", metavar="NAME"),
        Field(description="Class of boxes that are looked at; may be repeated. Default: all classes."),
    ] = ()

    track: Annotated[  # rows, if set
        bool, Field(description="Follow objects through videos: an object keeps its id from frame to frame.")
    ] = False
    smooth: Annotated[  # rows, if set
        float | None,
        Field(
            gt=0,
            le=10,
            description="With --track: smooth points by a one-euro filter; cycles a frame that pass where a point "
            "rests, such as 0.05. Default: points stay as they are found.",
        ),
    ] = None
    smooth_beta: Annotated[  # rows, if smoothed
        float, Field(ge=0, description="Cycles a frame more for each size of its object that a point goes in a frame.")
    ] = 5.0

    @field_validator("detector", "boxes")
    @classmethod
    def _no_secrets(cls, value: str | None) -> str | None:
        return value if value is None else refuse_secrets(value)

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.detector is not None and self.boxes is not None:
            raise ValueError("boxes come from a detector or from an earlier output: give detector or boxes, not both")
        if self.smooth is not None and not self.track:
            raise ValueError("smooth is for objects that are followed: give track, too")
        return self


def model_options(parameters: LandmarkParameters) -> dict[str, Any]:
    """Keywords of ``modelkit.load``."""
    return {"min_score": parameters.score_threshold, **parameters.look_options()}
