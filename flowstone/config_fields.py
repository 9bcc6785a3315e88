"""The fields of a config model: under which keys they are given, and which hold secrets."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Final, Union

from pydantic import AliasChoices, AliasPath, BaseModel, RootModel, Secret, SecretBytes, SecretStr
from pydantic.fields import FieldInfo

from flowstone.resource import is_reference

_SECRETS: Final = (SecretStr, SecretBytes, Secret)


def inputs(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of a model by each key under which it takes them."""
    config = model.model_config
    by_name = config.get("populate_by_name") or config.get("validate_by_name")
    found = {}
    for name, field in model.model_fields.items():
        aliases = list(_aliases(field))
        for key in [*aliases, name] if by_name or not aliases else aliases:
            found[key] = field
    return found


def _aliases(field: FieldInfo) -> Iterator[str]:
    given = field.validation_alias
    for alias in given.choices if isinstance(given, AliasChoices) else [given]:
        if isinstance(alias, AliasPath):
            yield str(alias.path[0])
        elif alias is not None:
            yield alias


def plain_secrets(annotation: Any, value: object, where: str) -> Iterator[tuple[str, str]]:  # noqa: ANN401
    """Yield the values that are secrets by the annotation of their field, each with its place.

    `value` is what is given for `annotation`; a reference gives none away.
    """
    if value is None or is_reference(value):
        return
    origin = typing.get_origin(annotation) or annotation
    if isinstance(origin, type) and issubclass(origin, _SECRETS):
        yield where, str(value)
    elif (fields := _fields(origin)) is not None:
        for key, one in value.items() if isinstance(value, Mapping) else ():
            if key in fields:
                yield from plain_secrets(fields[key], one, f"{where}.{key}".lstrip("."))
    else:
        is_choice = origin in (Union, UnionType, Annotated) or is_root(origin)
        for inner in _inner(origin, annotation):
            for place, one in [(where, value)] if is_choice else _items(value, where):
                yield from plain_secrets(inner, one, place)


def is_root(origin: object) -> bool:
    """Return whether a type is a model that is given as its one value."""
    return isinstance(origin, type) and issubclass(origin, RootModel)


def _inner(origin: Any, annotation: Any) -> tuple[Any, ...]:  # noqa: ANN401 - as typing has it
    if is_root(origin):
        return (origin.model_fields["root"].annotation,)
    if origin is Annotated:
        return (typing.get_args(annotation)[0],)
    return typing.get_args(annotation)


def _fields(origin: Any) -> Mapping[str, Any] | None:  # noqa: ANN401 - as typing has it
    if not isinstance(origin, type) or is_root(origin):
        return None
    if issubclass(origin, BaseModel):
        return {key: field.annotation for key, field in inputs(origin).items()}
    if dataclasses.is_dataclass(origin) or typing.is_typeddict(origin):
        return typing.get_type_hints(origin)
    return None


def _items(value: object, where: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield f"{where}.{key}", one
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield f"{where}.{number}", one


def secrets_in(value: object) -> Iterator[str]:
    """Yield the secrets that a config holds, as texts."""
    if isinstance(value, _SECRETS):
        secret = value.get_secret_value()
        yield secret.decode(errors="replace") if isinstance(secret, bytes) else str(secret)
    elif isinstance(value, BaseModel):
        for _, one in value:
            yield from secrets_in(one)
    elif dataclasses.is_dataclass(value):
        yield from secrets_in(vars(value))
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from secrets_in(one)
    elif isinstance(value, list | tuple | set | frozenset):
        for one in value:
            yield from secrets_in(one)
