"""What the flows accept that run the self-training loop, move its champion and watch its data.

As in :mod:`flows.parameters`, nonsense and credentials are refused here, and fields are the command line's options.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from flows.parameters import LABELS, SIZE, GroupParameters, Logs, Size
from tasks.loop.promises import GEOMETRY_PRECISION
from tasks.loop.split_names import split_name
from tasks.parameters import ARGUMENT, NO_CREDENTIALS, RAY, LookParameters, Option, refuse_secrets
from tasks.product import kind_names


class RetrainParameters(LookParameters, GroupParameters):
    """Parameters of ``retrain_model``."""

    labelled: Annotated[str, Field(min_length=1, json_schema_extra=NO_CREDENTIALS, description=LABELS)]
    unlabelled: Annotated[
        str,
        Field(
            min_length=1,
            json_schema_extra=NO_CREDENTIALS,
            description="Images and videos without labels, as `segment` takes them.",
        ),
    ]
    output: Annotated[
        str,
        Field(
            min_length=1, json_schema_extra=NO_CREDENTIALS, description="Folder or s3:// prefix that holds the loop."
        ),
    ]
    rounds: Annotated[int, Field(ge=1, le=10, description="Turns of the loop at most.")] = 1
    max_rounds: Annotated[
        int, Field(ge=1, le=10, description="Looks at the gate set that its level is divided for.")
    ] = 3
    task: Annotated[
        str | None,
        Field(
            description="Kind of the models (`visionmill models list`). Default: the recipe's, else that of the labels."
        ),
    ] = None
    recipe: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Name of a recipe, model or kind, or URI of a recipe's JSON. Default: derived from the labels.",
        ),
    ] = None
    initial: Annotated[str | None, Option("from"), Field(description="Weights that every model begins from.")] = None
    size: Annotated[Size, Field(description=SIZE)] = "small"
    steps: Annotated[
        int | None,
        Field(ge=1, le=10_000_000, description="Optimiser steps of each model. Default: as many as the recipe says."),
    ] = None
    seed: Annotated[int, Field(ge=0, description="Of everything random, the splits included.")] = 0
    shares: Annotated[
        dict[str, float],
        Option("share", metavar="SPLIT=SHARE"),
        Field(
            description="Share of the labelled items in a split: train, calibration, gate or test.",
            examples=[{"train": 0.5}],
        ),
    ] = Field(default_factory=lambda: {"train": 0.4, "calibration": 0.2, "gate": 0.25, "test": 0.15})
    calibration: Annotated[
        Literal["holdout", "crossfit"],
        Field(
            description="holdout: labels that no model learns from decide thresholds; crossfit: all labels "
            "train and calibrate, for the price of one more model a fold (first round only)."
        ),
    ] = "holdout"
    folds: Annotated[
        int, Field(ge=2, le=20, description="With crossfit: parts of the labels, and models that leave one out.")
    ] = 5
    frame_stride: Annotated[int, Field(ge=1, le=100_000, description="Every n-th frame of unlabelled videos.")] = 1
    tta: Annotated[
        tuple[Literal["hflip", "0.75x", "1.25x"], ...],
        Field(
            description="A view that teachers look at beside the plain one; hflip only where a mirror changes no class."
        ),
    ] = ()
    detector: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Finds the objects of unlabelled images for models that look at one at a time: a name, or "
            "weights. Default: the one object of each image is looked for where labelled ones usually are.",
        ),
    ] = None
    box_score: Annotated[float, Field(ge=0, le=1, description="Its boxes that score less are not looked at.")] = 0.5
    box_classes: Annotated[
        tuple[str, ...],
        Option(name="box-class", metavar="NAME"),
        Field(description="Class of its boxes that are looked at; may be repeated. Default: all classes."),
    ] = ()
    precision: Annotated[
        float,
        Field(
            ge=0.5,
            le=0.99,
            description="Promised of accepted labels, if held-out ones can prove it; .1 less where labels are few.",
        ),
    ] = 0.9
    class_precision: Annotated[
        dict[str, Annotated[float, Field(ge=0.5, le=0.99)]],
        Option("class-precision", metavar="CLASS=PRECISION"),
        Field(description="Promised of accepted labels of a class, in place of --precision.", examples=[{"pole": 0.7}]),
    ] = Field(default_factory=dict)
    geometry_precision: Annotated[
        float,
        Field(
            ge=0.5,
            le=0.99,
            description="Promised of the boxes and masks of accepted objects, of which an IoU of .75 is right; those "
            "that cannot prove it teach their class only.",
        ),
    ] = GEOMETRY_PRECISION
    min_gain: Annotated[float, Field(ge=0, le=1, description="Gain over the champion that matters.")] = 0.003
    audit: Annotated[
        str | None, Field(description="Labels of people who looked at unlabelled images; without, the gate stays shut.")
    ] = None
    audit_labels: Annotated[int, Field(ge=1, description="Accepted labels that are drawn for the audit.")] = 150
    require_approval: Annotated[
        bool, Field(description="A candidate that passes waits for a person: `visionmill promote`.")
    ] = False
    log: Logs = ()
    ray: Annotated[str | None, Field(description=RAY)] = None
    workers: Annotated[int, Field(ge=1, le=4096, description="Training processes.")] = 1
    gpus: Annotated[bool, Field(description="One GPU for each training process.")] = False

    @field_validator("labelled", "unlabelled", "output", "recipe", "initial", "audit", "detector", "ray")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        return value if value is None else refuse_secrets(value)

    @field_validator("task")
    @classmethod
    def _known_kind(cls, value: str | None) -> str | None:
        if value is not None and value not in kind_names():
            raise ValueError(f"there is no kind of model {value!r}; kinds: {', '.join(kind_names())}")
        return value

    @field_validator("shares")
    @classmethod
    def _splits_by_name(cls, value: dict[str, float]) -> dict[str, float]:
        return {split_name(name): share for name, share in value.items()}  # L, C, G and T are taken, too

    @field_validator("tta")
    @classmethod
    def _each_view_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _rounds_are_paid_for(self) -> RetrainParameters:
        if self.rounds > self.max_rounds:
            raise ValueError(
                f"{self.rounds} rounds need as many looks at the gate set, max_rounds is {self.max_rounds}"
            )
        return self

    @model_validator(mode="after")
    def _crossfit_is_for_the_first_round(self) -> RetrainParameters:
        if self.crossfit and self.rounds > 1:
            raise ValueError(
                "crossfit calibrates the first round only: the teacher of the second has learnt from every label, "
                "so that none is left to calibrate it; more rounds need holdout"
            )
        return self

    def object_options(self) -> dict[str, Any]:
        """Who finds objects, where somebody is named: what a loop's name did not know of before there was this."""
        if self.detector is None:
            return {}
        return {"detector": self.detector, "box_score": self.box_score, "box_classes": sorted(self.box_classes)}

    def promise_options(self) -> dict[str, Any]:
        """What is promised of geometry, where that is not usual: a loop's name did not know of it before, either."""
        usual = self.geometry_precision == GEOMETRY_PRECISION
        return {} if usual else {"geometry_precision": self.geometry_precision}

    @property
    def crossfit(self) -> bool:
        """Whether every label both trains and calibrates."""
        return self.calibration == "crossfit"

    @property
    def effective_shares(self) -> dict[str, float]:
        """Share of the labelled items by split: where nothing is held out to calibrate, its share trains, too."""
        if not self.crossfit:
            return dict(self.shares)
        given = self.shares.get
        return {**self.shares, "train": given("train", 0.0) + given("calibration", 0.0), "calibration": 0.0}


class MoveParameters(BaseModel):
    """What every move of a champion is asked with."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    output: Annotated[str, ARGUMENT, Field(min_length=1, description="Output of a retraining: folder or s3:// prefix.")]
    approver: Annotated[
        str, Option(missing=""), Field(description="Who says so; on the command line your login name unless given.")
    ]
    reason: Annotated[str, Option(missing=""), Field(description="Why, in words.")]

    @field_validator("output")
    @classmethod
    def _no_credentials(cls, value: str) -> str:
        return refuse_secrets(value)


class PromoteParameters(MoveParameters):
    """Parameters of ``promote_model``."""

    candidate: Annotated[
        str, ARGUMENT, Field(description="Verdict id of the candidate; the one that waits, if only one.")
    ] = ""
    decline: Annotated[bool, Field(description="Say no to the candidate: the champion stays.")] = False


class RollbackParameters(MoveParameters):
    """Parameters of ``rollback_model``."""

    to: Annotated[str, Field(description="Model id of an earlier champion; the one before unless given.")] = ""


class WatchParameters(BaseModel):
    """Parameters of ``watch_for_retraining``."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    retrain: Annotated[RetrainParameters, Field(description="The loop that is started when it is due.")]
    deployment: Annotated[
        str,
        Field(
            pattern="^[^/]+/[^/]+$",
            examples=["retrain-model/retrain"],
            description="Flow and deployment that carry the loop out.",
        ),
    ] = "retrain-model/retrain"
    min_new_objects: Annotated[int, Field(ge=1, description="So many new unlabelled objects are enough.")] = 1000
