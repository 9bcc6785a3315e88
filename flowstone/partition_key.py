"""Partition keys as tagged strings, so that each value comes back as what it was.

The grammar, one tag letter and a colon before each scalar:

    -                       unpartitioned
    s:eu  i:-5  b:true  n:  str, int, bool, None
    d:2013-01-15            date
    m:2013-01               Month
    t:2013-01-15T00:00:00-05:00[America/New_York]   datetime, with or without a zone
    (d:2013-01-15,s:eu)     tuple
    {env=s:prod,tier=i:1}   mapping, in the order of its names

Inside a string the characters % ( ) , [ ] are percent-encoded (RFC 3986), and
inside a mapping = { } as well, so no key can be mistaken for another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timezone
from functools import lru_cache
from typing import Final
from urllib.parse import quote, unquote
from zoneinfo import ZoneInfo

from flowstone.errors import BadPartition
from flowstone.key_map import KeyMap

MAX_KEY_LENGTH = 512
"""The longest encoded key, in characters: it is part of unique indexes and messages."""


@dataclass(frozen=True, order=True)
class Month:
    """A calendar month, the key of a monthly partition."""

    year: int
    month: int

    def __post_init__(self) -> None:
        """Raise BadPartition unless this is a month of the calendar."""
        if not (1 <= self.year <= 9999 and 1 <= self.month <= 12):  # noqa: PLR2004
            raise BadPartition(f"{self.year}-{self.month} is not a month")

    def __str__(self) -> str:
        return f"{self.year:04d}-{self.month:02d}"

    @classmethod
    def parse(cls, text: str) -> Month:
        """Read "2013-01"; raise BadPartition for anything else."""
        if not re.fullmatch(r"\d{4}-\d{2}", text, re.ASCII):
            raise BadPartition(f"{text!r} is not a month; write it as 2013-01")
        return cls(int(text[:4]), int(text[5:]))

    @classmethod
    def of(cls, day: date) -> Month:
        """Return the month in which `day` lies."""
        return cls(day.year, day.month)

    def plus(self, months: int) -> Month:
        """Return the month so many months later, or earlier; raise BadPartition."""
        years, month = divmod(self.month - 1 + months, 12)
        return Month(self.year + years, month + 1)

    def first_day(self) -> date:
        """Return the first day of the month."""
        return date(self.year, self.month, 1)


@dataclass(frozen=True)
class Unpartitioned:
    """The one key of an asset that has no partitions."""

    def __str__(self) -> str:
        return ""

    def __repr__(self) -> str:
        return "UNPARTITIONED"


UNPARTITIONED = Unpartitioned()

Scalar = str | int | bool | None | date | datetime | Month
Key = Unpartitioned | Scalar | tuple["Key", ...] | Mapping[str, "Key"]


def _safe(reserved: str) -> str:
    return "".join(c for c in map(chr, range(0x20, 0x7F)) if c not in reserved)


_SAFE: Final = _safe("%(),[]")
# What was written before there were mappings keeps its form: outside of them, these stay.
_SAFE_IN_MAPPING: Final = _safe("%(),[]={}")


def encode_key(key: Key) -> str:
    """Return the tagged string of a partition key; raise BadPartition if it has none."""
    try:
        text = _encode(key)
    except RecursionError as error:
        raise BadPartition("a partition key cannot be nested as deep as this one") from error
    if len(text) > MAX_KEY_LENGTH:
        raise BadPartition(
            f"partition key {text[:40]}... has {len(text)} characters, the limit is "
            f"{MAX_KEY_LENGTH}; use a shorter key"
        )
    return text


def _encode(key: Key, safe: str = _SAFE) -> str:
    match key:
        case str():
            return f"s:{_quote(key, safe)}"
        case tuple():
            return f"({','.join(_encode(part, safe) for part in key)})"
        case Mapping():
            return f"{{{','.join(_encode_parts(KeyMap(key)))}}}"
    return _encode_plain(key)


def _encode_plain(key: Key) -> str:  # noqa: PLR0911 - one line a type is the clearest form
    """Return the tagged string of what holds no text."""
    match key:
        case Unpartitioned():
            return "-"
        case None:
            return "n:"
        case bool():
            return f"b:{str(key).lower()}"
        case int():
            return f"i:{_digits(key)}"
        case datetime():
            return f"t:{key.isoformat()}{_fold(key)}{_zone(key)}"
        case date():
            return f"d:{key.isoformat()}"
        case Month():
            return f"m:{key}"
    raise BadPartition(
        f"a partition key cannot be a {type(key).__name__}; use str, int, bool, None, date, "
        "datetime, Month, or a tuple or a mapping of these"
    )


def _digits(number: int) -> str:
    try:
        return str(number)
    except ValueError as error:
        # Python writes no number of more than some thousand digits.
        raise BadPartition(
            f"a partition key cannot be a number of {number.bit_length()} bits; the limit is "
            f"{MAX_KEY_LENGTH} characters"
        ) from error


def _encode_parts(key: KeyMap) -> Iterator[str]:
    for name, part in key.items():
        yield f"{_quote(name, _SAFE_IN_MAPPING)}={_encode(part, _SAFE_IN_MAPPING)}"


def _quote(text: str, safe: str) -> str:
    try:
        return quote(text, safe=safe)
    except UnicodeEncodeError as error:
        raise BadPartition(f"partition key {text!r} is not valid Unicode") from error


def _zone(moment: datetime) -> str:
    zone = moment.tzinfo
    if isinstance(zone, ZoneInfo) and zone.key:
        return f"[{zone.key}]"
    if zone is None or isinstance(zone, timezone):
        return ""
    raise BadPartition(
        f"the zone of partition key {moment} is a {type(zone).__name__} that cannot be written "
        "down; use ZoneInfo('Europe/Berlin'), or UTC"
    )


def _fold(moment: datetime) -> str:
    # The doubled hour of an autumn night differs in its offset where there is a zone;
    # only a naive or fixed-offset moment needs its fold spelled out.
    return "!" if moment.fold and not isinstance(moment.tzinfo, ZoneInfo) else ""


# A plan asks for the key of each step once for each of its inputs, one after the other.
@lru_cache(maxsize=1024)
def decode_key(text: str) -> Key:
    """Return the key that `encode_key` made this string from; raise BadPartition if none did."""
    try:
        key, rest = _decode(text)
        if rest == "" and encode_key(key) == text:
            return key
    # ZoneInfo raises OSError for the name of a folder, such as "Europe".
    except (ValueError, OverflowError, OSError, RecursionError, KeyError, BadPartition) as error:
        raise BadPartition(f"{text!r} is not an encoded partition key") from error
    raise BadPartition(f"{text!r} is not an encoded partition key")


def _decode(text: str, ends: str = ",)") -> tuple[Key, str]:
    """Return the key with which a text begins, and the rest; one of `ends` ends a scalar."""
    if text.startswith("-"):
        return UNPARTITIONED, text[1:]
    if text.startswith("("):
        return _decode_tuple(text[1:], ends)
    if text.startswith("{"):
        return _decode_mapping(text[1:])
    body, rest = _split(text, ends)
    return _decode_scalar(body), rest


def _split(text: str, ends: str) -> tuple[str, str]:
    end = min((i for i in map(text.find, ends) if i >= 0), default=len(text))
    return text[:end], text[end:]


def _decode_tuple(text: str, ends: str) -> tuple[Key, str]:
    parts: list[Key] = []
    while not text.startswith(")"):
        part, text = _decode(text, ends)
        parts.append(part)
        text = _after_comma(text, ")")
    return tuple(parts), text[1:]


def _decode_mapping(text: str) -> tuple[Key, str]:
    parts: dict[str, Key] = {}
    while not text.startswith("}"):
        name, text = _split(text, "=")
        part, text = _decode(text[1:], ",)}")
        parts[unquote(name, errors="strict")] = part
        text = _after_comma(text, "}")
    return KeyMap(parts), text[1:]


def _after_comma(text: str, end: str) -> str:
    if text.startswith(","):
        return text[1:]
    if text.startswith(end):
        return text
    raise BadPartition(f"no {end!r} where a key ends")


def _decode_scalar(text: str) -> Key:  # noqa: PLR0911 - one line a tag is the clearest form
    tag, value = text[:2], text[2:]
    match tag:
        case "n:":
            return None
        case "b:":
            return value == "true"
        case "i:":
            return int(value)
        case "s:":
            return unquote(value, errors="strict")
        case "d:":
            return date.fromisoformat(value)
        case "m:":
            return Month.parse(value)
        case "t:":
            return _decode_datetime(value)
    raise BadPartition(f"unknown tag {tag!r}")


def _decode_datetime(value: str) -> datetime:
    stamp, _, zone = value.partition("[")
    fold = stamp.endswith("!")
    moment = datetime.fromisoformat(stamp.rstrip("!"))
    if not zone:
        return moment.replace(fold=int(fold))
    here = moment.replace(tzinfo=ZoneInfo(zone.removesuffix("]")), fold=0)
    # The offset tells which of the two passes through a doubled hour is meant.
    return here if here.utcoffset() == moment.utcoffset() else here.replace(fold=1)


def label(encoded: str) -> str:
    """Return how a person writes an encoded key: "2013-01-15", "eu", "2013-01-15|eu", "".

    What cannot be printed is percent-encoded: a label goes to terminals, logs and
    JSON columns, and the last of these refuse a NUL.
    """
    text = _label(decode_key(encoded))
    return "".join(c if c.isprintable() else quote(c) for c in text)


def _label(key: Key) -> str:
    if isinstance(key, tuple):
        return "|".join(_label(part) for part in key)
    if isinstance(key, Mapping):
        return ",".join(f"{name}={_label(part)}" for name, part in key.items())
    if isinstance(key, datetime | date):
        return key.isoformat()
    return "" if isinstance(key, Unpartitioned) else str(key)


def step_name(asset: str, encoded: str) -> str:
    """Return what logs, Flower and the CLI call a step: `carrier_delays[2013-01-15]`."""
    text = label(encoded)
    return f"{asset}[{text}]" if text else asset
