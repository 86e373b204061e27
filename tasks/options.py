"""What the command line has to know of a field of parameters, beside its name, type, default and description."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Option:
    """Metadata of a field: ``Annotated[str | None, Option("from"), Field(description="Weights to begin from.")]``.

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
