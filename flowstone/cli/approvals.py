"""`flowstone approvals`: what waits for people, what it is about, and their decisions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowstone import approvals as api
from flowstone.approvals import ApprovalDetails, ApprovalRequest
from flowstone.cli.frames import frame_summary, frame_table, is_frame
from flowstone.errors import (
    AlreadyDecided,
    ApprovalVoid,
    BadConfig,
    BadDecision,
    BadQuery,
    NotAllowed,
    UnknownApproval,
)
from flowstone.io.edits import readable
from flowstone.partition_key import encode_key, label
from flowstone.runtime import whoami
from flowstone.states import GateState
from flowstone.texts import lasting, printable, printable_json
from flowstone.web.links import WEEK, approval_link

app = typer.Typer(help="Approvals: what waits for people, and their decisions.")

CLI: Final = "cli"
"""By which way a decision comes that is made here."""

ME: Final = "me"
_MANY: Final = 10_000
_SHOWN: Final = 2_000
"""The most characters of a value that are shown."""

_REFUSED: Final = (
    UnknownApproval,
    AlreadyDecided,
    ApprovalVoid,
    NotAllowed,
    BadDecision,
    # A role that there is not.
    BadConfig,
)
"""What goes wrong with one approval, and not with the others."""

Decide = Callable[[int | str], ApprovalRequest]

Ids = Annotated[list[str] | None, typer.Argument(help="Their ids.", show_default=False)]
OfAsset = Annotated[str | None, typer.Option("--asset", "-a", help="Those of this asset.")]
OfApprover = Annotated[
    str | None, typer.Option(help="Those that this person may decide; 'me' for yourself.")
]
OfRun = Annotated[str | None, typer.Option("--run", "-r", help="Those of this run, by its id.")]
OlderThan = Annotated[float, typer.Option(min=0, help="Those that wait for so many seconds.")]
All = Annotated[
    bool, typer.Option("--all", help="All that wait, or those of them that the options name.")
]
Why = Annotated[str | None, typer.Option(help="Why; it is kept, and shown to others.")]
By = Annotated[str | None, typer.Option(help="Who decides, if not you.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_(
    *,
    asset: OfAsset = None,
    approver: OfApprover = None,
    run: OfRun = None,
    older_than: OlderThan = 0,
    state: Annotated[
        str, typer.Option(help="open, approved, rejected, expired, void, withdrawn, or all.")
    ] = GateState.OPEN.value,
    limit: Annotated[int, typer.Option(min=1, max=_MANY, help="How many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List what waits for a decision, the oldest first; with --state what was decided, too.

    Example: flowstone approvals list --approver me
    """
    found = api.approvals_list(
        state=state,
        asset=asset,
        approver=_name(approver, None),
        older_than=older_than,
        run=run,
        limit=limit,
    )
    if as_json:
        typer.echo(printable_json([_as_json(one) for one in found]))
    elif not found:
        typer.echo("nothing waits for a decision" if state == GateState.OPEN else "there is none")
    else:
        Console().print(_table(found))


@app.command()
def show(
    approval: Annotated[str, typer.Argument(help="The id of an approval.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show all of an approval: what is asked, of what value, who has said what.

    Example: flowstone approvals show 12
    """
    found = api.get_approval(approval)
    if as_json:
        typer.echo(printable_json(_details_as_json(found)))
        return
    console = Console()
    console.print(_facts(found))
    if is_frame(found.proposed, found.value):
        console.print(frame_table(found.value))
    if found.votes:
        console.print(_votes(found))
    if found.difference:
        console.print(_difference(found))


@app.command()
def approve(
    ids: Ids = None,
    *,
    every: All = False,
    asset: OfAsset = None,
    approver: OfApprover = None,
    run: OfRun = None,
    older_than: OlderThan = 0,
    reason: Why = None,
    option: Annotated[str | None, typer.Option(help="The option to choose.")] = None,
    edit: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="The whole value that is to count in place of the proposed one, or @FILE with it.",
        ),
    ] = None,
    by: By = None,
) -> None:
    """Approve, each on its own; the exit code is 1 if one of several could not be.

    Example: flowstone approvals approve 12 --reason "looks fine"
    """
    targets = _targets(ids, every, _Filters(asset, _name(approver, by), run, older_than))
    if edit is not None and len(targets) != 1:
        raise BadDecision("--edit takes one approval; give its id")
    value = api.NOT_EDITED if edit is None else _edit(edit)
    _each(
        targets,
        lambda one: api.approve(one, by=by, reason=reason, option=option, edit=value, channel=CLI),
    )


@app.command()
def reject(
    ids: Ids = None,
    *,
    every: All = False,
    asset: OfAsset = None,
    approver: OfApprover = None,
    run: OfRun = None,
    older_than: OlderThan = 0,
    reason: Why = None,
    by: By = None,
) -> None:
    """Reject, each on its own; the exit code is 1 if one of several could not be.

    Example: flowstone approvals reject --all --asset monthly_report --reason "too few rows"
    """
    targets = _targets(ids, every, _Filters(asset, _name(approver, by), run, older_than))
    _each(targets, lambda one: api.reject(one, by=by, reason=reason, channel=CLI))


@app.command()
def link(
    approval: Annotated[str, typer.Argument(help="The id of an approval.")],
    *,
    by: Annotated[str, typer.Option(help="Who is to decide with it.", show_default=False)],
    expires: Annotated[
        float, typer.Option(help="For how many seconds it holds.")
    ] = WEEK.total_seconds(),
) -> None:
    """Print a link to an approval, by which one person decides without a login.

    Example: flowstone approvals link 12 --by ann
    """
    typer.echo(approval_link(approval, by, expires=expires))


def _name(approver: str | None, by: str | None) -> str | None:
    return (by or whoami()) if approver == ME else approver


@dataclass(frozen=True)
class _Filters:
    """Which of those that wait are meant."""

    asset: str | None
    approver: str | None
    run: str | None
    older_than: float


def _targets(ids: Sequence[str] | None, every: bool, filters: _Filters) -> Sequence[int | str]:
    wanted = vars(filters)
    if ids and (every or any(wanted.values())):
        raise BadQuery("ids and --all both say what to decide; give one of the two")
    if not ids and not every:
        more = (
            "add --all to decide all that these options name" if any(wanted.values()) else "--all"
        )
        raise BadQuery(f"no approval is named; give ids, or {more}")
    if ids:
        # Each once: the second time it would be decided already.
        return list(dict.fromkeys(ids))
    return [one.id for one in api.approvals_list(**wanted, limit=_MANY)]


def _edit(given: str) -> Any:  # noqa: ANN401 - any JSON value
    text, where = given, "--edit"
    if given.startswith("@"):
        where = f"--edit {given}"
        try:
            text = Path(given[1:]).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise BadDecision(f"{where}: the file cannot be read: {error}") from error
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadDecision(
            f'{where} is no JSON ({error}); write a value such as {{"total": 12}}, or "text" in '
            "quotes"
        ) from error


def _each(targets: Sequence[int | str], decide: Decide) -> None:
    if not targets:
        typer.echo("nothing waits for a decision")
    if len(targets) == 1:
        typer.echo(_said(decide(targets[0])))
        return
    failed = False
    for target in targets:
        try:
            typer.echo(_said(decide(target)))
        except _REFUSED as error:
            failed = True
            typer.echo(f"error: {printable(error.message)}", err=True)
    raise typer.Exit(failed)


def _said(one: ApprovalRequest) -> str:
    if one.is_open:
        return f"approval {one.id} ({one.name}): {one.tally} have approved"
    edited = ", with an edited value" if one.is_edited else ""
    return printable(f"approval {one.id} ({one.name}): {one.state} by {one.decided_by}{edited}")


def _table(found: Sequence[ApprovalRequest]) -> Table:
    is_history = any(not one.is_open for one in found)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("id", justify="right", no_wrap=True)
    table.add_column("what is asked", overflow="fold")
    table.add_column("since", no_wrap=True)
    table.add_column("votes", no_wrap=True)
    table.add_column("decided" if is_history else "may decide", overflow="fold")
    for one in found:
        table.add_row(
            str(one.id),
            f"[bold]{_shown(one.name)}[/]{_shown(_asks(one))}",
            lasting(one.age) if one.is_open else f"{_when(one.asked_at):.16}",
            one.tally,
            _shown(_decided(one) if is_history else _may(one)),
        )
    return table


def _asks(one: ApprovalRequest) -> str:
    options = f"options: {', '.join(one.options)}" if one.options else ""
    late = f"until {_when(one.expires_at):.16}" if one.is_open and one.expires_at else ""
    level = f"escalated {one.level} x" if one.level else ""
    more = "; ".join(part for part in (options, late, level) if part)
    return "".join(f"\n{part}" for part in (one.message, more) if part)


def _may(one: ApprovalRequest) -> str:
    who = ", ".join(one.approvers) or "anybody"
    return f"{who}, but for who started the run" if one.four_eyes else who


def _decided(one: ApprovalRequest) -> str:
    if one.is_open:
        return str(one.state)
    why = f": {one.reason}" if one.reason else ""
    return f"{one.state}{', edited' * one.is_edited} by {one.decided_by}{why}"


def _facts(found: ApprovalDetails) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    again = found.replaced_by
    for name, value in {
        "approval": f"{found.id}, {found.state}{f'; asked again as {again}' if again else ''}",
        "of": f"{found.name}, in run {str(found.run_id)[:8]} of {found.launcher}",
        "asks": found.message,
        "context": _json(found.context) if found.context else "",
        "options": ", ".join(found.options),
        "value": _value(found),
        "reviewed": f"{found.subject} (the hash of what was reviewed)" if found.subject else "",
        "since": f"{_when(found.asked_at)} ({lasting(found.age)})",
        "until": f"{_when(found.expires_at)}, then: {found.on_timeout}" if found.expires_at else "",
        "may decide": _may(found),
        "votes": found.tally,
        "escalated": f"{found.level} x" if found.level else "",
        "asked before": f"as {found.replaces}, which is void" if found.replaces else "",
        "decided": "" if found.is_open else f"{_decided(found)}, at {_when(found.decided_at)}",
        "by way of": found.channel,
        "chosen": found.option,
        "new value": _json(found.edited) if found.is_edited else "",
    }.items():
        if value:
            table.add_row(f"[bold]{name}", _shown(value))
    return table


def _shown(text: str) -> str:
    """Return a text of users as a terminal shows it, without what would be an order to it."""
    return escape(printable(text))


def _value(found: ApprovalDetails) -> str:
    if found.proposed is None:
        return ""
    if is_frame(found.proposed, found.value):
        return frame_summary(found.proposed, found.value)
    text = _json(found.value)
    more = len(text) - _SHOWN
    return text if more <= 0 else f"{text[:_SHOWN]} ... and {more:,} more characters"


def _json(value: Any) -> str:  # noqa: ANN401 - any value of a user
    plain = readable(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _votes(found: ApprovalDetails) -> Table:
    table = Table("vote", "by", "says", "at", box=box.SIMPLE_HEAD, pad_edge=False)
    table.columns[1].overflow = table.columns[2].overflow = "fold"
    for vote in found.votes:
        chosen = f"{vote.option}: " if vote.option is not None else ""
        table.add_row(
            "[green]approves[/]" if vote.approves else "[red]rejects[/]",
            _shown(vote.actor),
            _shown(f"{chosen}{vote.reason or ''}"),
            _when(vote.at),
        )
    return table


def _difference(found: ApprovalDetails) -> Table:
    table = Table("changed", "before", "after", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    for change in found.difference:
        table.add_row(
            _shown(change["path"] or "(all)"),
            *(
                _shown(_json(change[side])) if side in change else ""
                for side in ("before", "after")
            ),
        )
    return table


def _as_json(one: ApprovalRequest) -> dict[str, Any]:
    fields = {name: getattr(one, name) for name in ApprovalRequest.__dataclass_fields__}
    more = {
        "partition": label(encode_key(one.partition)) or None,
        "run_id": str(one.run_id),
        "votes": [_plain(asdict(vote)) for vote in one.votes],
        "tally": one.tally,
    }
    return _plain({**fields, **more})


def _details_as_json(found: ApprovalDetails) -> dict[str, Any]:
    stored = found.proposed
    return {
        **_as_json(found),
        "launcher": found.launcher,
        "context": found.context,
        "subject": found.subject,
        "on_timeout": found.on_timeout,
        "proposed": None if stored is None else asdict(stored),
        "value": readable(found.value),
        "edited": found.edited,
        "difference": found.difference,
        "replaces": found.replaces,
        "replaced_by": found.replaced_by,
    }


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in fields.items()
    }


def _when(moment: datetime | None) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}" if moment else ""
