"""Plans: all steps and edges of a run, written in bulk by COPY."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, bindparam, text

from flowstone.freshness import Fingerprint
from flowstone.limits import Policy
from flowstone.plan import Made, Node, Plan
from flowstone.remaining import StoredStep
from flowstone.states import RunState, StepState
from flowstone.store import runs, versions
from flowstone.store.steps import timeout_of
from flowstone.store.tables import SCHEMA

_RESERVE = text(
    f"""
    SELECT nextval(pg_get_serial_sequence('{SCHEMA}.steps', 'id'))
    FROM generate_series(1, :count)
    """
)

_LATEST = text(
    f"""
    SELECT l.asset, l.partition, o.step_id, o.sha256, o.fingerprint, o.stale_reason
    FROM unnest(CAST(:assets AS text[]), CAST(:partitions AS text[])) AS n(asset, partition)
    JOIN {SCHEMA}.latest l ON l.asset = n.asset AND l.partition = n.partition
    JOIN {SCHEMA}.outputs o ON o.id = l.output_id
    """
).bindparams(bindparam("assets"), bindparam("partitions"))


# Ids grow along the edges of a plan, so this is an order in which each step follows its inputs.
_READ = text(
    f"""
    SELECT s.id, s.asset, s.partition, s.queue, s.state, s.reason,
        s.takes, s.soft_timeout, s.hard_timeout, s.max_lost,
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


def latest(conn: Connection, nodes: Sequence[Node]) -> dict[Node, Made]:
    """Return the latest output of each node that has one."""
    columns = {"assets": [n[0] for n in nodes], "partitions": [n[1] for n in nodes]}
    return {
        (asset, partition): Made(step_id, sha256, of and Fingerprint.parse(of), stale)
        for asset, partition, step_id, sha256, of, stale in conn.execute(_LATEST, columns)
    }


def write(conn: Connection, run_id: UUID, plan: Plan, *, actor: str) -> bool:
    """Store the plan of a requested run; return False if it has been planned already.

    Raises UnknownVersion where the value of something that it reads has just been given up.
    """
    reused = [step.reuses for step in plan.steps if step.reuses is not None]
    versions.hold(conn, [*plan.pinned.values(), *reused])
    skipped = sum(step.skipped for step in plan.steps)
    details = {"steps": len(plan.steps), "skipped": skipped}
    if not runs.move(
        conn,
        run_id,
        RunState.PLANNED,
        actor=actor,
        details=details,
        planned_at=text("now()"),
        planned_config=dict(plan.configs),
    ):
        return False
    # Ids grow along the plan, and so along every edge: transactions that lock steps in the
    # order of their ids cannot deadlock.
    ids = sorted(conn.scalars(_RESERVE, {"count": len(plan.steps)}))
    id_of = {(s.asset, s.partition): i for s, i in zip(plan.steps, ids, strict=True)}
    feeds = _feeds(plan, id_of)
    waits_for = {step.node for step in plan.steps if not step.skipped}
    _copy(
        conn,
        "steps (id, run_id, asset, partition, reason, queue, open_deps, feeds, state, reuses,"
        " finished_at, takes, soft_timeout, hard_timeout, max_lost)",
        (
            (
                id_of[s.asset, s.partition],
                run_id,
                s.asset,
                s.partition,
                s.reason,
                s.queue,
                sum(up in waits_for for up in s.upstream),
                feeds.get((s.asset, s.partition)),
                StepState.SKIPPED if s.skipped else StepState.PENDING,
                s.reuses,
                "now" if s.skipped else None,  # the time of the transaction
                json.dumps(s.policy.takes) if s.policy.takes else None,
                s.policy.timeout and s.policy.timeout.soft,
                s.policy.timeout and s.policy.timeout.hard,
                s.policy.max_lost,
            )
            for s in plan.steps
        ),
    )
    _copy(
        conn,
        "edges (downstream, upstream, position, pinned, optional)",
        (
            (
                id_of[s.asset, s.partition],
                id_of.get(up) or plan.pinned[up],
                place,
                up not in id_of,
                up in s.optional,
            )
            for s in plan.steps
            for place, up in enumerate(s.upstream)
        ),
    )
    return True


def read(conn: Connection, run_id: UUID) -> list[StoredStep]:
    """Return the plan of a run as it was stored, each step after what it reads."""
    return [_stored(row) for row in conn.execute(_READ, {"run_id": run_id})]


def _stored(row: Row[*tuple[Any, ...]]) -> StoredStep:
    # Without any edge, the outer join gives one row of nulls.
    edges = [
        ((asset, key), id, optional)
        for asset, key, id, optional in zip(
            row.assets, row.partitions, row.ids, row.optional, strict=True
        )
        if id is not None
    ]
    return StoredStep(
        id=row.id,
        asset=row.asset,
        partition=row.partition,
        queue=row.queue,
        state=StepState(row.state),
        reads=tuple((node, id) for node, id, _ in edges),
        reason=row.reason,
        optional=frozenset(node for node, _, optional in edges if optional),
        policy=Policy(
            row.takes or {},
            timeout_of(row.soft_timeout, row.hard_timeout),
            row.max_lost,
        ),
    )


def _feeds(plan: Plan, id_of: dict[Node, int]) -> dict[Node, int | None]:
    """Return the step that reads each node, if that is just one, or None."""
    feeds: dict[Node, int | None] = {}
    for step in plan.steps:
        id = id_of[step.asset, step.partition]
        for up in step.upstream:
            feeds[up] = None if up in feeds else id
    return feeds


def _copy(conn: Connection, target: str, rows: Iterable[tuple[object, ...]]) -> None:
    driver = conn.connection.driver_connection
    assert driver is not None
    with driver.cursor() as cursor, cursor.copy(f"COPY {SCHEMA}.{target} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)
