"""A difference tells all that has changed, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flowstone.difference import Change, difference

leaves = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.0, 2.5, "", "a"])
documents = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "b", "", "a/b", "~", "~1", "0"]), inner, max_size=4)
    ),
    max_leaves=12,
)


def applied(document: Any, changes: Sequence[Change]) -> Any:
    """Do the changes one after the other, as RFC 6901 finds their places."""
    root = {"root": copy.deepcopy(document)}
    for change in changes:
        keys = [part.replace("~1", "/").replace("~0", "~") for part in change["path"].split("/")]
        holder, last = root, "root"
        for key in keys[1:]:
            holder, last = holder[last], key
            if isinstance(holder, list):
                last = int(key)  # type: ignore[assignment]
        if "after" not in change:
            assert same(holder.pop(last), change["before"])
        elif "before" in change:
            assert same(holder[last], change["before"])
            holder[last] = change["after"]
        elif isinstance(holder, list):
            assert last == len(holder)
            holder.append(change["after"])
        else:
            assert last not in holder
            holder[last] = change["after"]
    return root["root"]


def same(one: Any, other: Any) -> bool:
    """Tell 1, 1.0 and True apart, and not the order of keys."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


@given(documents, documents)
def test_done_one_after_the_other_the_changes_make_the_new_value(before: Any, after: Any) -> None:
    assert same(applied(before, difference(before, after)), after)


@given(documents)
def test_what_is_equal_has_no_difference(document: Any) -> None:
    assert difference(document, copy.deepcopy(document)) == []


def test_only_what_has_changed_is_told() -> None:
    before = {"total": 10, "rows": [1, 2, 3], "by/month": {"1": 5}, "gone": True}
    after = {"total": 12, "rows": [1, 4], "by/month": {"1": 5, "2": 7}, "new": None}
    assert difference(before, after) == [
        {"path": "/total", "before": 10, "after": 12},
        {"path": "/rows/1", "before": 2, "after": 4},
        {"path": "/rows/2", "before": 3},
        {"path": "/by~1month/2", "after": 7},
        {"path": "/gone", "before": True},
        {"path": "/new", "after": None},
    ]
    assert difference(1, 1.0) == [{"path": "", "before": 1, "after": 1.0}]
