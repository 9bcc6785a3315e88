"""The assets that the workers of these tests compute: one family for each shape or outcome."""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flowstone import (
    Context,
    DailyPartitions,
    Dep,
    MonthlyPartitions,
    Retry,
    StaticPartitions,
    Timeout,
    asset,
)
from flowstone.asset import Asset
from flowstone.expand import MAX_CHAIN

CHAIN_LENGTH = 30
GATE_SECONDS = 60


@asset
def top() -> int:
    return 1


@asset
def left(top: int) -> int:
    return top + 1


@asset
def right(top: int) -> int:
    return top + 2


@asset
def bottom(left: int, right: int) -> list[int]:
    return [left, right]


def link(number: int) -> str:
    return f"link_{number:02}"


def _first() -> int:
    return 1


def _next(previous: int) -> int:
    return previous + 1


asset(name=link(1))(_first)
for _number in range(2, CHAIN_LENGTH + 1):
    asset(name=link(_number), deps={"previous": link(_number - 1)})(_next)


@asset(partitions=DailyPartitions("2013-01-01", "2013-01-31"))
def day(context: Context) -> int:
    return int(context.partition.day)


@asset(partitions=MonthlyPartitions("2013-01", "2013-01"))
def month(day: dict[Any, int]) -> list[int]:
    return list(day.values())


@asset
def a1() -> str:
    return "a1"


@asset
def a2(a1: str) -> str:
    return f"{a1} a2"


@asset
def b1() -> str:
    return "b1"


@asset
def join(a2: str, b1: str) -> str:
    return f"({a2}, {b1})"


@asset
def tail(join: str) -> str:
    return f"{join} tail"


# The largest messages that a graph can lead to: the longest names and keys, each character of
# the key two in JSON, on the queue with the longest name, in stretches of the greatest length.
LONGEST_KEY = '"' * 510


LONGEST_TIMEOUT = Timeout(1000.125, 3000.125)


def longest(stretch: str, number: int) -> str:
    return f"{stretch}{number:02}".ljust(200, "_")


def _one() -> int:
    return 1


def _sum(left: int, right: int) -> int:
    return left + right


def _longest(stretch: str, number: int, reads: tuple[str, ...]) -> Asset:
    functions: list[Callable[..., int]] = [_one, _next, _sum]
    function = functions[len(reads)]
    return asset(
        name=longest(stretch, number),
        deps=dict(zip(inspect.signature(function).parameters, reads, strict=True)),
        partitions=StaticPartitions([LONGEST_KEY]),
        queue="priority",
        timeout=LONGEST_TIMEOUT,
    )(function)


for _stretch in "lr":
    _longest(_stretch, 1, ())
_longest("j", 1, (longest("l", MAX_CHAIN), longest("r", MAX_CHAIN)))
for _stretch in "lrj":
    for _number in range(2, MAX_CHAIN + 1):
        _longest(_stretch, _number, (longest(_stretch, _number - 1),))


@asset
def broken() -> None:
    raise ValueError("the well is dry")


@asset
def after_broken(broken: None) -> None: ...


@asset
def after_that(after_broken: None) -> None: ...


@asset
def untouched() -> int:
    return 1


@asset
def after_untouched(untouched: int) -> int:
    return untouched + 1


@asset
def before_flaky() -> int:
    return 1


@asset(retry=Retry(max_attempts=3, base=0.1, factor=1))
def flaky(before_flaky: int, context: Context) -> int:
    """Succeed at the third attempt."""
    if context.attempt < 3:
        raise ConnectionError(f"attempt {context.attempt} got no answer")
    return before_flaky + context.attempt


@asset
def after_flaky(flaky: int) -> int:
    return flaky + 1


@asset(retry=Retry(max_attempts=2, base=1.0, factor=1))
def patient(context: Context) -> int:
    """Succeed at the second attempt, which is due too late to be waited for in a worker."""
    if context.attempt < 2:
        raise ConnectionError("the source is closed")
    return 1


@asset
def after_patient(patient: int) -> int:
    return patient + 1


@asset
def beside_patient() -> int:
    return 10


@asset
def after_beside(beside_patient: int) -> int:
    return beside_patient + 10


@asset
def join_patient(after_patient: int, after_beside: int) -> int:
    return after_patient + after_beside


@asset
def leaves() -> None:
    sys.exit("goodbye")


class Gate(BaseModel):
    """The folder in which the gate says that an attempt waits, and finds that it may go on."""

    folder: str = "."


@asset
def before_gate() -> int:
    return 1


@asset(config=Gate)
def gate(before_gate: int, context: Context) -> int:
    """Wait for the file `open` or `open-N` in the folder; `attempt-N` says which process waits."""
    folder = Path(context.config.folder)
    note = folder / f"note-{context.attempt}"
    note.write_text(str(os.getpid()))
    note.rename(folder / f"attempt-{context.attempt}")
    end = time.monotonic() + GATE_SECONDS
    while not ((folder / "open").exists() or (folder / f"open-{context.attempt}").exists()):
        if time.monotonic() > end:
            raise RuntimeError("nobody has opened the gate")
        time.sleep(0.01)
    return before_gate + 1


@asset
def after_gate(gate: int) -> int:
    return gate + 1


def _say_who_computes(folder: Path, name: str) -> None:
    note = folder / f"note-{name}"
    note.write_text(str(os.getpid()))
    note.rename(folder / name)


@asset(config=Gate)
def heeds(context: Context) -> None:
    """Run until it is asked to stop."""
    _say_who_computes(Path(context.config.folder), "heeds")
    end = time.monotonic() + GATE_SECONDS
    while time.monotonic() < end:
        context.raise_if_cancelled()
        time.sleep(0.01)
    raise RuntimeError("nobody has asked to stop")


@asset(config=Gate)
def finishes(context: Context) -> str:
    """Run until it is asked to stop, and then come to a good end."""
    _say_who_computes(Path(context.config.folder), "finishes")
    end = time.monotonic() + GATE_SECONDS
    while not context.cancelled:
        if time.monotonic() > end:
            raise RuntimeError("nobody has asked to stop")
        time.sleep(0.01)
    return "done"


@asset
def waits() -> None:
    """Never begin, as the other two keep both processes of the worker busy."""


@asset
def after_all(heeds: None, finishes: str, waits: None) -> None: ...


# A graph in which a chain, a chord and a single step are cut off, as the source, which is always
# computed anew, comes out the same.


@asset(volatile=True)
def feed() -> int:
    return 7


@asset
def feed_a(feed: int) -> int:
    return feed + 1


@asset
def feed_b(feed: int) -> int:
    return feed + 2


@asset
def feeds(feed_a: int, feed_b: int) -> list[int]:
    return [feed_a, feed_b]


@asset
def after_feeds(feeds: list[int]) -> int:
    return sum(feeds)


# Optional inputs: one that breaks a chain, and one that breaks a chord.


@asset(deps={"broken": Dep("broken", optional=True)})
def in_spite(broken: None) -> str:
    return f"in spite of {broken}"


@asset(deps={"after_broken": Dep("after_broken", optional=True)})
def joins_in_spite(untouched: int, after_broken: None) -> list[object]:
    return [untouched, after_broken]


@asset
def after_all_the_same(in_spite: str, joins_in_spite: list[object]) -> int:
    return len(in_spite) + len(joins_in_spite)


# Graphs that are not series-parallel, all in one run: by name, what each step reads. Every value
# is the number of paths that lead to it, so that a missing or doubled input shows.
SHAPES: dict[str, tuple[str, ...]] = {
    # The N: no nesting of chains and groups has exactly these dependencies.
    "n_a": (),
    "n_b": (),
    "n_c": ("n_a", "n_b"),
    "n_d": ("n_b",),
    # A ladder: each rung reads both sides of the one before.
    "ladder_left_0": (),
    "ladder_right_0": (),
    **{
        f"ladder_{side}_{rung}": (f"ladder_left_{rung - 1}", f"ladder_right_{rung - 1}")
        for rung in range(1, 6)
        for side in ("left", "right")
    },
    # A cross product: each of three reads each of three.
    **{f"cross_{number}": () for number in range(3)},
    **{f"product_{number}": tuple(f"cross_{n}" for n in range(3)) for number in range(3)},
    # A step by itself.
    "alone": (),
}


def _paths_of(reads: tuple[str, ...]) -> Callable[..., int]:
    """Return a function whose parameters are `reads`, which adds them up."""

    def paths(**counts: int) -> int:
        return sum(counts.values()) or 1

    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in reads]
    paths.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return paths


for _name, _reads in SHAPES.items():
    asset(name=_name)(_paths_of(_reads))


# Beside the gate: what reads the same step, and what comes after that.


@asset
def beside_gate(before_gate: int) -> int:
    return before_gate + 10


@asset
def after_beside_gate(beside_gate: int) -> int:
    return beside_gate + 10


@asset
def meets_beside_gate(after_beside_gate: int, untouched: int) -> int:
    return after_beside_gate + untouched


@asset
def all_around_gate(after_gate: int, meets_beside_gate: int) -> int:
    return after_gate + meets_beside_gate


# A graph of 165 steps with everything in it: fan-ins of twelve, stretches, layers in which each
# step reads two of the layer before, and what reads only one of them.

MESH_PARTS = StaticPartitions([f"p{number:02}" for number in range(12)])
MESH_ENDS: list[str] = []
MESH_STEPS = 165


def _whole(part: dict[Any, int]) -> int:
    return sum(part.values())


def _mesh_stretch(start: str, length: int, name: str) -> str:
    """Define a stretch of steps after a step, and return its end."""
    for number in range(length):
        asset(name=f"{name}_{number}", deps={"previous": start})(_next)
        start = f"{name}_{number}"
    return start


for _group in range(4):
    asset(name=f"mesh_part_{_group}", partitions=MESH_PARTS)(_one)
    asset(name=f"mesh_whole_{_group}", deps={"part": f"mesh_part_{_group}"})(_whole)
_layer = [_mesh_stretch(f"mesh_whole_{group}", 5, f"mesh_after_{group}") for group in range(4)]
for _depth in range(12):
    _names = [f"mesh_layer_{_depth}_{column}" for column in range(6)]
    for _column, _name in enumerate(_names):
        _left, _right = (_layer[(_column + shift) % len(_layer)] for shift in (0, 1))
        asset(name=_name, deps={"left": _left, "right": _right})(_sum)
    MESH_ENDS.append(_mesh_stretch(_names[0], 1, f"mesh_beside_{_depth}"))
    _layer = _names
asset(name="mesh_alone_0")(_one)
MESH_ENDS += [*_layer, _mesh_stretch("mesh_alone_0", 8, "mesh_alone_after")]
