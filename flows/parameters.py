"""What the flows accept that train and teach; see :mod:`tasks.parameters` for jobs.

Pydantic stands at this door: nonsense is refused before anything is touched.

Prefect stores flow parameters readable, so nothing secret may pass here: a URI that carries credentials is refused.
The same fields are the command line's options.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tasks.loop.split_names import split_name
from tasks.parameters import ARGUMENT, MODEL, NO_CREDENTIALS, RAY, LookParameters, Option, refuse_secrets
from tasks.product import kind_names
from tasks.training.run_log import logger_words

Size = Literal["small", "usual"]
SIZE = "Of the model whose recipe is derived: small trains on processors, usual is ResNet-50 and wants a GPU."
LABELS = "Human labels: COCO or Label Studio JSON, CVAT XML, masks, Parquet."


class LabelParameters(BaseModel):
    """How files of labels are read, whichever a command is given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images_root: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Where the images lie that the labels name. Default: found in the usual layouts.",
        ),
    ] = None
    classes: Annotated[
        str | None,
        Field(
            min_length=1,
            description="File with the classes to use, id: name or a list of names; the labels' are matched by name.",
        ),
    ] = None
    allow_dropped: Annotated[
        bool, Field(description="Go on although labels cannot be read, images are missing, or no object teaches.")
    ] = False

    @field_validator("images_root", "classes")
    @classmethod
    def _no_credentials_in_uris(cls, value: str | None) -> str | None:
        return value if value is None else refuse_secrets(value)


class GroupParameters(LabelParameters):
    """How labels that are divided are grouped first."""

    group_rule: Annotated[
        str,
        Field(
            min_length=1,
            description="What is never divided between splits: auto (sequences of names whose pictures look alike, "
            "videos), item, folder, or a regular expression over the URI whose first group names it. Near-duplicates "
            "never are.",
        ),
    ] = "auto"

    @field_validator("group_rule")
    @classmethod
    def _expression(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is neither auto, item nor folder, nor a regular expression: {error}") from None
        return value


class EvaluateParameters(LookParameters, LabelParameters):
    """What ``visionmill evaluate`` is asked with."""

    model: Annotated[str, ARGUMENT, Field(min_length=1, description=MODEL)]
    labelled: Annotated[str, ARGUMENT, Field(min_length=1, description=LABELS)]
    weights: Annotated[str | None, Field(description="Other weights for the model: a file, or random:SEED.")] = None
    device: Annotated[str, Field(description="cpu, or cuda.")] = "cpu"


class InspectParameters(GroupParameters):
    """What ``visionmill inspect`` is asked with."""

    labelled: Annotated[str, ARGUMENT, Field(min_length=1, description=LABELS)]
    recipe: Annotated[
        str | None,
        Field(
            min_length=1, description="Recipe, model or kind in place of what the labels call for, as train takes it."
        ),
    ] = None
    size: Annotated[Size, Field(description=SIZE)] = "small"
    steps: Annotated[
        int | None, Field(ge=1, le=10_000_000, description="Optimiser steps. Default: as many as the labels call for.")
    ] = None
    save: Annotated[str | None, Field(min_length=1, description="Write the recipe there, as JSON for train.")] = None
    duplicates: Annotated[
        bool, Field(description="Open the images, too, and look for near-duplicates and sequences.")
    ] = True

    @field_validator("labelled", "recipe", "save")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        return value if value is None else refuse_secrets(value)


class TrainParameters(GroupParameters):
    """Parameters of ``train_model``."""

    labelled: Annotated[str, ARGUMENT, Field(min_length=1, json_schema_extra=NO_CREDENTIALS, description=LABELS)]
    output: Annotated[
        str,
        ARGUMENT,
        Field(
            min_length=1,
            json_schema_extra=NO_CREDENTIALS,
            description="Folder or s3:// prefix that receives checkpoints and weights.",
        ),
    ]
    recipe: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Name of a recipe, model or kind, or URI of a recipe's JSON. Default: derived from the labels.",
        ),
    ] = None
    name: Annotated[
        str | None,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", examples=["street-signs_2"], description="Name of the weights."),
    ] = None
    size: Annotated[Size, Field(description=SIZE)] = "small"
    steps: Annotated[
        int | None, Field(ge=1, le=10_000_000, description="Optimiser steps. Default: as many as the recipe says.")
    ] = None
    batch_size: Annotated[int | None, Field(ge=1, le=4096, description="Images per worker and step.")] = None
    seed: Annotated[int, Field(ge=0, description="Of everything random.")] = 0
    initial: Annotated[
        str | None,
        Option("from"),
        Field(description="Transfer: weights to begin from, or imagenet; what does not fit starts anew."),
    ] = None
    freeze: Annotated[
        tuple[str, ...], Field(description="Transfer: a part that stays as it is, such as backbone.")
    ] = ()
    rate_scales: Annotated[
        dict[str, float],
        Option("rate-scale", metavar="PART=FACTOR"),
        Field(description="Transfer: factor on the learning rate of a part.", examples=[{"backbone": 0.1}]),
    ] = Field(default_factory=dict)
    teacher: Annotated[str | None, Field(description="Distillation: weights of the teacher.")] = None
    alpha: Annotated[
        float, Field(ge=0, le=1, description="Distillation: weight of the teacher against the labels.")
    ] = 0.5
    temperature: Annotated[float, Field(gt=0, description="Distillation: of both softmaxes.")] = 4.0
    validation: Annotated[
        float | None,
        Field(
            ge=0,
            le=0.5,
            description="Share of the labels to judge by on the way, and not to learn from. Default: a tenth of 20 or "
            "more where the recipe is derived from the labels, else none.",
        ),
    ] = None
    validate_every: Annotated[
        int | None, Field(ge=1, description="Steps between two such looks. Default: ten looks in all.")
    ] = None
    patience: Annotated[
        int | None, Field(ge=1, description="End after so many looks in a row that saw nothing better. Default: never.")
    ] = None
    evaluate: Annotated[str | None, Field(description="Labels to judge the weights on at the end.")] = None
    log: Annotated[
        tuple[str, ...],
        Option(metavar="NAME:WHERE"),
        Field(description=f"Log figures while it trains, beside the page of curves: {logger_words()}."),
    ] = ()
    ray: Annotated[str | None, Field(description=RAY)] = None
    workers: Annotated[
        int, Field(ge=1, le=4096, description="Training processes; another number is another training.")
    ] = 1
    gpus: Annotated[bool, Field(description="One GPU for each worker.")] = False

    @field_validator("labelled", "output", "recipe", "initial", "teacher", "evaluate", "ray")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        return value if value is None else refuse_secrets(value)

    @field_validator("log")
    @classmethod
    def _no_credentials_in_logs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for spec in value:
            try:
                refuse_secrets(spec.partition(":")[2])
            except ValueError:
                raise ValueError("carries credentials; put them where the logger's library looks for them") from None
        return value

    @field_validator("rate_scales")
    @classmethod
    def _scales_positive(cls, value: dict[str, float]) -> dict[str, float]:
        if any(not 0 < scale <= 100 for scale in value.values()):
            raise ValueError(f"must be factors above 0, got {value}; to hold a part still, freeze it")
        return value

    @model_validator(mode="after")
    def _serial_is_one_worker(self) -> TrainParameters:
        if self.ray == "none" and (self.workers > 1 or self.gpus):
            raise ValueError("ray 'none' trains with one worker in this process")
        return self


class DigitscapeParameters(BaseModel):
    """What ``visionmill digitscape`` composes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: Annotated[
        str, ARGUMENT, Field(min_length=1, description="Folder or s3:// prefix that receives images and labels.")
    ]
    split: Annotated[
        Literal["train", "val", "test"], Field(description="Which digits and photographs; the three share none.")
    ] = "train"
    scenes: Annotated[int, Field(ge=1, le=10_000_000, description="How many.")] = 100
    first: Annotated[int, Field(ge=0, description="Index of the first scene.")] = 0
    size: Annotated[
        str,
        Field(
            pattern=r"^\d{2,5}(x\d{2,5})?$",
            examples=["160", "120x160"],
            description="Rows and columns in pixels: 160, or 120x160.",
        ),
    ] = "160"
    seed: Annotated[int, Field(ge=0, description="Another one gives other scenes of the same digits.")] = 0
    style: Annotated[
        Literal["default", "hard"], Field(description="default: what metrics refer to; hard: what recipes train on.")
    ] = "default"
    frames: Annotated[
        int, Field(ge=1, le=10_000, description="More than 1 composes clips (videos) of so many frames.")
    ] = 1
    image_format: Annotated[Literal["png", "jpg"], Field(description="Of the images.")] = "png"

    @field_validator("output")
    @classmethod
    def _no_credentials(cls, value: str) -> str:
        return refuse_secrets(value)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, _, columns = self.size.partition("x")
        return int(rows), int(columns or rows)


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
    min_gain: Annotated[float, Field(ge=0, le=1, description="Gain over the champion that matters.")] = 0.003
    audit: Annotated[
        str | None, Field(description="Labels of people who looked at unlabelled images; without, the gate stays shut.")
    ] = None
    audit_labels: Annotated[int, Field(ge=1, description="Accepted labels that are drawn for the audit.")] = 150
    require_approval: Annotated[
        bool, Field(description="A candidate that passes waits for a person: `visionmill promote`.")
    ] = False
    ray: Annotated[str | None, Field(description=RAY)] = None
    workers: Annotated[int, Field(ge=1, le=4096, description="Training processes.")] = 1
    gpus: Annotated[bool, Field(description="One GPU for each training process.")] = False

    @field_validator("labelled", "unlabelled", "output", "recipe", "initial", "audit", "ray")
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

    model_config = ConfigDict(extra="forbid", frozen=True)

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

    model_config = ConfigDict(extra="forbid", frozen=True)

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
