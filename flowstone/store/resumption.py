"""Resumption: a new run takes over what another one has left undone, under the same plan."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, select, text

from flowstone.errors import CannotResume
from flowstone.plan import EndedStep, remaining
from flowstone.states import RunState, StepState
from flowstone.store import audit, plans, runs
from flowstone.store.runs import Run
from flowstone.store.tables import SCHEMA
from flowstone.store.tables import runs as runs_table

# Ids grow along the edges of a plan, so this is an order in which each step follows its inputs.
_STEPS = text(
    f"""
    SELECT s.id, s.asset, s.partition, s.queue, s.state,
        array_agg(u.asset ORDER BY e.position) AS assets,
        array_agg(u.partition ORDER BY e.position) AS partitions,
        array_agg(u.id ORDER BY e.position) AS ids,
        array_agg(e.optional ORDER BY e.position) AS optional
    FROM {SCHEMA}.steps s
    LEFT JOIN {SCHEMA}.edges e ON e.downstream = s.id
    LEFT JOIN {SCHEMA}.steps u ON u.id = e.upstream
    WHERE s.run_id = :run_id
    GROUP BY s.id ORDER BY s.id
    """
)


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
    )
    steps = [_ended(row) for row in conn.execute(_STEPS, {"run_id": resumes})]
    plan = remaining(steps, _short(resumes))
    if plan.steps:
        plans.write(conn, run_id, plan, actor=actor)
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


def _ended(row: Row[*tuple[Any, ...]]) -> EndedStep:
    # Without any edge, the outer join gives one row of nulls.
    edges = [
        ((asset, key), id, optional)
        for asset, key, id, optional in zip(
            row.assets, row.partitions, row.ids, row.optional, strict=True
        )
        if id is not None
    ]
    return EndedStep(
        id=row.id,
        asset=row.asset,
        partition=row.partition,
        queue=row.queue,
        state=StepState(row.state),
        reads=tuple((node, id) for node, id, _ in edges),
        optional=frozenset(node for node, _, optional in edges if optional),
    )


def _short(run_id: UUID) -> str:
    return str(run_id)[:8]
