"""Runs: requested, planned, closed; each move is one guarded UPDATE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Text,
    cast,
    exists,
    func,
    null,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from flowstone.errors import CannotStart, UnknownRun
from flowstone.priority import Priority
from flowstone.request import OnConflict, Only, Order, Request
from flowstone.states import (
    DONE_STEP_STATES,
    FINAL_RUN_STATES,
    RUN_MOVES,
    RunState,
    StepState,
    is_open,
    sources,
)
from flowstone.store import audit, progress, reasons
from flowstone.store.prepared import Prepared
from flowstone.store.tables import SCHEMA, runs, steps
from flowstone.summary import summarize

_SECONDS_LEFT = "extract(epoch FROM deadline_at - clock_timestamp()) AS seconds_left"

# Commits of steps refer to the run by foreign key; NO KEY UPDATE does not hold them up.
_LOCK = Prepared(
    f"""
    SELECT {", ".join(column.name for column in runs.columns)}, {_SECONDS_LEFT}
    FROM {SCHEMA}.runs WHERE id = :run_id FOR NO KEY UPDATE
    """
)


@dataclass(frozen=True)
class Run:
    """A row of the table runs."""

    id: UUID
    state: RunState
    driver: str
    request: Request
    config: Mapping[str, Any]
    max_in_flight: int
    boost: int
    """By how many levels it has moved up, as it starved."""
    error: Mapping[str, Any] | None
    created_at: datetime
    planned_at: datetime | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    cancel_reason: str | None
    resumed_from: UUID | None
    pruned_at: datetime | None
    seconds_left: float | None
    """Until its deadline, less than 0 after it; None without one."""
    planned_config: Mapping[str, Any]
    """The config that each asset of the plan has, for people to see."""
    backfill: int | None = None
    """The backfill that it belongs to."""
    opens_at: datetime | None = None
    """Until when nothing of it is dispatched, as its backfill has hours."""
    pause_reason: str | None = None
    """Why it is paused, or was last."""
    drains: bool = False
    """Whether what runs may come to its end, where it is being cancelled."""
    started_at: datetime | None = None
    """When steps of it could start, first or after a pause."""

    @property
    def is_late(self) -> bool:
        """Whether the run has not ended before its deadline."""
        return self.seconds_left is not None and self.seconds_left < 0 and not self.is_final

    @property
    def is_being_cancelled(self) -> bool:
        """Whether nothing of the run may start any more, and some of it has not ended yet."""
        return self.cancel_requested_at is not None and not self.is_final

    @property
    def is_final(self) -> bool:
        """Whether the run has ended."""
        return self.state in FINAL_RUN_STATES


def create(
    conn: Connection,
    run_id: UUID,
    request: Request,
    *,
    config: Mapping[str, Any],
    driver: str,
    max_in_flight: int,
    actor: str,
    resumed_from: UUID | None = None,
    idempotency_key: str | None = None,
    lease: float | None = None,
    backfill: int | None = None,
) -> bool:
    """Record a request; return False, and record nothing, if there is a run with that key.

    `lease` is for how many seconds the process that drives an inline run counts as alive.
    """
    wanted = asdict(request)
    made = conn.execute(
        insert(runs)
        .values(
            id=run_id,
            driver=driver,
            request=wanted,
            config=dict(config),
            max_in_flight=max_in_flight,
            actor=actor,
            resumed_from=resumed_from,
            idempotency_key=idempotency_key,
            lease_until=None if lease is None else _in_seconds(lease),
            backfill=backfill,
            priority=request.priority.level,
            deadline_at=None if request.deadline is None else _in_seconds(request.deadline),
        )
        .on_conflict_do_nothing(index_elements=[runs.c.idempotency_key])
        .returning(runs.c.id)
    ).one_or_none()
    if made is None:
        return False
    audit.record(
        conn,
        actor=actor,
        action="run.requested",
        run_id=run_id,
        details=wanted,
        after={"state": RunState.REQUESTED},
    )
    return True


def of_key(conn: Connection, idempotency_key: str) -> Run:
    """Return the run of an idempotency key; raise UnknownRun if there is none."""
    query = select(runs.c.id).where(runs.c.idempotency_key == idempotency_key)
    if (run_id := conn.scalar(query)) is None:
        raise UnknownRun(
            f"the run of the idempotency key {idempotency_key!r} has just been pruned; "
            "submit it again"
        )
    return get(conn, run_id)


def renew(conn: Connection, run_ids: Sequence[UUID], *, lease: float) -> None:
    """Let the process that drives these runs count as alive for `lease` seconds more."""
    conn.execute(
        update(runs)
        .where(runs.c.id.in_(run_ids), runs.c.state.not_in(FINAL_RUN_STATES))
        .values(lease_until=_in_seconds(lease))
    )


def _in_seconds(seconds: float) -> ColumnElement[Any]:
    return func.now() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def get(conn: Connection, run_id: UUID) -> Run:
    """Return a run; raise UnknownRun."""
    return _one(conn, run_id, lock=False)


def lock(conn: Connection, run_id: UUID) -> Run:
    """Return a run, and keep other coordinators of it out until the transaction ends."""
    return _one(conn, run_id, lock=True)


def _one(conn: Connection, run_id: UUID, *, lock: bool) -> Run:
    if lock:
        row = _LOCK.first(conn, {"run_id": run_id})
    else:
        query = select(runs, text(_SECONDS_LEFT)).where(runs.c.id == run_id)
        row = conn.execute(query).one_or_none()
    if row is None:
        raise UnknownRun(f"run {run_id} is not in the ledger")
    return Run(
        id=row.id,
        state=RunState(row.state),
        driver=row.driver,
        request=_request(row.request),
        config=row.config,
        max_in_flight=row.max_in_flight,
        boost=row.boost,
        error=row.error,
        created_at=row.created_at,
        planned_at=row.planned_at,
        finished_at=row.finished_at,
        cancel_requested_at=row.cancel_requested_at,
        cancel_reason=row.cancel_reason,
        resumed_from=row.resumed_from,
        pruned_at=row.pruned_at,
        seconds_left=None if row.seconds_left is None else float(row.seconds_left),
        # Plans of older versions lack it.
        planned_config=row.planned_config or {},
        backfill=row.backfill,
        opens_at=row.opens_at,
        pause_reason=row.pause_reason,
        drains=row.drains,
        started_at=row.started_at,
    )


def _request(kept: Mapping[str, Any]) -> Request:
    # Requests of older versions lack what was not known yet; the defaults are what they did.
    request = Request(**{**kept, "assets": tuple(kept["assets"])})
    return replace(
        request,
        on_conflict=OnConflict(request.on_conflict),
        priority=Priority(request.priority),
        choice=None if request.choice is None else tuple(request.choice),
        only=None if request.only is None else Only(request.only),
        order=None if request.order is None else Order(request.order),
    )


def find(conn: Connection, prefix: str) -> UUID:
    """Return the run whose id begins with `prefix`; raise UnknownRun if not exactly one does."""
    prefix = prefix.strip().lower()
    if not prefix:
        raise UnknownRun("no run is named; give the beginning of its id")
    found: Sequence[UUID] = conn.scalars(
        select(runs.c.id).where(cast(runs.c.id, Text).startswith(prefix, autoescape=True)).limit(2)
    ).all()
    if len(found) == 1:
        return found[0]
    how = "several runs begin" if found else "no run begins"
    raise UnknownRun(f"{how} with {prefix!r}; `flowstone runs` lists the latest")


def _action(before: RunState, target: RunState) -> str:
    if target != RunState.RUNNING:
        return f"run.{target}"
    return "run.continued" if before == RunState.WAITING else "run.started"


def move(
    conn: Connection,
    run_id: UUID,
    target: RunState,
    *,
    actor: str,
    reason: str | None = None,
    details: Mapping[str, Any] | None = None,
    **values: Any,  # noqa: ANN401
) -> bool:
    """Move a run to `target` if its state allows it, with an audit row; return whether it did."""
    if target in FINAL_RUN_STATES:
        values["finished_at"] = func.now()
    old = select(runs.c.id, runs.c.state).where(runs.c.id == run_id).with_for_update(key_share=True)
    was = old.cte("was")
    before = conn.scalar(
        update(runs)
        .where(runs.c.id == was.c.id, was.c.state.in_(sources(target, RUN_MOVES)))
        .values(state=target, **values)
        .returning(was.c.state)
    )
    if before is None:
        return False
    audit.record(
        conn,
        actor=actor,
        action=_action(RunState(before), target),
        run_id=run_id,
        details=details,
        reason=reason,
        before={"state": before},
        after={"state": target},
    )
    return True


def start(conn: Connection, run_id: UUID, *, actor: str) -> None:
    """Let a run go on that is paused, or was planned to be started later.

    Raises CannotStart or UnknownRun.
    """
    run = lock(conn, run_id)
    if run.state != RunState.PAUSED:
        raise CannotStart(
            f"run {run_id} is in state {run.state}; only one that is paused can be started"
        )
    move(conn, run_id, RunState.RUNNING, actor=actor, started_at=func.now(), opens_at=None)


def fail(
    conn: Connection,
    run_id: UUID,
    error: Mapping[str, Any],
    *,
    actor: str,
    **values: Any,  # noqa: ANN401
) -> bool:
    """Fail a run that could not be planned; return False if it is past that."""
    if lock(conn, run_id).state != RunState.REQUESTED:
        return False
    return move(
        conn,
        run_id,
        RunState.FAILED,
        actor=actor,
        reason=error.get("message"),
        details=error,
        error=dict(error),
        **values,
    )


def has_open_steps(conn: Connection, run_id: UUID) -> bool:
    """Return whether a step of a run has not ended."""
    mine = steps.c.run_id == run_id
    return bool(conn.scalar(select(exists().where(mine, text(is_open("steps.state"))))))


def close_if_done(conn: Connection, run_id: UUID, *, actor: str) -> RunState | None:
    """Close a run of which no step is left to run; return its final state, or None."""
    mine = steps.c.run_id == run_id
    if has_open_steps(conn, run_id):
        return None
    by_state = select(steps.c.state, func.count()).where(mine).group_by(steps.c.state)
    counts = {str(state): int(count) for state, count in conn.execute(by_state)}
    # While a run is open, it has an error only if its deadline has passed.
    query = select(runs.c.cancel_reason, runs.c.error).where(runs.c.id == run_id)
    cancelled, late = conn.execute(query).one()
    target = final_state(
        {StepState(state): count for state, count in counts.items()},
        cancelled=cancelled is not None,
        late=late is not None,
    )
    error = _error(conn, run_id, target, cancelled, late)
    said = error["message"] if error else None
    values = {"error": error or null()}
    if not move(conn, run_id, target, actor=actor, reason=said, details=counts, **values):
        return None
    return target


def _error(
    conn: Connection,
    run_id: UUID,
    target: RunState,
    cancelled: str | None,
    late: dict[str, Any] | None,
) -> dict[str, Any] | None:
    if target == RunState.FAILED and late:
        return late
    if target == RunState.FAILED:
        first = reasons.first_errors(conn, run_id)
        return summarize(progress.by_asset(conn, run_id), first)
    if target == RunState.CANCELLED and cancelled:
        return {"type": "cancelled", "message": cancelled}
    return None


def final_state(
    counts: Mapping[StepState, int], *, cancelled: bool = False, late: bool = False
) -> RunState:
    """Return how a run ends whose steps have ended so; `cancelled` if that was asked for.

    It is `late` if it was, because of its deadline. A run whose every step was done in spite
    of that has succeeded.
    """
    undone = any(count and state not in DONE_STEP_STATES for state, count in counts.items())
    if late and undone:
        return RunState.FAILED
    if cancelled and undone:
        return RunState.CANCELLED
    if counts.get(StepState.FAILED) or counts.get(StepState.UPSTREAM_FAILED):
        return RunState.FAILED
    return RunState.CANCELLED if counts.get(StepState.CANCELLED) else RunState.SUCCEEDED


def mark_running(conn: Connection, run_id: UUID, *, actor: str) -> None:
    """Note that steps of a run are dispatched that is planned, or has waited."""
    started = func.coalesce(runs.c.started_at, func.now())
    move(conn, run_id, RunState.RUNNING, actor=actor, started_at=started)
