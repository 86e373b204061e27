"""What every dataset-wide job is asked with; each product adds fields of its own (``Product.parameters``).

Prefect stores flow parameters readable, so nothing secret may pass here: a URI that carries credentials is refused.
The same fields are the command line's options.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from tasks.media.options import DecodeOptions, check_sample_range

_CREDENTIALS_IN_URI = re.compile(r"^[a-z0-9+]+://[^/@]*:[^/@]*@", re.IGNORECASE)
_SCHEMES = ("s3://", "file://")

NO_CREDENTIALS: dict[str, JsonValue] = {"not": {"pattern": "^[A-Za-z0-9+]+://[^/@]*:[^/@]*@"}}
"""The same refusal for Prefect's server, which checks a trigger's parameters by JSON schema before it stores them."""

CHANGES_ROWS = "changes rows"
"""Marks a field of a product that is part of the version: ``Annotated[float, CHANGES_ROWS, Field(...)]``."""
CHANGES_ROWS_IF_SET = "changes rows if set"
"""The same for a field that came later than the product's first outputs: it counts where it differs from its default,
so that rows of before stay of one version with those made now."""


MODEL = (
    "Name of a model, file or folder of its weights, output of a retraining (its champion), or package.module:function."
)
MIN_SCORE = 0.5
"""What scores less is stored and answers queries, but is not shown in reports and exports unless asked for."""
RAY = "Address of a Ray cluster; 'none' runs in this process. Default: a local Ray."


@dataclass(frozen=True, slots=True)
class Option:
    """What the command line has to know of a field, beside its name, type, default and description.

    Args:
        name: of the option, without dashes; the field's own name unless given.
        positional: the value is given by its place, not by a name.
        metavar: what the value is called in ``--help``; made from the type unless given.
        missing: stands where a field that the model requires may be left out on the command line.
    """

    name: str | None = None
    positional: bool = False
    metavar: str | None = None
    missing: str | None = None


ARGUMENT = Option(positional=True)


def refuse_secrets(uri: str) -> str:
    """The URI itself. Raises ValueError when it carries credentials."""
    if _CREDENTIALS_IN_URI.match(uri):
        raise ValueError(
            "carries credentials; put them into AWS_ACCESS_KEY_ID / AWS_SECRET_ACCESS_KEY or use an instance role"
        )
    return uri


class LookParameters(BaseModel):
    """How a model looks at images, for every command that has one look; the names are those of ``modelkit.load``."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    detections: Annotated[
        int | None,
        CHANGES_ROWS_IF_SET,
        Field(
            ge=1,
            le=100_000,
            description="Objects found in an image (in each tile of it) at most. Default: as the model has it.",
        ),
    ] = None
    tile: Annotated[
        int | None,
        CHANGES_ROWS_IF_SET,
        Field(
            ge=0,
            le=100_000,
            description="Side of the tiles that larger images are looked at in, pixels; 0: in none. Default: as the "
            "weights want it, most want none.",
        ),
    ] = None
    overlap: Annotated[
        int | None,
        CHANGES_ROWS_IF_SET,
        Field(ge=1, description="Pixels that neighbouring tiles share. Default: an eighth of a tile."),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _overlap_is_known(cls, values: Any) -> Any:
        """It is part of the version, so it is written down even where it was not given."""
        if not isinstance(values, dict) or values.get("overlap") is not None:
            return values
        tile = str(values.get("tile") or "")
        return {**values, "overlap": max(1, int(tile) // 8)} if tile.isdigit() and int(tile) else values

    @model_validator(mode="after")
    def _tiles_overlap(self) -> Self:
        if self.overlap is not None and not self.tile:
            raise ValueError("overlap is of tiles: give tile, too")
        if self.tile and self.overlap is not None and self.overlap > self.tile // 2:
            raise ValueError(f"overlap must be at most half of a tile, got {self.overlap} for tiles of {self.tile}")
        return self

    def look_options(self) -> dict[str, int]:
        """What of it was given, as keywords of ``modelkit.load``."""
        given = {"detections": self.detections, "tile": self.tile, "overlap": self.overlap}
        return {name: value for name, value in given.items() if value is not None}


class JobParameters(BaseModel):
    """What every dataset-wide job takes. Changing a field marked *rows* changes rows: it is part of the version.

    Model and weights are part of it by their digest, decoding by ``DecodeOptions.version_parameters``, a product's own
    fields where they are marked (``CHANGES_ROWS``).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, str_strip_whitespace=False)

    source: Annotated[
        str,
        ARGUMENT,
        Field(
            min_length=1,
            json_schema_extra=NO_CREDENTIALS,
            description="Folder, glob, s3:// prefix, video, tar/WebDataset shards, COCO JSON, listing, S3 Inventory.",
        ),
    ]
    output: Annotated[
        str,
        ARGUMENT,
        Field(
            min_length=1,
            json_schema_extra=NO_CREDENTIALS,
            description="Folder or s3:// prefix that receives the results.",
        ),
    ]
    model: Annotated[str, Field(min_length=1, description=MODEL)]  # rows
    weights: Annotated[  # rows
        str | None, Field(description="Other weights for the model: a file, or random:SEED.")
    ] = None
    images_root: Annotated[
        str | None,
        Field(min_length=1, description="Where the images of a COCO JSON lie. Default: found in the usual layouts."),
    ] = None
    follow_links: Annotated[
        bool, Field(description="Take links that lead out of the source folder, too; without they are left out.")
    ] = False
    ray: Annotated[str | None, Field(description=RAY)] = None
    workers: Annotated[int | Literal["auto"], Field(description="Number of workers, or auto.")] = "auto"
    gpus_per_worker: Annotated[
        float | None,
        Field(
            ge=0,
            le=8,
            description="GPUs of one worker; fractions share a GPU. Default: up to 4 workers share each GPU of this "
            "machine.",
        ),
    ] = None
    limit: Annotated[
        int | None,
        Field(ge=1, description="At most so many objects (a video is one) of those to be done; a later run does more."),
    ] = None
    fresh: Annotated[bool, Field(description="Process everything again, in the same version.")] = False
    retry_failed: Annotated[bool, Field(description="Process only the items that failed.")] = False
    new_version: Annotated[
        bool, Field(description="Allow a second version (model or parameters) beside the first.")
    ] = False
    frame_stride: Annotated[int, Field(ge=1, le=100_000, description="Every n-th frame of a video.")] = 1  # rows
    max_pixels: Annotated[  # rows
        int, Field(ge=1, description="Larger images are refused as decompression bombs.")
    ] = 178_956_970
    max_file_bytes: Annotated[  # rows
        int, Field(ge=1, description="Larger image files are refused before they are fetched.")
    ] = 1 << 30
    damaged: Annotated[  # rows
        Literal["failed", "keep"],
        Field(description="Pixels that the decoder gives with a complaint: a failed item, or kept with a note."),
    ] = "failed"
    colour: Annotated[  # rows
        Literal["srgb", "stored"],
        Field(description="Convert by stored colour profiles, or take numbers as they are."),
    ] = "srgb"
    sample_range: Annotated[  # rows
        str,
        Option(metavar="auto|full|image|LOW:HIGH"),
        Field(
            description="Samples that become black and white in images deeper than 8 bits: auto, full (of the type),"
            " image (its own smallest and largest) or LOW:HIGH.",
        ),
    ] = "auto"
    batch_size: Annotated[
        int | None, Field(ge=1, le=4096, description="Images per forward pass. Default: by device.")
    ] = None
    shard_items: Annotated[int, Field(ge=1, le=100_000, description="At most so many items in a shard.")] = 256
    shard_bytes: Annotated[int, Field(ge=1, description="About so many source bytes in a shard.")] = 64 << 20
    memory_bytes: Annotated[
        int | None,
        Field(
            ge=1 << 20,
            description="Bytes in flight inside one worker; an image that takes more is a failed item. Default: 512 "
            "MiB, and such an image goes alone.",
        ),
    ] = None
    outage_minutes: Annotated[
        float, Field(ge=0, le=1440, description="How long a store that does not answer is waited for.")
    ] = 10.0
    item_minutes: Annotated[
        float | None,
        Field(
            gt=0,
            le=10_080,
            description="Processor time that an item may take in one stage; then it hangs. Default: ten times what the "
            "slowest other one took, at least 1.5.",
        ),
    ] = None
    compile: Annotated[Literal["auto", "off", "on"], Field(description="Compiled inference.")] = "auto"
    max_consecutive_failures: Annotated[
        int, Field(ge=1, description="The circuit opens after so many failed items in a row.")
    ] = 200
    report: Annotated[bool, Field(description="Write report/index.html at the end.")] = True

    @field_validator("source", "output", "model", "weights", "images_root", "ray")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        return value if value is None else refuse_secrets(value)

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

    def decode_options(self) -> DecodeOptions:
        """What of it decoding is told."""
        return DecodeOptions(
            stride=self.frame_stride,
            max_pixels=self.max_pixels,
            max_file_bytes=self.max_file_bytes,
            damaged=self.damaged,
            colour=self.colour,
            sample_range=self.sample_range,
        )

    def row_settings(self) -> dict[str, Any]:
        """The product's own settings that make rows what they are, by name."""
        settings = {}
        for name, each in type(self).model_fields.items():
            value = getattr(self, name)
            if CHANGES_ROWS in each.metadata or (CHANGES_ROWS_IF_SET in each.metadata and value != each.default):
                settings[name] = value
        return settings
