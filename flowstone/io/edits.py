"""Edits: values that people put in the place of proposed ones, checked, and kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from flowstone.errors import BadDecision, OutputError, is_time_limit
from flowstone.io import json_values
from flowstone.texts import storable_json

FORMATS: Final = (json_values.PLAIN, json_values.TAGGED)
"""The formats of values that can be edited."""


def checked(edit: Any, as_type: Any) -> Any:  # noqa: ANN401 - any value of a user
    """Return an edit as the value that the function of its asset says that it returns.

    `edit` is such a value, or its JSON: models by the names or the aliases of their fields.
    Without an `as_type`, any value will do. Raises BadDecision.
    """
    if as_type is None:
        return edit
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(as_type)
        if json_values.is_plain(edit):
            # What is read from JSON may be a date as text, even where a model is strict.
            value = adapter.validate_json(json.dumps(edit), by_alias=True, by_name=True)
        else:
            value = adapter.validate_python(edit, by_alias=True, by_name=True)
        return json_values.as_read(value, as_type)
    except ValidationError as error:
        # Without what was given: it may hold a secret.
        first, *others = error.errors(include_input=False, include_url=False, include_context=False)
        where = "".join(f"{part}: " for part in first["loc"])
        more = f" (and {len(others)} more)" if others else ""
        raise BadDecision(f"{where}{_line(first['msg'])}{more}") from None
    except Exception as error:
        # An annotation that pydantic has no schema for, a validator of the user's, or what JSON
        # cannot hold.
        if is_time_limit(error):
            raise
        raise BadDecision(
            f"it cannot be checked as {as_type}: {type(error).__name__}: {_line(str(error))}"
        ) from error


def _line(text: str) -> str:
    return text.partition("\n")[0]


def readable(value: Any) -> Any:  # noqa: ANN401
    """Return a value as JSON that people read; what JSON cannot say is text."""
    try:
        return storable_json(_plain(value))
    except (PydanticSerializationError, ValueError, RecursionError):
        # It holds itself, or is too deep.
        return f"a {type(value).__name__} that cannot be shown"


def _plain(value: Any) -> Any:  # noqa: ANN401
    try:
        return to_jsonable_python(value, by_alias=False, serialize_unknown=True)
    except (PydanticSerializationError, ValueError):
        # Bytes that are no text, mostly.
        return to_jsonable_python(
            value, by_alias=False, serialize_unknown=True, bytes_mode="base64"
        )


def as_edited(value: Any, as_type: Any) -> Mapping[str, Any]:  # noqa: ANN401
    """Return what the ledger keeps of an edit, which `edited_value` turns into the same value.

    Under "value" it is as people read it, and under "text" as it is read back: PostgreSQL
    keeps no order of keys, and takes 1e300 for a whole number. Raises BadDecision.
    """
    try:
        format, data = json_values.dump(value, as_type)
    except OutputError as error:
        raise BadDecision(error.message) from error
    return {"value": readable(value), "format": format, "text": data.decode()}


def edited_value(edited: Mapping[str, Any], as_type: Any) -> Any:  # noqa: ANN401
    """Return the value of an edit as `as_edited` has made it, which is `Gate.edited`.

    Raises OutputError where the `as_type` of today does not fit it any more.
    """
    return json_values.load(edited["format"], edited["text"].encode(), as_type)
