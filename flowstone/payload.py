"""What comes with a signal: JSON that the ledger can keep, and that the asset can take."""

from __future__ import annotations

import json
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from flowstone import hints
from flowstone.asset import Asset
from flowstone.errors import BadSignal, FlowStoneError, is_time_limit
from flowstone.texts import storable_json

MAX_PAYLOAD: Final = 65_536
"""Bytes of a payload, as JSON."""


def checked(payload: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return a payload as JSON that the ledger keeps; raise BadSignal for what is none."""
    try:
        # As short as JSON can be, so that it is no longer than what was sent.
        text = json.dumps(
            payload, allow_nan=False, ensure_ascii=False, separators=(",", ":")
        ).encode()
        if len(text) > MAX_PAYLOAD:
            raise BadSignal(
                f"the payload has {len(text):,} bytes; at most {MAX_PAYLOAD:,} may come"
            )
        plain = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadSignal(f"the payload is no JSON: {error}", original=error) from error
    if plain != payload or storable_json(plain) != plain:
        raise BadSignal(
            "the payload holds what PostgreSQL does not keep, or JSON does not have: NUL in a "
            "text, a key that is no text, or a tuple"
        )
    return plain


def fit(asset: Asset, payload: Any) -> Any:  # noqa: ANN401 - any value of a user
    """Return a payload as what the asset takes it for, such as a model; raise BadSignal.

    That is what the parameter `payload` of its `on_signal` is annotated as, or without that, what
    its function says that it returns. Where neither says, it is as it came.
    """
    kind = _kind(asset)
    if kind is None:
        return payload
    try:
        adapter = TypeAdapter(kind)
    except PydanticUserError:
        # A frame, perhaps: of that, JSON cannot tell.
        return payload
    try:
        return adapter.validate_json(json.dumps(payload))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise BadSignal(
            f"the payload is not what {asset.name!r} waits for: {where}{first['msg']}"
        ) from error
    except Exception as error:
        # What the user's own validators raise.
        if is_time_limit(error):
            raise
        said = str(error).partition("\n")[0]
        raise BadSignal(f"the payload is not what {asset.name!r} waits for: {said}") from error


def _kind(asset: Asset) -> Any:  # noqa: ANN401 - any annotation
    if asset.on_signal is not None:
        return hints.of_whole(asset.on_signal, "payload")
    return _without_waiting(hints.of_result(asset.function))


def _without_waiting(annotation: Any) -> Any:  # noqa: ANN401
    """Return an annotation without what `wait_for_signal` and its like return; None if no other."""
    if isinstance(annotation, type) and issubclass(annotation, FlowStoneError):
        return None
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    kept = [part for part in get_args(annotation) if _without_waiting(part) is not None]
    return Union[tuple(kept)] if kept else None  # noqa: UP007 - made of what is there
