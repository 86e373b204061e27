"""What is wrong with parameters, in words that name no part of Pydantic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from infra.errors import UsageError

P = TypeVar("P", bound=BaseModel)

_WANTED = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "literal_error": "{expected}",
    "string_type": "text",
    "string_pattern_mismatch": "like {pattern}",
}
_NUMBERS = {"int": "a whole number", "float": "a number", "finite": "a finite number", "bool": "true or false"}


def checked(kind: type[P], **values: object) -> P:
    """Build parameters.

    Raises:
        UsageError: names every field at fault.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        raise UsageError(problems_of(error, kind)) from None


def problems_of(
    error: ValidationError, model: type[BaseModel], name_of: Callable[[str, FieldInfo], str] = lambda name, _: name
) -> str:
    """Every field at fault with what it should be, in one line; ``name_of`` says what a field is called here."""
    by_field: dict[str, list[Any]] = {}
    for each in error.errors():
        found = each | {"examples": _examples(each["loc"], model)}
        by_field.setdefault(_field(each["loc"], model, name_of), []).append(found)
    return "; ".join(": ".join(filter(None, (name, _problem(found)))) for name, found in by_field.items())


def _field(loc: tuple[int | str, ...], model: type[BaseModel], name_of: Callable[[str, FieldInfo], str]) -> str:
    """What Pydantic adds for the branch of a union or the place in a list is left out."""
    if not loc:
        return ""
    field = model.model_fields.get(str(loc[0]))
    if field is None:
        return str(loc[0])
    inner = field.annotation
    if len(loc) > 1 and isinstance(inner, type) and issubclass(inner, BaseModel):
        return f"{name_of(str(loc[0]), field)}.{_field(loc[1:], inner, name_of)}"
    return name_of(str(loc[0]), field)


def _examples(loc: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """Of a field, where it has some: people read them more easily than a pattern."""
    field = model.model_fields.get(str(loc[0])) if loc else None
    return [str(each) for each in (field.examples or [])] if field is not None else []


def _problem(found: list[Any]) -> str:
    """One problem, or those of all branches of a union, which are read as "this or that"."""
    first = found[0]
    match first["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return "there is no such parameter"
        case "string_too_short":
            return "must not be empty"
        case "value_error":
            return str(first["msg"]).removeprefix("Value error, ")
    wanted = dict.fromkeys(_wanted(each) for each in found)
    return f"must be {' or '.join(wanted)}, got {first['input']!r}"


def _wanted(problem: Any) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "string_pattern_mismatch" and problem["examples"]:
        return f"like {' or '.join(problem['examples'])}"
    if kind in _WANTED:
        return _WANTED[kind].format(**context)
    return _NUMBERS.get(kind.partition("_")[0]) or str(problem["msg"])
