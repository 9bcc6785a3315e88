"""`flowstone lineage` and `flowstone produced`: where values come from, and where they go."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowstone import lineage as asked
from flowstone import runtime
from flowstone.cli.options import Partition, key_of
from flowstone.errors import BadQuery
from flowstone.lineage import (
    Affected,
    Provenance,
    Question,
    RequestedStep,
    Standing,
    TracedColumn,
    TracedOutput,
)
from flowstone.partition_key import encode_key, label
from flowstone.selection import resolve
from flowstone.texts import printable

Name = Annotated[str, typer.Argument(help="The asset.")]

AsOf = Annotated[
    str | None,
    typer.Option("--as-of", help="Tell it as it stood at a time: 2026-01-10T12:00+00:00."),
]

InRun = Annotated[
    str | None, typer.Option("--run", "-r", help="What this run has made or used, by its id.")
]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_SHOWN: Final = 40
"""The most inputs that a table shows."""

_STYLES = {Standing.CURRENT: "green", Standing.OUT_OF_DATE: "yellow", Standing.STALE: "red"}


def lineage(
    asset: Name,
    *,
    partition: Partition = None,
    downstream: Annotated[
        bool, typer.Option("--downstream", help="Show what was made of it instead.")
    ] = False,
    impact: Annotated[
        bool, typer.Option("--impact", help="Show what depends on it now, and how that stands.")
    ] = False,
    depth: Annotated[
        int | None, typer.Option(help="How many steps from there; all without.")
    ] = None,
    as_of: AsOf = None,
    run: InRun = None,
    column: Annotated[
        str | None, typer.Option(help="Follow a column, as the assets declare it, instead.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--steps", help="A line for each partition, rather than for an asset.")
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="SELECTION", help="Show only these assets, such as 'tag:raw or delays'."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the exact outputs that the latest output of an asset was made of.

    Example: flowstone lineage monthly_report --partition 2013-01
    """
    if downstream and impact:
        raise BadQuery("--downstream and --impact are two questions; ask one at a time")
    if column is not None:
        if impact or any(given is not None for given in (partition, depth, as_of, run, only)):
            raise BadQuery("--column follows the definitions; it goes with --downstream only")
        _print_columns(asset, column, downstream=downstream, as_json=as_json)
        return
    if impact and run is not None:
        raise BadQuery("--impact tells what depends on an asset now, and not on one of its runs")
    question = Question(asset, key_of(partition), depth, _time(as_of), run)
    found: Sequence[TracedOutput]
    if impact:
        found = asked.walk_impact(question)
    else:
        found = (asked.walk_downstream if downstream else asked.walk_upstream)(question)
    shown = found if only is None else _only(found, only)
    if as_json:
        _print_json(shown)
        return
    names = {one.output_id: one.name if every else one.asset for one in found}
    _print(shown, _HEADINGS[downstream, impact], names, every=every)


_HEADINGS = {
    (False, False): ("was made of", "read by"),
    (True, False): ("has gone into", "made of"),
    (False, True): ("affects", "reads"),
}


def produced(
    asset: Name,
    *,
    partition: Partition = None,
    run: InRun = None,
    as_of: AsOf = None,
    as_json: AsJson = False,
) -> None:
    """Show what produced a value: run, attempt, code, config, inputs, checks and approvals.

    Example: flowstone produced monthly_report --partition 2013-01
    """
    found = asked.produced(asset, key_of(partition), run=run, as_of=_time(as_of))
    if as_json:
        _print_json(found)
        return
    console = Console()
    console.print(_facts(found))
    if found.inputs:
        console.print(_inputs(found))
    if found.missing:
        console.print(_missing(found))
    if found.checks:
        console.print(_checks(found))
    if found.approvals:
        console.print(_approvals(found))


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise BadQuery(
            f"--as-of {text!r} is not a time; write it as 2026-01-10T12:00+00:00"
        ) from error


def _only(found: Sequence[TracedOutput], selection: str) -> Sequence[TracedOutput]:
    """Return the output that was asked about, and of the others those of selected assets."""
    selected = resolve(runtime.current().registry.graph, [selection]).assets
    start, *others = found
    return [start, *(one for one in others if one.asset in selected)]


def _print(
    found: Sequence[TracedOutput],
    heading: tuple[str, str],
    names: Mapping[int, str],
    *,
    every: bool,
) -> None:
    """Print outputs; `names` has also those that are not shown, as they may lead to others."""
    start, *others = found
    console = Console()
    says, through = heading
    console.print(f"{_told(start)} {says}{':' if others else ' nothing'}", highlight=False)
    if not others:
        return
    table = Table("depth", "output", through, "made", "run", "", box=box.SIMPLE_HEAD)
    table.columns[1].overflow = table.columns[2].overflow = "fold"
    groups = [[one] for one in others] if every else _together(others)
    for group in groups:
        via = sorted({names[i] for one in group for i in one.via})
        table.add_row(
            str(group[0].depth),
            escape(_names(group)),
            escape(", ".join(via)),
            _made(group),
            _runs(group),
            _notes(group[0]),
        )
    console.print(table)
    assets = len({one.asset for one in others})
    console.print(f"outputs: {len(others)}, assets: {assets}", highlight=False)


def _told(start: TracedOutput) -> str:
    notes = _notes(start) if not isinstance(start, Affected) else ""
    made = f"made {_when(start.made_at)} by run {_short(start.run_id)}"
    return f"[bold]{escape(start.name)}[/] ({made}{', ' if notes else ''}{notes})"


def _together(found: Iterable[TracedOutput]) -> Iterator[list[TracedOutput]]:
    """Yield the partitions of an asset together, where the same is to be said of them."""

    def said(one: TracedOutput) -> tuple[int, str, str]:
        return one.depth, one.asset, _notes(one)

    for _, group in itertools.groupby(sorted(found, key=said), said):
        yield sorted(group, key=lambda one: encode_key(one.partition))


def _names(group: Sequence[TracedOutput]) -> str:
    first, last = group[0], group[-1]
    if len(group) == 1:
        return first.name
    partitions = sorted({encode_key(one.partition) for one in group})
    if len(partitions) == 1:
        return f"{first.name} ({len(group)} versions)"
    return f"{first.asset}[{_key(first)} .. {_key(last)}] ({len(group)})"


def _key(one: TracedOutput) -> str:
    return label(encode_key(one.partition))


def _made(group: Sequence[TracedOutput]) -> str:
    first, last = (_when(pick(one.made_at for one in group)) for pick in (min, max))
    return first if first == last else f"{first} ..\n{last}"


def _runs(group: Sequence[TracedOutput]) -> str:
    runs = {one.run_id for one in group}
    return _short(next(iter(runs))) if len(runs) == 1 else f"{len(runs)} runs"


def _notes(one: TracedOutput) -> str:
    if isinstance(one, Affected):
        standing = f"[{_STYLES[one.standing]}]{one.standing}[/]"
        return standing + (f": {escape(one.stale)}" if one.stale else "")
    notes = [] if one.is_latest else ["[dim]not the latest[/]"]
    if one.stale is not None:
        notes.append(f"[red]stale[/]: {escape(one.stale)}")
    if one.is_deleted:
        notes.append("[yellow]value deleted[/]")
    return ", ".join(notes)


def _facts(found: Provenance) -> Table:
    output, attempt = found.output, found.attempt
    code = found.fingerprint.code[:12] if found.fingerprint else ""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in {
        "value": found.name + ("" if output.is_latest else ", not the latest"),
        "stale": output.stale,
        "deleted": output.deleted_at and _when(output.deleted_at),
        "reused by": found.reused_by and _step(found.reused_by),
        "made by": _step(found.made_by),
        "why": found.made_by.reason,
        "attempt": f"{attempt.number} on {attempt.worker}, began {_when(attempt.started_at)}",
        "release": attempt.release,
        "code": f"version {found.version} ({code})" if found.version else code,
        "config": json.dumps(found.made_by.config) if found.made_by.config else None,
        # In full: what is given to --as-of must not lie before it.
        "made": output.made_at.astimezone().isoformat(" "),
        "kept": f"{output.location} ({output.io}, {output.format})",
        "size": f"{output.size:,} bytes"
        + (f", {output.rows:,} rows" if output.rows is not None else ""),
        "sha256": output.sha256,
    }.items():
        if value:
            table.add_row(f"[bold]{name}", escape(value))
    return table


def _step(step: RequestedStep) -> str:
    how = f", {step.state}: {step.reason}" if step.state != "succeeded" else ""
    return (
        f"step {step.step_id} of run {_short(step.run_id)}, asked for by {step.requested_by} "
        f"{_when(step.requested_at)}{how}"
    )


def _inputs(found: Provenance) -> Table:
    table = Table("input", "made", "run", "sha256", "", box=box.SIMPLE_HEAD)
    table.columns[0].overflow = "fold"
    for one in found.inputs[:_SHOWN]:
        table.add_row(
            escape(one.name),
            _when(one.made_at),
            _short(one.run_id),
            one.sha256[:12],
            "value deleted" if one.is_deleted else "",
        )
    if (more := len(found.inputs) - _SHOWN) > 0:
        table.caption = f"and {more} more, which --json prints, too"
    return table


def _missing(found: Provenance) -> str:
    """Say what a roll-up was made without."""
    names = ", ".join(escape(one.name) for one in found.missing[:_SHOWN])
    more = len(found.missing) - _SHOWN
    return f"[yellow]missing[/]: {names}" + (f" and {more} more" if more > 0 else "")


def _checks(found: Provenance) -> Table:
    table = Table("check", "", "says", "at", box=box.SIMPLE_HEAD)
    for check in found.checks:
        failed = "red" if check.severity == "error" else "yellow"
        passed = "[green]passed[/]" if check.passed else f"[{failed}]failed[/]"
        table.add_row(escape(check.name), passed, escape(check.message), _when(check.checked_at))
    return table


def _approvals(found: Provenance) -> Table:
    table = Table("approval", "", "by", "says", "at", box=box.SIMPLE_HEAD)
    table.columns[2].overflow = table.columns[3].overflow = "fold"
    for one in found.approvals:
        for vote in one.votes if one.quorum > 1 else ():
            how = "approves" if vote.approves else "rejects"
            when = _when(vote.at) if vote.at else ""
            table.add_row(str(one.id), how, _said(vote.actor), _said(vote.reason), when)
        styles = {"approved": "green", "open": "yellow"}
        state = f"[{styles.get(one.state, 'red')}]{one.state}[/]{', edited' * one.is_edited}"
        chosen = f"[{one.option}] " if one.option is not None else ""
        table.add_row(
            str(one.id),
            state,
            _said(one.decided_by),
            _said(f"{chosen}{one.reason or ''}"),
            _when(one.decided_at) if one.decided_at else "",
        )
    return table


def _said(text: str | None) -> str:
    return escape(printable(text or ""))


def _print_columns(asset: str, column: str, *, downstream: bool, as_json: bool) -> None:
    ask = asked.columns_downstream if downstream else asked.columns_upstream
    found: list[TracedColumn] = ask(asset, column)
    if as_json:
        _print_json(found)
        return
    for one in found:
        typer.echo(f"{'  ' * (one.depth - 1)}{one.asset}.{one.column}")


def _print_json(answer: Provenance | Sequence[TracedOutput] | Sequence[TracedColumn]) -> None:
    typer.echo(json.dumps(_plain(answer), ensure_ascii=False))


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever an answer holds
    """Return an answer as JSON."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if is_dataclass(value):
        return {name: _field(name, its) for name, its in vars(value).items()}
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else value


def _field(name: str, value: Any) -> Any:  # noqa: ANN401
    # A key may be of any type, so its name tells what it is.
    return label(encode_key(value)) or None if name == "partition" else _plain(value)


def _when(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def _short(run_id: object) -> str:
    return str(run_id)[:8]
