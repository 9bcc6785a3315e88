"""What an asset may say of itself, so that people find it: tags, a group, a kind, owners."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from flowstone.errors import DefinitionError

WORD: Final = re.compile(r"[\w.\-/@#&]{1,200}")
"""What a tag, a group, a kind or an owner may be.

It has nothing that means something in a selection, so that each can be selected by what it is.
"""

Tags = Mapping[str, str] | Iterable[str]


def checked_tags(tags: Tags, where: str) -> Mapping[str, str]:
    """Return tags by name, with "" for those without a value; raise DefinitionError.

    They are given as a mapping, or as a list of texts such as "daily" or "team=data".
    """
    if isinstance(tags, str):
        raise DefinitionError(f"{where}: tags= takes a mapping or a list, not a string")
    given = list(tags.items()) if isinstance(tags, Mapping) else [_pair(tag) for tag in tags]
    found: dict[str, str] = {}
    for name, value in given:
        _checked(name, f"{where}: the tag {name!r}")
        if value != "":
            _checked(value, f"{where}: the value {value!r} of the tag {name!r}")
        if found.setdefault(name, value) != value:
            raise DefinitionError(f"{where}: the tag {name!r} has two values; give it one")
    return MappingProxyType(found)


def checked_word(word: str | None, of: str, where: str) -> str | None:
    """Return the group or the kind of an asset; raise DefinitionError for what it cannot be."""
    return None if word is None else _checked(word, f"{where}: {of}={word!r}")


def checked_owners(owners: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the owners, each once; raise DefinitionError."""
    if isinstance(owners, str):
        raise DefinitionError(f"{where}: owners= takes a list, not a string; write [{owners!r}]")
    return tuple(
        dict.fromkeys(_checked(owner, f"{where}: the owner {owner!r}") for owner in owners)
    )


def told_tags(tags: Mapping[str, str]) -> list[str]:
    """Return the tags as people write them: "daily", "team=data"."""
    return [f"{name}={value}" if value else name for name, value in tags.items()]


def _pair(tag: Any) -> tuple[Any, str]:  # noqa: ANN401 - as the caller may not check types
    if not isinstance(tag, str):
        return tag, ""
    name, _, value = tag.partition("=")
    return name, value


def _checked(word: Any, what: str) -> str:  # noqa: ANN401
    if isinstance(word, str) and WORD.fullmatch(word):
        return word
    raise DefinitionError(
        f"{what} is not one word; use letters, digits and _ . - / @ # &, at most 200 characters"
    )
