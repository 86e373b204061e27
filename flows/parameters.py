"""What the flows accept that train and judge; see :mod:`tasks.parameters` for jobs, `flows.loop_parameters` for loops.

Pydantic stands at this door: nonsense is refused before anything is touched.

Prefect stores flow parameters readable, so nothing secret may pass here: a URI that carries credentials is refused.
The same fields are the command line's options.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from tasks.parameters import ARGUMENT, MODEL, NO_CREDENTIALS, RAY, LookParameters, Option, refuse_secrets
from tasks.training.run_log import logger_words

Size = Literal["small", "usual"]
SIZE = "Of the model whose recipe is derived: small trains on processors, usual is ResNet-50 and wants a GPU."
LABELS = "Human labels: COCO or Label Studio JSON, CVAT XML, masks, Parquet."


def _without_credentials(specs: tuple[str, ...]) -> tuple[str, ...]:
    for spec in specs:
        try:
            refuse_secrets(spec.partition(":")[2])
        except ValueError:
            raise ValueError("carries credentials; put them where the logger's library looks for them") from None
    return specs


Logs = Annotated[
    tuple[str, ...],
    Option(metavar="NAME:WHERE"),
    Field(description=f"Log figures while it trains, beside the page of curves: {logger_words()}."),
    AfterValidator(_without_credentials),
]


class LabelParameters(BaseModel):
    """How files of labels are read, whichever a command is given."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

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


_RULES = (
    "auto (what the labels name, sequences of names whose pictures look alike, videos), item, folder, or a regular "
    "expression over the URI whose first group names it"
)


class GroupParameters(LabelParameters):
    """How labels that are divided are grouped first."""

    group_rule: Annotated[
        str,
        Field(
            min_length=1,
            description=f"What is never divided between splits: {_RULES}. Near-duplicates never are.",
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


class EvaluateParameters(LookParameters, GroupParameters):
    """What ``visionmill evaluate`` is asked with."""

    model: Annotated[str, ARGUMENT, Field(min_length=1, description=MODEL)]
    labelled: Annotated[str, ARGUMENT, Field(min_length=1, description=LABELS)]
    weights: Annotated[str | None, Field(description="Other weights for the model: a file, or random:SEED.")] = None
    device: Annotated[str, Field(description="cpu, or cuda.")] = "cpu"
    suspects: Annotated[
        int | None,
        Field(ge=1, description="List so many labelled objects that are most probably wrong, by the model's doubts."),
    ] = None
    group_rule: Annotated[
        str, Field(min_length=1, description=f"What counts as one in the page's intervals: {_RULES}.")
    ] = "auto"
    page: Annotated[
        str | None,
        Option(metavar="FILE|FOLDER"),
        Field(
            min_length=1,
            description="Also write a page with intervals, errors and the worst pictures there, local or s3://: a file"
            " that ends with .html, or evaluation.html in a folder.",
        ),
    ] = None

    @field_validator("page")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        return value if value is None else refuse_secrets(value)


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
            description="Share of the labels to judge by on the way, and not to learn from. Default: what the "
            "recipe says, of 20 or more; derived ones say a tenth.",
        ),
    ] = None
    validate_every: Annotated[
        int | None, Field(ge=1, description="Steps between two such looks. Default: ten looks in all.")
    ] = None
    patience: Annotated[
        int | None, Field(ge=1, description="End after so many looks in a row that saw nothing better. Default: never.")
    ] = None
    evaluate: Annotated[str | None, Field(description="Labels to judge the weights on at the end.")] = None
    log: Logs = ()
    ray: Annotated[str | None, Field(description=RAY)] = None
    workers: Annotated[
        int, Field(ge=1, le=4096, description="Training processes; another number is another training.")
    ] = 1
    gpus: Annotated[bool, Field(description="One GPU for each worker.")] = False

    @field_validator("labelled", "output", "recipe", "initial", "teacher", "evaluate", "ray")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        return value if value is None else refuse_secrets(value)

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

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

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
    surface_points: Annotated[
        int,
        Field(
            ge=0,
            le=10_000,
            description="Also writes surfaces.json: so many points of each digit's surface (DensePose).",
        ),
    ] = 0

    @field_validator("output")
    @classmethod
    def _no_credentials(cls, value: str) -> str:
        return refuse_secrets(value)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, _, columns = self.size.partition("x")
        return int(rows), int(columns or rows)
