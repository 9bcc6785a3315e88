"""Which asset x partition a caller means, found in the ledger alone, without the assets' code."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import date, datetime
from typing import Final

from sqlalchemy import Connection, text

from flowstone.errors import BadPartition, UnknownAsset, did_you_mean
from flowstone.names import NAME
from flowstone.partition_key import (
    UNPARTITIONED,
    Key,
    Month,
    Scalar,
    encode_key,
    label,
)
from flowstone.plan import Node
from flowstone.store.tables import SCHEMA

_SHOWN: Final = 5
_MAX_FORMS: Final = 256
"""The most keys that a text is tried as; one with more bars in it is compared with all labels."""

_KNOWN = text(
    f"""
    SELECT partition FROM {SCHEMA}.latest
    WHERE asset = :asset AND partition = ANY(CAST(:keys AS text[]))
    """
)

_CLOCK: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}(:\d{2}(:\d{2})?)?", re.ASCII)

# The keys whose label says less than they do, or says it otherwise: moments with a zone, tuples,
# mappings, and texts that cannot be printed. All others are among the forms of their label.
_SPELLED_OTHERWISE = text(
    f"""
    SELECT partition FROM {SCHEMA}.latest
    WHERE asset = :asset AND (starts_with(partition, 't:' || :label)
        OR starts_with(partition, '(') OR starts_with(partition, '{{') OR partition LIKE 's:%\\%%')
    """
)

_LAST = text(
    f"""
    SELECT partition FROM {SCHEMA}.latest WHERE asset = :asset
    ORDER BY partition DESC LIMIT :limit
    """
)

# One look into the index for each asset, however many partitions it has.
_ASSETS = text(
    f"""
    WITH RECURSIVE known AS (
        (SELECT asset FROM {SCHEMA}.latest ORDER BY asset LIMIT 1)
        UNION ALL
        SELECT (SELECT l.asset FROM {SCHEMA}.latest l WHERE l.asset > known.asset
            ORDER BY l.asset LIMIT 1)
        FROM known WHERE known.asset IS NOT NULL
    )
    SELECT asset FROM known WHERE asset IS NOT NULL
    """
)


def find(conn: Connection, asset: str, key: Key) -> Node:
    """Return the asset x partition that a caller means; it has, or has had, an output.

    `key` is the key itself, or the text that a person writes for it: of an asset that has
    the partition date(2013, 1, 15), "2013-01-15" is enough. Raises UnknownAsset for an asset
    of which there was never an output, and BadPartition for a partition of which there was
    none, or for a text that several keys are written as.
    """
    if not NAME.fullmatch(asset):
        raise _unknown(conn, asset)
    exact = encode_key(key)
    if _known(conn, asset, [exact]):
        return asset, exact
    found = _written_as(conn, asset, key) if isinstance(key, str) else []
    if len(found) == 1:
        return asset, found[0]
    if found:
        raise BadPartition(
            f"{key!r} stands for several partitions of asset {asset!r}: "
            f"{', '.join(sorted(found)[:_SHOWN])}; give the key itself, such as a date"
        )
    raise _missing(conn, asset, key)


def assets(conn: Connection) -> list[str]:
    """Return the names of all assets of which there was ever an output."""
    return list(conn.scalars(_ASSETS))


def _known(conn: Connection, asset: str, keys: Iterable[str]) -> list[str]:
    return list(conn.scalars(_KNOWN, {"asset": asset, "keys": list(keys)}))


def _written_as(conn: Connection, asset: str, text: str) -> list[str]:
    """Return the known keys whose label is `text`."""
    if found := _known(conn, asset, forms(text)):
        return found
    if not text.isprintable():
        # No label is like that.
        return []
    # A label cannot be turned back into each of these, so theirs are compared.
    others = conn.scalars(_SPELLED_OTHERWISE, {"asset": asset, "label": text})
    return [encoded for encoded in others if _is_written(label(encoded), text)]


def _is_written(whole: str, text: str) -> bool:
    """Return whether a person writes a label as a text: of an hour, 2013-01-15T07 is enough."""
    return whole == text or (bool(_CLOCK.fullmatch(text)) and whole.startswith(text))


def forms(text: str) -> list[str]:
    """Return the encoded keys that a person writes as `text`, as far as the text tells them.

    They are the scalars, and flat tuples of these, with a bar between two parts.
    """
    parts = [list(_scalars(part)) for part in text.split("|")]
    whole: list[Key] = list(_scalars(text))
    if len(parts) > 1:
        whole += itertools.islice(itertools.product(*parts), _MAX_FORMS)
    return [one for key in whole for one in _encoded(key) if label(one) == text]


def _encoded(key: Key) -> Iterator[str]:
    # A text may be short enough for a key, and too long as a tuple.
    with suppress(BadPartition):
        yield encode_key(key)


def _scalars(text: str) -> Iterator[Scalar]:
    yield text
    yield from {"None": (None,), "True": (True,), "False": (False,)}.get(text, ())
    for read in (int, date.fromisoformat, Month.parse, datetime.fromisoformat):
        with suppress(ValueError, BadPartition):
            yield read(text)


def _missing(conn: Connection, asset: str, key: Key) -> UnknownAsset | BadPartition:
    last = conn.scalars(_LAST, {"asset": asset, "limit": _SHOWN}).all()
    if not last:
        return _unknown(conn, asset)
    if last == [encode_key(UNPARTITIONED)]:
        return BadPartition(f"asset {asset!r} has no partitions; leave {_say(key)} out")
    such_as = ", ".join(label(encoded) for encoded in reversed(last))
    if key == UNPARTITIONED:
        return BadPartition(f"asset {asset!r} has partitions; say which, such as {such_as}")
    return BadPartition(
        f"there was never an output of asset {asset!r} for {_say(key)}; there is one for {such_as}"
    )


def _unknown(conn: Connection, asset: str) -> UnknownAsset:
    known = assets(conn)
    if not known:
        return UnknownAsset(f"asset {asset!r} was never materialized, nor was any other")
    return UnknownAsset(f"asset {asset!r} was never materialized{did_you_mean(asset, known)}")


def _say(key: Key) -> str:
    return f"partition {label(encode_key(key))!r}"
