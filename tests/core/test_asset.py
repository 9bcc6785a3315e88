"""The decorators: what a function and its arguments declare."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from flowstone.asset import Asset, Dep, Dependency, asset
from flowstone.errors import BadSignature, DefinitionError
from flowstone.mapping import AllKeys
from flowstone.partition import DailyPartitions, UnpartitionedSet
from flowstone.retry import Retry


def reads(made: Asset) -> list[tuple[str, str | None]]:
    return [(d.asset, d.parameter) for d in made.dependencies]


def test_each_parameter_names_an_asset_that_is_read() -> None:
    @asset
    def sums(left: int, right: int) -> int:
        """Add two things.

        At length.
        """
        return left + right

    assert reads(sums) == [("left", "left"), ("right", "right")]
    assert (sums.name, str(sums), sums.queue) == ("sums", "sums", "assets")
    assert sums.description == "Add two things.\n\nAt length."
    assert sums.partitions == UnpartitionedSet()
    assert sums.retry == Retry()
    assert sums.context_parameter is None
    assert sums.location.startswith(__file__ + ":")


def test_an_asset_can_be_called_like_the_function_it_was() -> None:
    @asset(deps={"left": "other"})
    def sums(left: int, right: int) -> int:
        return left + right

    assert sums(1, right=2) == 3


def test_context_is_no_asset() -> None:
    @asset
    def told(context: object, source: int) -> int:
        return source

    assert told.context_parameter == "context"
    assert reads(told) == [("source", "source")]


def test_a_parameter_may_have_another_name_than_the_asset() -> None:
    @asset(deps={"x": "source", "y": Dep("days", AllKeys())})
    def made(x: int, y: int, z: int) -> int:
        return x + y + z

    assert made.dependencies == (
        Dependency("source", "x", None),
        Dependency("days", "y", AllKeys()),
        Dependency("z", "z", None),
    )


def test_a_listed_asset_that_is_no_parameter_only_comes_first() -> None:
    @asset(deps=["setup", Dep("source", AllKeys())])
    def made(source: int) -> int:
        return source

    assert made.dependencies == (
        Dependency("source", "source", AllKeys()),
        Dependency("setup", None, None),
    )


def test_options_are_taken_as_they_are_given() -> None:
    daily = DailyPartitions("2024-01-01")

    @asset(
        name="a.b-c",
        partitions=daily,
        requires=["db"],
        config=int,
        retry=Retry(max_attempts=1),
        queue="priority",
        description="",
    )
    def made() -> None:
        """Not the description."""

    assert (made.name, made.partitions, made.requires) == ("a.b-c", daily, ("db",))
    assert (made.config, made.retry.max_attempts, made.queue) == (int, 1, "priority")
    assert made.description == ""


def star(*args: int) -> None: ...
def stars(**kwargs: int) -> None: ...
def positional(a: int, /) -> None: ...
def default(a: int = 1) -> None: ...
def none_default(a: int | None = None) -> None: ...
async def coroutine() -> None: ...
def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (star, r"takes \*args; name each asset"),
        (stars, r"takes \*kwargs; name each asset"),
        (positional, "'a' is positional-only; remove the '/'"),
        (default, "'a' has a default, but parameters name assets; take settings through config="),
        (none_default, "'a' has a default"),
        (coroutine, "must be a plain function, not async and not a generator"),
        (generator, "must be a plain function"),
        (async_generator, "must be a plain function"),
    ],
)
def test_a_function_that_cannot_be_filled_is_refused_with_its_place(
    function: Callable[..., Any], message: str
) -> None:
    with pytest.raises(BadSignature, match=message) as caught:
        asset(function)
    assert f"{__file__}:{function.__code__.co_firstlineno}" in caught.value.message


def one(source: int) -> None: ...
def two(left: int, right: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "deps", "message"),
    [
        (one, {"sauce": "source"}, "names the parameter 'sauce', which the function does not"),
        (one, "source", "deps= takes a list, not a string"),
        (two, {"left": "source", "right": "source"}, "reads 'source' twice"),
        (two, {"left": "right"}, "reads 'right' twice"),
        (one, ["setup", "setup"], "reads 'setup' twice"),
        (one, ["source", Dep("source", AllKeys())], "reads 'source' twice"),
    ],
)
def test_dependencies_that_make_no_sense_are_refused(
    function: Callable[..., Any], deps: Any, message: str
) -> None:
    with pytest.raises(BadSignature, match=message):
        asset(deps=deps)(function)


@pytest.mark.parametrize("name", ["", "a b", "1a", "a/b", "..", "a\n", "ä", "a" * 201, "<lambda>"])
def test_a_name_that_could_not_be_part_of_a_path_is_refused(name: str) -> None:
    with pytest.raises(DefinitionError, match="is not a name"):
        asset(name=name)(one)


def test_the_longest_name_is_taken() -> None:
    assert asset(name="a" * 200)(one).name == "a" * 200
