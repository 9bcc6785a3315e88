"""Approvals as people see them: what was asked, who has said what, how it was decided."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, Select, Text, cast, func, select

from flowstone.gate import Gate
from flowstone.partition_key import Key, decode_key, encode_key, step_name
from flowstone.quorum import Vote, tally
from flowstone.states import GateState
from flowstone.store import decisions
from flowstone.store.tables import gates, runs, steps

_AT_ONCE = 500
"""Rows that are fetched at a time where it is not known how many are wanted."""

_WRITTEN = cast(gates.c.approvers, Text)


@dataclass(frozen=True, kw_only=True)
class ApprovalRequest:
    """An approval that was asked for, and how it stands. Times are those of the ledger."""

    id: int
    state: GateState
    asset: str
    partition: Key
    run_id: UUID
    message: str
    options: Sequence[str]
    """Of which an approval chooses one."""
    approvers: Sequence[str]
    """Names, and roles as "role:finance"; empty is anybody."""
    quorum: int
    """How many have to approve."""
    four_eyes: bool
    """Whether whoever has started the run may not decide."""
    votes: Sequence[Vote]
    asked_at: datetime
    age: float
    """For how many seconds it has waited."""
    expires_at: datetime | None
    level: int
    """How often it was escalated."""
    decided_at: datetime | None
    """When it was closed, in whatever way."""
    decided_by: str | None
    """Who has closed it; "timeout" where nobody did in time."""
    channel: str | None
    reason: str | None
    option: str | None
    """The one that was chosen."""
    is_edited: bool
    """Whether another value was put in the place of the proposed one."""

    @property
    def name(self) -> str:
        """What people call the asset x partition."""
        return step_name(self.asset, encode_key(self.partition))

    @property
    def tally(self) -> str:
        """How many of those that are needed have approved, as "1 of 2"."""
        return tally(self.quorum, self.votes)

    @property
    def is_open(self) -> bool:
        """Whether it still waits for a decision."""
        return self.state == GateState.OPEN


@dataclass(frozen=True)
class Listed:
    """An approval as the row that it is, beside what people see of it."""

    request: ApprovalRequest
    gate: Gate
    launcher: str


def one(conn: Connection, gate_id: int) -> Listed:
    """Return an approval; raise UnknownApproval."""
    decisions.approval(conn, gate_id)
    (found,) = _listed(conn, conn.execute(_query().where(gates.c.id == gate_id)).all())
    return found


def of_step(conn: Connection, step_id: int) -> list[ApprovalRequest]:
    """Return the approvals that a step has asked for, in their order."""
    query = _query().where(gates.c.step_id == step_id).order_by(gates.c.id)
    return [listed.request for listed in _listed(conn, conn.execute(query).all())]


def listed(
    conn: Connection,
    *,
    state: GateState | None,
    asset: str | None = None,
    run_id: UUID | None = None,
    older_than: float = 0,
    approvers: Callable[[Sequence[str]], bool] | None = None,
) -> Generator[Listed]:
    """Yield approvals, a few at a time: the open ones from the oldest on, others from the newest.

    Without a `state` they are those of all states; `older_than` is in seconds. `approvers` tells
    of who may decide whether that is wanted; of the others no row is read.
    """
    asked = func.extract("epoch", func.now() - gates.c.created_at)
    query = _query(asked >= older_than)
    if state is not None:
        query = query.where(gates.c.state == state)
    if approvers is not None:
        query = query.where(_WRITTEN.in_(_wanted(conn, state, approvers)))
    if asset is not None:
        query = query.where(steps.c.asset == asset)
    if run_id is not None:
        query = query.where(steps.c.run_id == run_id)
    order = (gates.c.created_at, gates.c.id)
    query = query.order_by(*(order if state == GateState.OPEN else [key.desc() for key in order]))
    # Closed here, as who takes them may stop before the last.
    with conn.execute(query, execution_options={"yield_per": _AT_ONCE}) as found:
        for rows in found.partitions():
            yield from _listed(conn, rows)


def _wanted(
    conn: Connection, state: GateState | None, approvers: Callable[[Sequence[str]], bool]
) -> list[str]:
    """Return those lists of approvers that are wanted; there are few, and many who ask them."""
    query = select(gates.c.approvers, _WRITTEN).where(gates.c.kind == "approval").distinct()
    if state is not None:
        query = query.where(gates.c.state == state)
    return [written for names, written in conn.execute(query) if approvers(names)]


def _query(*conditions: ColumnElement[bool]) -> Select[*tuple[Any, ...]]:
    return (
        select(
            gates,
            steps.c.asset,
            steps.c.partition,
            steps.c.run_id,
            runs.c.actor.label("launcher"),
            func.extract(
                "epoch", func.coalesce(gates.c.closed_at, func.now()) - gates.c.created_at
            ).label("age"),
        )
        .join(steps, steps.c.id == gates.c.step_id)
        .join(runs, runs.c.id == steps.c.run_id)
        .where(gates.c.kind == "approval", *conditions)
    )


def _listed(conn: Connection, rows: Sequence[Row[*tuple[Any, ...]]]) -> list[Listed]:
    votes = decisions.votes_on(conn, [row.id for row in rows])
    return [Listed(_request(row, votes), Gate.of(row._asdict()), row.launcher) for row in rows]


def _request(row: Row[*tuple[Any, ...]], votes: Mapping[int, Sequence[Vote]]) -> ApprovalRequest:
    return ApprovalRequest(
        id=row.id,
        state=GateState(row.state),
        asset=row.asset,
        partition=decode_key(row.partition),
        run_id=row.run_id,
        message=row.message,
        options=tuple(row.options),
        approvers=tuple(row.approvers),
        quorum=row.quorum,
        four_eyes=row.four_eyes,
        votes=tuple(votes.get(row.id, ())),
        asked_at=row.created_at,
        age=float(row.age),
        expires_at=row.expires_at,
        level=row.level,
        decided_at=row.closed_at,
        decided_by=row.closed_by,
        channel=row.channel,
        reason=row.reason,
        option=row.chosen,
        is_edited=row.edited is not None,
    )
