"""Plans: all steps and edges of a run, written in bulk by COPY while they are made."""

from __future__ import annotations

import itertools
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, bindparam, text

from flowstone.freshness import Fingerprint
from flowstone.limits import Policy
from flowstone.outline import Node, Outline
from flowstone.plan import Draft, Made, PlannedStep
from flowstone.reach import BATCH
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
    SELECT l.asset, l.partition, o.step_id, o.sha256, o.fingerprint, o.stale_reason, o.cut
    FROM unnest(CAST(:assets AS text[]), CAST(:partitions AS text[])) AS n(asset, partition)
    JOIN {SCHEMA}.latest l ON l.asset = n.asset AND l.partition = n.partition
    JOIN {SCHEMA}.outputs o ON o.id = l.output_id
    """
).bindparams(bindparam("assets"), bindparam("partitions"))


# Ids grow along the edges of a plan, so this is an order in which each step follows its inputs.
_READ = text(
    f"""
    SELECT s.id, s.asset, s.partition, s.queue, s.state, s.reason,
        s.takes, s.soft_timeout, s.hard_timeout, s.max_lost, s.place, s.reuses, s.awaits_until,
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
        (asset, partition): Made(step_id, sha256, of and Fingerprint.parse(of), stale, cut)
        for asset, partition, step_id, sha256, of, stale, cut in conn.execute(_LATEST, columns)
    }


def write(conn: Connection, run_id: UUID, plan: Draft, *, actor: str) -> bool:
    """Store the plan of a requested run as it is made; return False if there is one already.

    The caller holds the lock on the run, and gives up the transaction if this raises: what the
    steps of the plan raise, or UnknownVersion where the value of something that it reads has
    just been given up.
    """
    # Ids grow along the plan, and so along every edge: transactions that lock steps in the
    # order of their ids cannot deadlock.
    ids = array("q", sorted(conn.scalars(_RESERVE, {"count": len(plan.outline)})))
    writer = _Writer(conn, run_id, plan.outline, ids)
    while batch := list(itertools.islice(plan.steps, BATCH)):
        writer.write(batch)
    return runs.move(
        conn,
        run_id,
        RunState.PLANNED,
        actor=actor,
        details={"steps": len(ids), "skipped": writer.skipped},
        planned_at=text("now()"),
        planned_config=dict(plan.configs),
    )


class _Writer:
    """Writes steps and their edges in pieces, each step after all that it reads."""

    def __init__(self, conn: Connection, run_id: UUID, outline: Outline, ids: array[int]) -> None:
        self._conn = conn
        self._run_id = run_id
        self._outline = outline
        self._ids = ids
        self._is_open = bytearray(len(ids))
        self.skipped = 0

    def write(self, steps: Sequence[PlannedStep]) -> None:
        held = {id for step in steps for id in step.pinned.values()}
        held.update(step.reuses for step in steps if step.reuses is not None)
        versions.hold(self._conn, sorted(held))
        _copy(
            self._conn,
            "steps (id, run_id, asset, partition, reason, queue, open_deps, feeds, state, reuses,"
            " finished_at, takes, soft_timeout, hard_timeout, max_lost, place, awaits_until)",
            map(self._row, steps),
        )
        _copy(
            self._conn,
            "edges (downstream, upstream, position, pinned, optional)",
            (edge for step in steps for edge in self._edges(step)),
        )

    def _row(self, step: PlannedStep) -> tuple[object, ...]:
        own = self._place(step.node)
        self._is_open[own] = not step.skipped
        self.skipped += step.skipped
        feeds = self._outline.feeds(step.node)
        reads = (self._outline.place(up) for up in step.upstream)
        return (
            self._ids[own],
            self._run_id,
            step.asset,
            step.partition,
            step.reason,
            step.queue,
            # What is waited for counts itself, so that it is never ready.
            sum(self._is_open[place] for place in reads if place is not None)
            + (step.awaits_until is not None),
            None if feeds is None else self._ids[feeds],
            StepState.SKIPPED if step.skipped else StepState.PENDING,
            step.reuses,
            "now" if step.skipped else None,  # the time of the transaction
            json.dumps(step.policy.takes) if step.policy.takes else None,
            step.policy.timeout and step.policy.timeout.soft,
            step.policy.timeout and step.policy.timeout.hard,
            step.policy.max_lost,
            step.place,
            step.awaits_until,
        )

    def _edges(self, step: PlannedStep) -> Iterator[tuple[object, ...]]:
        own = self._ids[self._place(step.node)]
        for position, up in enumerate(step.upstream):
            place = self._outline.place(up)
            is_pinned = place is None
            id = step.pinned[up] if place is None else self._ids[place]
            yield own, id, position, is_pinned, up in step.optional

    def _place(self, node: Node) -> int:
        place = self._outline.place(node)
        assert place is not None
        return place


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
        place=row.place,
        reuses=row.reuses,
        awaits_until=row.awaits_until,
    )


def _copy(conn: Connection, target: str, rows: Iterable[tuple[object, ...]]) -> None:
    driver = conn.connection.driver_connection
    assert driver is not None
    with driver.cursor() as cursor, cursor.copy(f"COPY {SCHEMA}.{target} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)
