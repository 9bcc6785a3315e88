"""`flowstone partitions`: how the partitions of an asset stand, in one look."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from flowstone import runtime
from flowstone.cli.partition_picture import CELLS, Line, draw, legend
from flowstone.partition import Key
from flowstone.partition_key import encode_key, label
from flowstone.partition_status import PartitionStates, partition_states, state_of
from flowstone.states import PartitionState
from flowstone.texts import printable

_AROUND: Final = 10
"""The lines that stand around the picture."""

_NAMED: Final = 8
"""The most partitions that are named in a sentence."""


def partitions(
    asset: Annotated[str, typer.Argument(help="The asset.")],
    *,
    partition: Annotated[
        list[str] | None,
        typer.Option(
            "--partition",
            "-p",
            help="Only these: a key, or a range such as 2013-01..2013-06. May be given several "
            "times.",
        ),
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(help="List the partitions in this state. May be given several times."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Show all, however many there are.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how the partitions of an asset stand: missing, computed, failed, stale, left over.

    Example: flowstone partitions raw_flights --partition 2013-01..2013-06
    """
    wanted = [state_of(name) for name in state or PartitionState]
    found = partition_states(asset, partition or "all")
    if as_json:
        typer.echo(json.dumps(_as_json(found, wanted), ensure_ascii=False))
        return
    console = Console()
    height = max(1, console.height - _AROUND)
    if state:
        _list(console, found, wanted, None if every else height)
    else:
        _draw(console, found, None if every else height)


def _draw(console: Console, found: PartitionStates, height: int | None) -> None:
    its = runtime.current().registry.graph[found.asset].partitions
    _say(console, f"{found.asset}: {its}")
    if found.states:
        whole = draw(its, found.states, console.width, height or console.height)
        shown = whole if height is None else whole.newest(height)
        if hidden := len(found.states) - shown.partitions:
            _say(console, f"{hidden:,} earlier ones are not shown; --all shows them")
        for row in (*shown.heading, *shown.lines):
            console.print(_text(row), no_wrap=True, crop=False, soft_wrap=True)
    for line in _legend(found, console.width):
        console.print(line)
    for why, count in Counter(found.reasons.values()).most_common(_NAMED):
        _say(console, f"{count:,} stale: {why}")
    _tell_left_over(console, found.left_over, height)


def _list(
    console: Console,
    found: PartitionStates,
    wanted: Sequence[PartitionState],
    height: int | None,
) -> None:
    keys = found.keys_with(*wanted)
    shown = keys if height is None else keys[-height:]
    if hidden := len(keys) - len(shown):
        _say(console, f"{hidden:,} earlier ones are not shown; --all shows them")
    for key in shown:
        its = found.states[key]
        why = f": {found.reasons[key]}" if key in found.reasons else ""
        cell, style = CELLS[its]
        console.print(
            Text.assemble((cell, style), f" {_name(key)}  {its.value}{printable(why)}"),
            soft_wrap=True,
        )
    _say(console, f"partitions: {len(keys):,} of {len(found.states):,}")


def _legend(found: PartitionStates, width: int) -> Iterator[Text]:
    """Yield the lines of the legend; none ends between a character and what it says."""
    total = ("", ""), f"partitions: {len(found.states):,}"
    told = Text()
    for cell, says in (*legend(found.counts), total):
        one = Text.assemble(cell, " " if cell[0] else "", says)
        if told and len(told) + len(one) + 3 > width:
            yield told
            told = Text()
        told = Text.assemble(told, "   " if told else "", one)
    yield told


def _tell_left_over(console: Console, left_over: Sequence[Key], height: int | None) -> None:
    if not left_over:
        return
    shown = left_over if height is None else left_over[:_NAMED]
    more = f" and {len(left_over) - len(shown):,} more" if len(shown) < len(left_over) else ""
    _say(
        console,
        f"left over: {len(left_over):,} with an output that the set does not have any more, which "
        f"nothing computes again and `flowstone get` still reads: {_names(shown)}{more}",
    )


def _names(keys: Iterable[Key]) -> str:
    return ", ".join(_name(key) for key in keys)


def _name(key: Key) -> str:
    return printable(label(encode_key(key))) or "(unpartitioned)"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)


def _text(line: Line) -> Text:
    told = Text.assemble(*line.pieces)
    told.rstrip()
    return told


def _as_json(found: PartitionStates, wanted: Sequence[PartitionState]) -> dict[str, object]:
    return {
        "asset": found.asset,
        "counts": {state.value: count for state, count in found.counts.items()},
        "partitions": [
            {
                "partition": label(encode_key(key)) or None,
                "state": found.states[key].value,
                "why": found.reasons.get(key),
            }
            for key in found.keys_with(*wanted)
        ],
        "left_over": [label(encode_key(key)) or None for key in found.left_over],
    }
