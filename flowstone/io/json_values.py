"""JSON that says what JSON cannot: dates, decimals, bytes, tuples, sets, models.

What is plain JSON already stays plain JSON. Else each value that is not becomes an object
`{"$": tag, "v": ...}`, and an object of the user's with the key "$" is written as the pairs
of its items. No tag names code: a model comes back as the dict of its fields, and becomes a
model again by the annotation of whoever reads it.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import AnyUrl, BaseModel, RootModel, TypeAdapter, ValidationError

from flowstone.errors import OutputError, is_time_limit
from flowstone.key_map import KeyMap
from flowstone.partition_key import Month, decode_key, encode_key

PLAIN: Final = "json"
TAGGED: Final = "tagged.json"

REMEDY: Final = (
    "return JSON values, dates, decimals, bytes, tuples, sets or frames, or annotate the model, "
    "dataclass or enum; or set pickle=True"
)

_TAG: Final = "$"

_ATOMS: Final = frozenset({str, int, bool, type(None)})
"""Types that JSON has itself."""


def dump(value: Any, as_type: Any) -> tuple[str, bytes]:  # noqa: ANN401 - any value of a user
    """Return the format and the bytes of a value, which `load` turns into the same.

    Equal values of the same types are equal bytes, the items of dicts being in the same order.
    `as_type` is what the function says that it returns, or None. Raises OutputError for a
    value that would not come back as what it is.
    """
    try:
        plain = _dumps(value)
        if _is_plain(json.loads(plain), value):
            return PLAIN, plain
    except (TypeError, ValueError, RecursionError):
        # It is not plain JSON; perhaps it is tagged JSON.
        pass
    try:
        data = _dumps(_encode(value))
        same = is_same(load(TAGGED, data, as_type), value)
    except RecursionError as error:
        raise OutputError(
            f"a {type(value).__name__} cannot be stored: it is nested too deep, or holds itself; "
            f"{REMEDY}"
        ) from error
    except Exception as error:
        # What the user's own classes raise, too: their properties, comparisons and validators.
        if is_time_limit(error):
            raise
        raise OutputError(
            f"a {type(value).__name__} cannot be stored: {error}; {REMEDY}"
        ) from error
    if not same:
        raise OutputError(
            f"this {type(value).__name__} would come back as another value or type; {REMEDY}"
        )
    return TAGGED, data


def _dumps(value: Any) -> bytes:  # noqa: ANN401
    return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


def load(format: str, data: bytes, as_type: Any = None) -> Any:  # noqa: ANN401 - any value
    """Return the value that `dump` made these bytes from.

    Models become instances of what `as_type` names, or are dicts without it. Raises
    OutputError where they do not fit.
    """
    document = json.loads(data)
    if format == PLAIN:
        return document
    reader = _Reader()
    value = reader.decode(document)
    if as_type is None or not reader.has_models:
        return value
    try:
        return TypeAdapter(as_type).validate_python(value, by_alias=False, by_name=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise OutputError(f"it cannot be read as {as_type}: {where}{first['msg']}") from error
    except Exception as error:
        # An annotation that pydantic has no schema for, or a validator of the user's.
        if is_time_limit(error):
            raise
        said = str(error).partition("\n")[0]
        raise OutputError(f"it cannot be read as {as_type}: {said}") from error


def as_read(value: Any, as_type: Any) -> Any:  # noqa: ANN401
    """Return a value as it would come back, of the types of the standard library.

    Pydantic has a class of its own for the zones of times, which would not come back as that.
    Raises OutputError, TypeError or ValueError where it would not come back at all.
    """
    return load(TAGGED, _dumps(_encode(value)), as_type)


def is_plain(value: Any) -> bool:  # noqa: ANN401
    """Return whether a value is what JSON has itself, all through."""
    try:
        return _is_plain(json.loads(_dumps(value)), value)
    except (TypeError, ValueError, RecursionError):
        return False


def _tagged(tag: str, value: Any) -> dict[str, Any]:  # noqa: ANN401
    return {_TAG: tag, "v": value}


def _encode(value: Any) -> Any:  # noqa: ANN401, PLR0911, PLR0912, C901 - one line a type is the clearest
    kind = type(value)
    # Most values are these, and `match` takes ten times as long to see it.
    if kind in _ATOMS or (kind is float and math.isfinite(value)):
        return value
    if kind is list:
        return [_encode(part) for part in value]
    if kind is tuple:
        return _tagged("tuple", [_encode(part) for part in value])
    match value:
        case Enum():
            return _tagged("enum", _encode(value.value))
        case RootModel():
            return _tagged("model", _encode(value.root))
        case BaseModel():
            return _tagged("model", _items(_fields(value)))
        case Month():
            return _tagged("Month", str(value))
        case KeyMap():
            return _tagged("KeyMap", encode_key(value))
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            made_of = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
            return _tagged("model", _items(made_of))
        case tuple() if hasattr(value, "_fields"):
            return _tagged("model", _items(value._asdict()))  # type: ignore[attr-defined]
        case float() if not math.isfinite(value):
            return _tagged("float", repr(value))
        case set() | frozenset():
            return _tagged(type(value).__name__, [_encode(part) for part in _sorted(value)])
        case dict():
            return _items(value)
    if to_text := _TO_TEXT.get(type(value)):
        return _tagged(type(value).__name__, to_text(value))
    if isinstance(value, _TEXTS):
        return _tagged("model", str(value))
    return value


def _items(value: Mapping[Any, Any]) -> Any:  # noqa: ANN401
    if _TAG not in value and all(type(key) is str for key in value):
        return {key: _encode(part) for key, part in value.items()}
    return _tagged("dict", [[_encode(key), _encode(part)] for key, part in value.items()])


def _fields(model: BaseModel) -> dict[str, Any]:
    fields = {name: getattr(model, name) for name in type(model).model_fields}
    return fields | (model.__pydantic_extra__ or {})


def _sorted(parts: Iterable[Any]) -> list[Any]:
    """Return the members of a set in an order that equal sets have in common."""
    return sorted(parts, key=lambda part: json.dumps(_encode(part)))


def _moment(value: datetime | time) -> list[Any]:
    # The zone apart, as its offset at that moment does not tell it; the fold as isoformat()
    # does not have it.
    zone = value.tzinfo.key if isinstance(value.tzinfo, ZoneInfo) else None
    return [value.isoformat(), value.fold, zone]


def _datetime(parts: list[Any]) -> datetime:
    text, fold, zone = parts
    found = datetime.fromisoformat(text).replace(fold=fold)
    return found if zone is None else found.replace(tzinfo=ZoneInfo(zone))


def _time(parts: list[Any]) -> time:
    text, fold, zone = parts
    found = time.fromisoformat(text).replace(fold=fold)
    return found if zone is None else found.replace(tzinfo=ZoneInfo(zone))


_TO_TEXT: Final[Mapping[type, Callable[[Any], Any]]] = {
    Decimal: str,
    UUID: str,
    bytes: lambda value: base64.b64encode(value).decode(),
    date: date.isoformat,
    datetime: _moment,
    time: _moment,
    timedelta: lambda value: [value.days, value.seconds, value.microseconds],
}

_TEXTS: Final = (
    PurePath,
    IPv4Address,
    IPv6Address,
    IPv4Network,
    IPv6Network,
    IPv4Interface,
    IPv6Interface,
    AnyUrl,
)
"""What pydantic makes again of its text, by an annotation."""

_FROM_TEXT: Final[Mapping[str, Callable[[Any], Any]]] = {
    "Decimal": Decimal,
    "KeyMap": decode_key,
    "Month": Month.parse,
    "UUID": UUID,
    "bytes": lambda text: base64.b64decode(text, validate=True),
    "date": date.fromisoformat,
    "datetime": _datetime,
    "float": float,
    "time": _time,
    "timedelta": lambda parts: timedelta(*parts),
}


def _set(tag: str, parts: list[Any]) -> Any:  # noqa: ANN401
    try:
        return set(parts) if tag == "set" else frozenset(parts)
    except TypeError:
        # Models that are dicts as yet. By the annotation of the set, the list becomes one.
        return parts


def _dict(items: list[tuple[Any, Any]]) -> dict[Any, Any]:
    try:
        return dict(items)
    except TypeError as error:
        raise OutputError("a model is the key of a dict") from error


class _Reader:
    """Decodes one document, and notes whether it holds what only an annotation can restore."""

    def __init__(self) -> None:
        self.has_models = False

    def decode(self, part: Any) -> Any:  # noqa: ANN401
        if isinstance(part, list):
            return [self.decode(one) for one in part]
        if not isinstance(part, dict):
            return part
        if _TAG in part:
            return self._tagged(part[_TAG], part["v"])
        return {key: self.decode(one) for key, one in part.items()}

    def _tagged(self, tag: str, value: Any) -> Any:  # noqa: ANN401 - one line a tag
        match tag:
            case "model" | "enum":
                self.has_models = True
                return self.decode(value)
            case "tuple":
                return tuple(self.decode(one) for one in value)
            case "set" | "frozenset":
                return _set(tag, [self.decode(one) for one in value])
            case "dict":
                return _dict([(self.decode(key), self.decode(one)) for key, one in value])
        if tag not in _FROM_TEXT:
            raise OutputError(f"outputs with the tag {tag!r} cannot be read by this version")
        return _FROM_TEXT[tag](value)


def _is_plain(back: Any, value: Any) -> bool:  # noqa: ANN401
    """Return whether plain JSON came back as it was: as `is_same`, for JSON's types alone.

    Every output that is JSON passes here, and this takes a quarter of the time.
    """
    if type(back) is not type(value):
        return False
    if isinstance(back, dict):
        if back.keys() != value.keys():
            return False
        # A key may be of a class of its own, and equal.
        return all(type(key) is str and _is_plain(back[key], value[key]) for key in value)
    if isinstance(back, list):
        return len(back) == len(value) and all(map(_is_plain, back, value))
    return bool(back == value)


def is_same(back: Any, value: Any) -> bool:  # noqa: ANN401, PLR0911, C901 - one line a type
    """Return whether two values are equal in their types, too: 1, 1.0 and True are not."""
    kind = type(value)
    if type(back) is not kind:
        return False
    # Most values are these, and `match` takes ten times as long to see it.
    if kind in _ATOMS:
        return bool(back == value)
    if kind is float:
        # 0.0 equals -0.0.
        return (back == value and value != 0) or repr(back) == repr(value)
    if kind is list or kind is tuple:
        return len(back) == len(value) and all(map(is_same, back, value))
    match value:
        case dict():
            # In their order, and by keys of the same types.
            return is_same(list(back.items()), list(value.items()))
        case tuple():
            return len(back) == len(value) and all(map(is_same, back, value))
        case set() | frozenset():
            return is_same(_sorted(back), _sorted(value))
        case KeyMap():
            return encode_key(back) == encode_key(value)
        case Enum() | str() | bytes() | int() | UUID():
            return bool(back == value)
        case BaseModel():
            return is_same(_fields(back), _fields(value)) and bool(
                back.__pydantic_private__ == value.__pydantic_private__
            )
        case _ if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            return all(is_same(getattr(back, name), getattr(value, name)) for name in names)
    # Not ==, for which NaN is not NaN, 1.0 is 1.00, and one moment in two zones is the same.
    return repr(back) == repr(value)
