"""Resumption: a new run takes over what another one has left undone, under the same plan."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection, select

from flowstone.errors import CannotResume, UnknownVersion
from flowstone.remaining import remaining
from flowstone.states import RunState
from flowstone.store import audit, plans, runs
from flowstone.store.runs import Run
from flowstone.store.tables import runs as runs_table


def create(conn: Connection, run_id: UUID, resumes: UUID, *, actor: str) -> UUID:
    """Record the run `run_id`, planned, that resumes another one; return its id.

    A run that was never planned is requested anew. Raises UnknownRun or CannotResume.
    """
    # The lock lets one at a time resume it; the next one finds what the first has made.
    run = runs.lock(conn, resumes)
    _check(conn, run)
    runs.create(
        conn,
        run_id,
        run.request,
        config=run.config,
        driver="celery",
        max_in_flight=run.max_in_flight,
        actor=actor,
        resumed_from=resumes,
        backfill=run.backfill,
    )
    steps = plans.read(conn, resumes)
    plan = remaining(steps, _short(resumes), run.planned_config)
    if plan.steps:
        try:
            plans.write(conn, run_id, plan.draft(), actor=actor)
        except UnknownVersion as error:
            raise CannotResume(f"run {resumes} cannot be resumed: {error.message}") from error
    audit.record(
        conn,
        actor=actor,
        action="run.resumed",
        run_id=run_id,
        details={"resumed_from": str(resumes), "reused": len(steps) - len(plan.steps)},
    )
    return run_id


def _check(conn: Connection, run: Run) -> None:
    if run.state == RunState.SUCCEEDED:
        raise CannotResume(f"run {run.id} has succeeded; there is nothing left of it to run")
    if not run.is_final:
        raise CannotResume(
            f"run {run.id} is still {run.state}; wait for its end, or cancel it, to resume it"
        )
    if run.pruned_at is not None:
        raise CannotResume(f"steps of run {run.id} have been pruned; submit its request anew")
    query = select(runs_table.c.id, runs_table.c.state).where(runs_table.c.resumed_from == run.id)
    if (by := conn.execute(query).one_or_none()) is not None:
        remedy = (
            f"; resume {_short(by.id)} instead"
            if by.state in (RunState.FAILED, RunState.CANCELLED)
            else ""
        )
        raise CannotResume(
            f"run {run.id} has been resumed already by run {by.id}, which is {by.state}{remedy}"
        )


def _short(run_id: UUID) -> str:
    return str(run_id)[:8]
