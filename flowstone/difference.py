"""Differences: what has changed from one JSON value to another, place by place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Change = dict[str, Any]
"""A `path` such as "/rows/0/total", as in RFC 6901, with what was there `before` and is `after`.

Where there is no `before`, it was added; where there is no `after`, it was removed.
"""


def difference(before: Any, after: Any) -> list[Change]:  # noqa: ANN401 - any JSON value
    """Return the changes that make `after` of `before`, if they are done one after the other.

    Lists are compared place by place. Numbers that are equal and of different types, such as 1
    and 1.0, differ.
    """
    return list(_changes("", before, after))


def _changes(path: str, before: Any, after: Any) -> Iterator[Change]:  # noqa: ANN401
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        yield from _of_objects(path, before, after)
    elif isinstance(before, list) and isinstance(after, list):
        yield from _of_lists(path, before, after)
    elif type(before) is not type(after) or before != after:
        yield {"path": path, "before": before, "after": after}


def _of_objects(path: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for key in [*before, *(key for key in after if key not in before)]:
        place = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
        if key not in after:
            yield {"path": place, "before": before[key]}
        elif key not in before:
            yield {"path": place, "after": after[key]}
        else:
            yield from _changes(place, before[key], after[key])


def _of_lists(path: str, before: Sequence[Any], after: Sequence[Any]) -> Iterator[Change]:
    common = min(len(before), len(after))
    for place in range(common):
        yield from _changes(f"{path}/{place}", before[place], after[place])
    # From the end, so that those before stay where they are.
    for place in reversed(range(common, len(before))):
        yield {"path": f"{path}/{place}", "before": before[place]}
    for place in range(common, len(after)):
        yield {"path": f"{path}/{place}", "after": after[place]}
