"""What the flows accept. Pydantic stands at this door: nonsense is refused before anything is touched.

Prefect stores flow parameters readable, so nothing secret may pass here: a URI that carries credentials is refused.
The same fields are the command line's options.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from tasks.media.options import check_sample_range
from tasks.options import ARGUMENT, Option

EMBEDDED_MODEL = "digitscape_mask_rcnn"

_CREDENTIALS_IN_URI = re.compile(r"^[a-z0-9+]+://[^/@]*:[^/@]*@", re.IGNORECASE)
_SCHEMES = ("s3://", "file://")

LABELS = "Human labels: COCO or Label Studio JSON, CVAT XML, masks, Parquet."
RAY = "Address of a Ray cluster; 'none' runs in this process. Default: a local Ray."

# The same refusal for Prefect's server, which checks a trigger's parameters by JSON schema before it stores them.
_NO_CREDENTIALS: dict[str, JsonValue] = {"not": {"pattern": "^[A-Za-z0-9+]+://[^/@]*:[^/@]*@"}}


def _refuse_secrets(uri: str) -> str:
    if _CREDENTIALS_IN_URI.match(uri):
        raise ValueError(
            "carries credentials; put them into AWS_ACCESS_KEY_ID / AWS_SECRET_ACCESS_KEY or use an instance role"
        )
    return uri


class JobParameters(BaseModel):
    """What every dataset-wide job takes. Fields marked *rows* are part of the version: changing one changes rows."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=False)

    source: Annotated[
        str,
        Field(
            min_length=1,
            json_schema_extra=_NO_CREDENTIALS,
            description="folder, glob, s3:// prefix, video, tar shards, COCO JSON or a listing",
        ),
    ]
    output: Annotated[
        str,
        Field(
            min_length=1, json_schema_extra=_NO_CREDENTIALS, description="folder or s3:// prefix that holds the results"
        ),
    ]
    model: Annotated[
        str, Field(min_length=1, description="name of a model, or file or folder of its weights (rows)")
    ] = EMBEDDED_MODEL
    weights: Annotated[str | None, Field(description="other weights for the model, or random:SEED (rows)")] = None
    ray: Annotated[
        str | None, Field(description="address of a Ray cluster; none = in this process; default: local")
    ] = None
    workers: Annotated[int | Literal["auto"], Field(description="number of workers")] = "auto"
    gpus_per_worker: Annotated[
        float | None, Field(ge=0, le=8, description="GPUs of one worker; default: a share of those of this machine")
    ] = None
    fresh: Annotated[bool, Field(description="process everything again, in the same version")] = False
    retry_failed: Annotated[bool, Field(description="process only the items that failed")] = False
    new_version: Annotated[bool, Field(description="allow a second version beside the one in the output")] = False
    frame_stride: Annotated[int, Field(ge=1, le=100_000, description="every n-th frame of a video (rows)")] = 1
    max_pixels: Annotated[int, Field(ge=1, description="larger images are refused as decompression bombs (rows)")] = (
        178_956_970
    )
    max_file_bytes: Annotated[
        int, Field(ge=1, description="larger image files are refused before they are fetched (rows)")
    ] = 1 << 30
    damaged: Annotated[
        Literal["failed", "keep"],
        Field(description="pixels that the decoder gives with a complaint: a failed item, or kept with a note (rows)"),
    ] = "failed"
    colour: Annotated[
        Literal["srgb", "stored"],
        Field(description="convert by stored colour profiles, or take numbers as they are (rows)"),
    ] = "srgb"
    sample_range: Annotated[
        str,
        Field(
            description="samples that become black and white in images deeper than 8 bits: auto, full (of the type),"
            " image (its own smallest and largest) or LOW:HIGH (rows)",
        ),
    ] = "auto"
    batch_size: Annotated[
        int | None, Field(ge=1, le=4096, description="images per forward pass; default: by device")
    ] = None
    shard_items: Annotated[int, Field(ge=1, le=100_000, description="at most so many items in a shard")] = 256
    shard_bytes: Annotated[int, Field(ge=1, description="about so many source bytes in a shard")] = 64 << 20
    memory_bytes: Annotated[int, Field(ge=1 << 20, description="bytes in flight inside one worker")] = 512 << 20
    compile: Annotated[Literal["auto", "off", "on"], Field(description="compiled inference")] = "auto"
    max_consecutive_failures: Annotated[
        int, Field(ge=1, description="the circuit opens after so many failed items in a row")
    ] = 200
    report: Annotated[bool, Field(description="write report/index.html at the end")] = True

    @field_validator("source", "output", "model", "weights", "ray")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        return value if value is None else _refuse_secrets(value)

    @field_validator("sample_range")
    @classmethod
    def _range_makes_sense(cls, value: str) -> str:
        check_sample_range(value)
        return value

    @field_validator("workers")
    @classmethod
    def _workers_positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and not 1 <= value <= 100_000:
            raise ValueError(f"must be auto or at least 1, got {value}")
        return value

    @field_validator("output")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        if "://" in value and not value.startswith(_SCHEMES):
            raise ValueError(f"must be a folder or start with one of {', '.join(_SCHEMES)}, got {value!r}")
        return value


class SegmentParameters(JobParameters):
    """Parameters of ``segment_dataset``."""

    score_threshold: Annotated[float, Field(ge=0, le=1, description="weaker instances are dropped (rows)")] = 0.05


class TrainParameters(BaseModel):
    """Parameters of ``train_model``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labelled: Annotated[str, ARGUMENT, Field(min_length=1, json_schema_extra=_NO_CREDENTIALS, description=LABELS)]
    output: Annotated[
        str,
        ARGUMENT,
        Field(
            min_length=1,
            json_schema_extra=_NO_CREDENTIALS,
            description="Folder or s3:// prefix that receives checkpoints and weights.",
        ),
    ]
    recipe: Annotated[str, Field(min_length=1, description="Name of a recipe or model, or URI of a recipe's JSON.")] = (
        "digitscape"
    )
    name: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the weights.")] = (
        None
    )
    steps: Annotated[int, Field(ge=1, le=10_000_000, description="Optimiser steps.")] = 1000
    batch_size: Annotated[int | None, Field(ge=1, le=4096, description="Images per worker and step.")] = None
    seed: Annotated[int, Field(ge=0, description="Of everything random.")] = 0
    initial: Annotated[
        str | None,
        Option("from"),
        Field(description="Transfer: weights to begin from; what does not fit starts anew."),
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
    evaluate: Annotated[str | None, Field(description="Labels to judge the weights on at the end.")] = None
    ray: Annotated[str | None, Field(description=RAY)] = None
    workers: Annotated[
        int, Field(ge=1, le=4096, description="Training processes; another number is another training.")
    ] = 1
    gpus: Annotated[bool, Field(description="One GPU for each worker.")] = False

    @field_validator("labelled", "output", "recipe", "initial", "teacher", "evaluate", "ray")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        return value if value is None else _refuse_secrets(value)

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


class RetrainParameters(BaseModel):
    """Parameters of ``retrain_model``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labelled: Annotated[str, Field(min_length=1, json_schema_extra=_NO_CREDENTIALS, description=LABELS)]
    unlabelled: Annotated[
        str,
        Field(
            min_length=1,
            json_schema_extra=_NO_CREDENTIALS,
            description="Images and videos without labels, as `segment` takes them.",
        ),
    ]
    output: Annotated[
        str,
        Field(
            min_length=1, json_schema_extra=_NO_CREDENTIALS, description="Folder or s3:// prefix that holds the loop."
        ),
    ]
    rounds: Annotated[int, Field(ge=1, le=10, description="Turns of the loop at most.")] = 1
    max_rounds: Annotated[
        int, Field(ge=1, le=10, description="Looks at the gate set that its level is divided for.")
    ] = 3
    task: Annotated[
        Literal["instance", "semantic", "panoptic"], Field(description="What the models of the loop do.")
    ] = "instance"
    recipe: Annotated[
        str | None,
        Field(min_length=1, description="Name of a recipe or model, or URI of a recipe's JSON. Default: by task."),
    ] = None
    initial: Annotated[str | None, Option("from"), Field(description="Weights that every model begins from.")] = None
    steps: Annotated[int, Field(ge=1, le=10_000_000, description="Optimiser steps of each model.")] = 1000
    seed: Annotated[int, Field(ge=0, description="Of everything random, the splits included.")] = 0
    shares: Annotated[
        dict[str, float],
        Option("share", metavar="SPLIT=SHARE"),
        Field(description="Share of the labelled items in a split: L, C, G or T.", examples=[{"L": 0.5}]),
    ] = Field(default_factory=lambda: {"L": 0.4, "C": 0.2, "G": 0.25, "T": 0.15})
    calibration: Annotated[
        Literal["holdout", "crossfit"],
        Field(
            description="holdout: labels of C, which no model learns from, decide thresholds; crossfit: all labels "
            "train and calibrate, for the price of one more model a fold (first round only)."
        ),
    ] = "holdout"
    folds: Annotated[
        int, Field(ge=2, le=20, description="With crossfit: parts of L, and models that leave one out.")
    ] = 5
    group_rule: Annotated[str, Field(description="What is never divided between splits: item, folder, video, ...")] = (
        "item"
    )
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
            description="Promised of accepted labels, if C can prove it; .1 less where labels are few.",
        ),
    ] = 0.9
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
        return value if value is None else _refuse_secrets(value)

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
        """Share of the labelled items by split: without a C its share goes to L."""
        if not self.crossfit:
            return dict(self.shares)
        return {**self.shares, "L": self.shares.get("L", 0.0) + self.shares.get("C", 0.0), "C": 0.0}


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
        return _refuse_secrets(value)


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
        str, Field(pattern="^[^/]+/[^/]+$", description="Flow and deployment that carry the loop out.")
    ] = "retrain-model/retrain"
    min_new_objects: Annotated[int, Field(ge=1, description="So many new unlabelled objects are enough.")] = 1000
