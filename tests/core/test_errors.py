"""Errors: exceptions with a stable type, a message and JSON context."""

from __future__ import annotations

import inspect
import json
import pickle
import re

import pytest

from flowstone import errors
from flowstone.errors import FlowStoneError, RetryAfter, UnknownAsset, did_you_mean

CLASSES: list[type[FlowStoneError]] = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    # RetryAfter takes a number before its message.
    if issubclass(kind, FlowStoneError) and kind is not RetryAfter
]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_is_an_exception_that_can_be_raised_and_says_its_message(
    kind: type[FlowStoneError],
) -> None:
    with pytest.raises(FlowStoneError) as caught:
        raise kind("what is wrong", context={"asset": "a"})
    error = caught.value
    assert (str(error), error.message) == ("what is wrong", "what is wrong")
    assert json.loads(json.dumps(error.context)) == {"asset": "a"}
    assert isinstance(error.retryable, bool)
    assert error.original is None


def test_types_are_distinct_snake_case_names() -> None:
    types = [kind.type for kind in CLASSES]
    assert len(set(types)) == len(types)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", type) for type in types)


def test_retryable_can_be_said_of_one_error_alone() -> None:
    assert not UnknownAsset("a").retryable
    assert UnknownAsset("a", retryable=True).retryable
    assert not UnknownAsset.retryable


def test_an_error_survives_the_way_between_two_processes() -> None:
    back = pickle.loads(pickle.dumps(UnknownAsset("a", context={"b": 1}, retryable=True)))  # noqa: S301
    assert (type(back), str(back), back.context, back.retryable) == (
        UnknownAsset,
        "a",
        {"b": 1},
        True,
    )


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("raw_flight", ["raw_flights", "clean"], "; did you mean 'raw_flights'?"),
        ("zzz", ["raw_flights"], ""),
        ("a", [], ""),
        ("", ["a"], ""),
    ],
)
def test_the_nearest_name_is_suggested_if_one_is_near(
    name: str, known: list[str], said: str
) -> None:
    assert did_you_mean(name, known) == said
    assert did_you_mean(name, iter(known)) == said
