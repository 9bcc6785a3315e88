"""Configs as JSON values: to be hashed, equal where the configs are; and to be shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, RootModel, Secret, SecretBytes, SecretStr

from flowstone.errors import BadConfig
from flowstone.masking import MASK
from flowstone.texts import storable_json

_BY_TEXT: Final = (date, time, timedelta, Decimal, UUID, PurePath, bytes, complex)


def config_values(config: Any) -> Any:  # noqa: ANN401, PLR0911 - any model; one line a type
    """Return the values of a validated config as JSON has them; None for None.

    They hold secrets, and are for hashing only. Not what pydantic would write: that hides
    secrets, leaves out fields, and gives the members of a set in an order of the process.
    Raises BadConfig for a value of a type that nobody can compare.
    """
    match config:
        case None | bool() | int() | float() | str():
            return config
        case BaseModel():
            return {name: config_values(value) for name, value in config}
        case SecretStr() | SecretBytes():
            return config_values(config.get_secret_value())
        case Enum():
            return config_values(config.value)
        case Mapping():
            return [[config_values(key), config_values(value)] for key, value in config.items()]
        case list() | tuple():
            return [config_values(value) for value in config]
        case set() | frozenset():
            return sorted(map(config_values, config), key=json.dumps)
        case _ if isinstance(config, _BY_TEXT):
            return [type(config).__name__, repr(config)]
    raise BadConfig(
        f"a config holds a value of the type {type(config).__name__}, of which nobody can tell "
        "when it changes; use plain values, models, lists and sets of them"
    )


def shown_values(config: Any) -> Any:  # noqa: ANN401 - any model
    """Return the values of a validated config as JSON that people may see: without secrets."""
    return storable_json(_shown(config))


def _shown(value: Any) -> Any:  # noqa: ANN401, PLR0911 - any value; one line a type
    match value:
        case SecretStr() | SecretBytes() | Secret():
            return MASK
        case Enum():
            return _shown(value.value)
        case RootModel():
            return _shown(value.root)
        case BaseModel():
            return {name: _shown(one) for name, one in value}
        case Mapping():
            return {_shown_key(key): _shown(one) for key, one in value.items()}
        case list() | tuple():
            return [_shown(one) for one in value]
        case set() | frozenset():
            return sorted(map(_shown, value), key=str)
    return value


def _shown_key(key: Any) -> str:  # noqa: ANN401 - any value that can be hashed
    """Return a key as text, which is all that JSON has for one."""
    shown = _shown(key)
    if isinstance(shown, list | dict):
        return json.dumps(storable_json(shown), ensure_ascii=False)
    return str(shown)
