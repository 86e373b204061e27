"""A command's options, made from the Pydantic model of its parameters: names, defaults and help stand there, once."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from infra.errors import UsageError
from infra.problems import problems_of
from tasks.parameters import Option

M = TypeVar("M", bound=BaseModel)

_NUMBERS = {int: "<int>", float: "<float>"}


def options_of(model: type[BaseModel]) -> list[inspect.Parameter]:
    """What Typer makes arguments and options of, one for each field."""
    return [_parameter(name, field) for name, field in model.model_fields.items()]


def parameters_from(model: type[M], given: Mapping[str, Any]) -> M:
    """The parameters that a command was given, by name of the field.

    Raises:
        UsageError: names every option at fault.
    """
    values = {name: _read(name, field, given[name]) for name, field in model.model_fields.items()}
    # What may be repeated and was not given at all is left to the model's default.
    values = {name: value for name, value in values.items() if value not in ((), {})}
    try:
        return model(**values)
    except ValidationError as error:
        raise UsageError(problems_of(error, model, name_of), hint="see the command's --help") from None


def name_of(name: str, field: FieldInfo) -> str:
    """As people type it: ``--frame-stride``; the field's name for what is given by its place."""
    shown = _shown(field)
    return name if shown.positional else f"--{(shown.name or name).replace('_', '-')}"


def _shown(field: FieldInfo) -> Option:
    return next((each for each in field.metadata if isinstance(each, Option)), Option())


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    shown, option = _shown(field), name_of(name, field)
    kind, metavar = _type_of(field.annotation)
    default = _default(field, kind, shown)
    words = f"{field.description} May be repeated." if get_origin(kind) is list else field.description
    if shown.positional:
        info: Any = typer.Argument(help=words, metavar=shown.metavar)
    else:
        flag = f"{option}/--no-{option[2:]}" if kind is bool and default else option
        info = typer.Option(flag, help=words, metavar=shown.metavar or metavar)
    annotation: Any = Annotated[kind | None if default is None else kind, info]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _default(field: FieldInfo, kind: Any, shown: Option) -> Any:
    if get_origin(kind) is list:
        return []
    if field.is_required():
        return inspect.Parameter.empty if shown.missing is None else shown.missing
    default = field.get_default(call_default_factory=True)
    return str(default) if kind is str and default is not None else default


def _type_of(annotation: Any) -> tuple[Any, str | None]:
    """(what Typer parses, metavar). Numbers come as text, too, so that the model names all that is wrong at once."""
    if get_origin(annotation) is tuple:
        return list[str], _type_of(get_args(annotation)[0])[1]
    if get_origin(annotation) is dict:
        return list[str], "NAME=NUMBER"
    choices = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    words = [str(word) for each in choices if get_origin(each) is Literal for word in get_args(each)]
    types = [each for each in choices if get_origin(each) is not Literal and each is not NoneType]
    if words or types[0] in _NUMBERS:
        return str, "|".join([*words, *("N" for _ in types)]) if words else _NUMBERS[types[0]]
    return types[0], None


def _read(name: str, field: FieldInfo, value: Any) -> Any:
    if get_origin(field.annotation) is tuple:
        return tuple(value)
    if get_origin(field.annotation) is dict:
        return dict(_number(name, field, text) for text in value)
    return value


def _number(name: str, field: FieldInfo, text: str) -> tuple[str, float]:
    """NAME=NUMBER."""
    key, _, number = text.partition("=")
    try:
        if key:
            return key, float(number)
    except ValueError:
        pass
    option, metavar = name_of(name, field), _shown(field).metavar or "NAME=NUMBER"
    example = next((f"{k}={v}" for each in field.examples or [] for k, v in each.items()), metavar)
    raise UsageError(f"{option} {text!r} is not {metavar}", hint=f"for example {option} {example}")
