"""Texts and JSON values of users in a form that PostgreSQL can keep; times in words."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

MAX_MESSAGE: Final = 10_000
"""Characters of a message that the ledger keeps."""


def storable(text: str) -> str:
    """Return a text without what Python allows in one, and PostgreSQL does not.

    That is NUL, and the surrogates of file names that cannot be decoded.
    """
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def storable_json(value: Any, say: Callable[[str], str] = storable) -> Any:  # noqa: ANN401
    """Return a value as JSON that can be stored; what is no JSON becomes text.

    Every text, keys too, becomes what `say` makes of it.
    """
    if type(value).__module__ == "numpy" and hasattr(value, "item"):
        value = value.item()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {say(str(key)): storable_json(part, say) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [storable_json(part, say) for part in value]
    return say(str(value))


def printable(text: str) -> str:
    """Return a text without control characters, such as those that give orders to a terminal.

    Only newlines and tabs stay; of the others their number is shown.
    """
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def printable_json(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Return the JSON of a value, which holds no control character and is equal to it."""
    text = json.dumps(value, ensure_ascii=False)
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def lasting(seconds: float) -> str:
    """Return a time in words, in the unit of which there are at least two: 90 s, 5 min, 3 h."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
