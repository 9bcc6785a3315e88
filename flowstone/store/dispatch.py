"""Dispatch: what is ready, and what has been handed to Celery in which canvas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid4

from sqlalchemy import Connection, text

from flowstone.expand import MAX_CHAIN, Canvas, Node, members
from flowstone.priority import LEVELS
from flowstone.states import (
    ACTIVE_STEP_STATES,
    WAITING_STEP_STATES,
    StepState,
    in_state,
    is_open,
    sql_list,
)
from flowstone.store.prepared import Prepared
from flowstone.store.tables import SCHEMA
from flowstone.store.waiting import WANTED, may_start

LOW_PART: Final = 4
"""The coordinator refills the window when less than this part of it could start."""


def wants_slots(run_id: str) -> str:
    """Return the condition that ready steps of a run wait for slots; `run_id` is SQL."""
    return f"""EXISTS (
        SELECT FROM {SCHEMA}.steps
        WHERE run_id = {run_id} AND {WANTED}
    )"""


# Steps that are ready, but not dispatched, need the coordinator as soon as the broker runs low:
# the part of the window that is queued and could start. And a run without an open step needs it
# to be closed, and one that waits for people, and of which nothing is in flight, to say so. All
# counts are bounded by the window. A backfill looks after each failure how many there are. The
# first question asks for an order, which only the index of what is ready has: with statistics of
# a moment in which much was ready, PostgreSQL would look through all that is open.
_DUE = Prepared(
    f"""
    SELECT r.backfill IS NOT NULL AND EXISTS (
            SELECT FROM {SCHEMA}.steps
            WHERE id = :step_id AND {in_state("state", StepState.FAILED)}
        ) OR CASE
        WHEN (
            SELECT id FROM {SCHEMA}.steps
            WHERE run_id = r.id AND takes IS NULL AND state = 'pending' AND open_deps = 0
            ORDER BY place, id LIMIT 1
        ) IS NOT NULL THEN (
            SELECT count(*) FROM {SCHEMA}.steps
            WHERE run_id = r.id AND state = 'queued' AND open_deps = 0 AND canvas IS NOT NULL
        ) < greatest(1, r.max_in_flight / {LOW_PART})
        WHEN EXISTS (
            SELECT FROM {SCHEMA}.steps
            WHERE run_id = r.id AND state IN ({sql_list(WAITING_STEP_STATES)})
        ) THEN NOT EXISTS (
            SELECT FROM {SCHEMA}.steps
            WHERE run_id = r.id AND state IN ('queued', 'running', 'retrying')
              AND canvas IS NOT NULL
        )
        ELSE NOT EXISTS (
            SELECT FROM {SCHEMA}.steps
            WHERE run_id = r.id AND {is_open("state")}
        )
    END AS coordinator, EXISTS (
        SELECT FROM {SCHEMA}.steps WHERE joined_to = :step_id AND state = 'joined'
    ) AS followers, {wants_slots("r.id")} AS wants_slots
    FROM {SCHEMA}.runs r WHERE r.id = :run_id
    """
)

# From the ready steps along `feeds`, as far as a chain can reach: what expansion needs to see,
# and no more of the run than that (OFFSET 0 keeps PostgreSQL from turning the two sides of the
# join around). Each comes with the active step of the same asset x partition, which belongs to
# another run, or the one that is ready behind its gate, if there is one; and with the room that is
# left in the window. A step that is parked until its retry is due has no canvas, and takes no place
# there.
_AHEAD = Prepared(
    f"""
    WITH RECURSIVE window_left AS (
        SELECT greatest(0, r.max_in_flight - f.members) AS room, f.startable,
            {wants_slots("r.id")} AS wants_slots
        FROM {SCHEMA}.runs r CROSS JOIN LATERAL (
            SELECT count(*) AS members, count(*) FILTER (WHERE open_deps = 0) AS startable
            FROM {SCHEMA}.steps
            WHERE run_id = r.id AND state IN ('queued', 'running', 'retrying')
              AND canvas IS NOT NULL) f
        WHERE r.id = :run_id
    ), ready AS (
        (SELECT id, asset, partition, feeds, open_deps, place, false AS limited FROM {SCHEMA}.steps
        WHERE run_id = :run_id AND takes IS NULL AND state = 'pending' AND open_deps = 0
        ORDER BY place, id LIMIT (SELECT room FROM window_left))
        UNION ALL
        SELECT id, asset, partition, feeds, open_deps, place, true FROM {SCHEMA}.steps
        WHERE id = ANY(CAST(:admitted AS bigint[]))
          AND {in_state("state", StepState.PENDING)} AND open_deps = 0
    ), ahead AS (
        SELECT id, asset, partition, feeds, open_deps, place, limited, 0 AS depth FROM ready
        UNION
        SELECT s.id, s.asset, s.partition, s.feeds, s.open_deps, s.place, s.takes IS NOT NULL,
            a.depth + 1
        FROM ahead a CROSS JOIN LATERAL (
            SELECT * FROM {SCHEMA}.steps
            WHERE id = a.feeds AND {in_state("state", StepState.PENDING)} OFFSET 0) s
        WHERE a.depth < :reach
    ), once AS (
        SELECT DISTINCT id, asset, partition, feeds, open_deps, place, limited FROM ahead
    )
    SELECT a.id, a.asset, a.partition, a.feeds, a.open_deps, a.limited,
        coalesce(o.id, g.id) AS leader, coalesce(o.run_id, g.run_id) AS leading_run,
        w.room, w.startable, w.wants_slots
    FROM window_left w LEFT JOIN once a ON true
    LEFT JOIN {SCHEMA}.steps o ON o.asset = a.asset AND o.partition = a.partition
        AND o.state IN ({sql_list(ACTIVE_STEP_STATES)})
    LEFT JOIN LATERAL (
        SELECT id, run_id FROM {SCHEMA}.steps
        WHERE asset = a.asset AND partition = a.partition AND run_id <> :run_id
          AND state = 'pending' AND gate IS NOT NULL AND {may_start("run_id")}
        ORDER BY id LIMIT 1) g ON o.id IS NULL
    ORDER BY a.place, a.id
    """
)

# Both lock the steps in the order of their ids, as commits do, so that they cannot deadlock.
#
# Two runs that dispatch the same assets at once meet in the index of single flight: the second
# waits for the first, and is then refused. So that they do not wait for each other, they come to
# its entries in one order. A join by index keeps that order (see Ledger).
#
# Marking does not wait for the disk: where a crash of the database undoes it, the steps are
# ready again, and the messages that have gone out name canvases that no step is in.
_MARK = Prepared(
    f"""
    WITH locked AS (
        SELECT s.id, s.asset, s.partition, n.canvas, n.level
        FROM (
            SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:canvases AS uuid[]),
                CAST(:levels AS int[])) AS m(id, canvas, level) ORDER BY id
        ) n CROSS JOIN LATERAL (
            SELECT id, asset, partition FROM {SCHEMA}.steps
            WHERE id = n.id AND {in_state("state", StepState.PENDING)} FOR NO KEY UPDATE) s
    )
    UPDATE {SCHEMA}.steps s
    -- The time of the transaction would be that of a coordinator which then waited for the lock.
    SET state = 'queued', queued_at = clock_timestamp(), canvas = marked.canvas,
        level = marked.level
    FROM (SELECT id, canvas, level FROM locked ORDER BY asset, partition) AS marked
    CROSS JOIN set_config('synchronous_commit', 'off', true)
    WHERE s.id = marked.id
    RETURNING s.id, s.asset, s.partition, s.queue, s.run_id, s.hard_timeout
    """
)

_RELEASE = text(
    f"""
    WITH locked AS (
        SELECT id FROM {SCHEMA}.steps
        WHERE canvas = ANY(CAST(:canvases AS uuid[])) AND state = 'queued'
          AND (open_deps > 0 OR :all OR id = CAST(:follows AS bigint))
        ORDER BY id FOR NO KEY UPDATE
    )
    UPDATE {SCHEMA}.steps s
    SET state = 'pending', canvas = NULL, queued_at = NULL
    FROM locked WHERE s.id = locked.id
    """
)


@dataclass(frozen=True)
class DispatchedStep:
    """What the message of a step is made of."""

    id: int
    run_id: UUID
    asset: str
    partition: str
    queue: str
    canvas: UUID
    level: int = LEVELS - 1
    """The place of its message in the order of all, 0 for what goes first."""
    hard_timeout: float | None = None
    """The seconds after which an attempt is killed; None leaves them to the settings."""


@dataclass(frozen=True)
class Due:
    """What is left to do when a step has ended."""

    coordinator: bool
    """Whether a coordinator has something to do for the run."""
    followers: bool
    """Whether steps of other runs are joined to the step."""
    wants_slots: bool = False
    """Whether ready steps of the run wait for slots, so that there may be some by now."""


def due(conn: Connection, run_id: UUID, step_id: int) -> Due:
    """Return what is to be done for the run of a step, and for those that wait for the step.

    Asked after each commit of a step, and not in it: then the last of several that
    commit at once sees them all, and no run is left without a wake-up. A step that joins
    this one at the same time has either held up the commit, and is seen here, or has seen
    the commit (flights.join).
    """
    row = _DUE.first(conn, {"run_id": run_id, "step_id": step_id})
    return Due(row.coordinator, row.followers, row.wants_slots)


@dataclass(frozen=True)
class Follower:
    """A ready step, and the active one of the same asset x partition in another run."""

    step_id: int
    asset: str
    partition: str
    leader: int
    leading_run: UUID


@dataclass(frozen=True)
class Ready:
    """What of a run could be dispatched now."""

    steps: Sequence[int]
    """Ready steps, in the order of the plan."""
    nodes: Mapping[int, Node]
    """These, with all that a canvas could add to them."""
    followers: Sequence[Follower]
    """Ready steps that another run is computing; they are not among the others."""
    budget: int
    """How many steps the window has room for."""
    ahead: int
    """How many steps are in flight that have started or could."""
    wants_slots: bool
    """Whether ready steps of the run wait for slots."""
    others: frozenset[UUID] = frozenset()
    """Other runs whose turn it is at these slots."""


def ready(conn: Connection, run_id: UUID, admitted: Sequence[int] = ()) -> Ready:
    """Return the ready steps for which the window has room, and what could follow them.

    Of those that take slots only the `admitted` ones, see `slots.admit`.

    A step further ahead that another run is computing is left out, so that no canvas
    holds it; it may be free when it is ready.
    """
    values = {"run_id": run_id, "reach": 2 * MAX_CHAIN, "admitted": list(admitted)}
    found = _AHEAD.all(conn, values)
    rows = [row for row in found if row.id is not None]
    nodes = {
        row.id: Node(row.id, row.feeds, row.open_deps, row.limited)
        for row in rows
        if row.leader is None
    }
    followers = [
        Follower(row.id, row.asset, row.partition, row.leader, row.leading_run)
        for row in rows
        if row.leader is not None and row.open_deps == 0
    ]
    # First those that have slots, which nobody else can take meanwhile.
    able = [node for node in nodes.values() if node.open_deps == 0]
    starts = [node.id for node in sorted(able, key=lambda node: not node.limited)]
    window = found[0] if found else None
    return Ready(
        starts,
        nodes,
        followers,
        window.room if window else 0,
        window.startable if window else 0,
        wants_slots=bool(window and window.wants_slots),
    )


def mark(
    conn: Connection, canvases: Sequence[Canvas], levels: Mapping[int, int] | None = None
) -> dict[int, DispatchedStep]:
    """Move the members of the canvases to queued, and return what their messages need.

    `levels` says of each where its message stands in the order of all; by default they are last.
    The caller holds the lock on the run, so that no other coordinator dispatches them.
    Raises LedgerUnavailable (is_overtaken) where another run dispatches the same asset x
    partition at this moment: a fresh look finds it active.
    """
    canvas_of = {
        step: canvas_id
        for canvas in canvases
        for canvas_id in [uuid4()]
        for step in members(canvas)
    }
    level_of = {step: (levels or {}).get(step, LEVELS - 1) for step in canvas_of}
    marked = _MARK.all(
        conn,
        {
            "ids": list(canvas_of),
            "canvases": list(canvas_of.values()),
            "levels": list(level_of.values()),
        },
    )
    return {
        row.id: DispatchedStep(
            row.id,
            row.run_id,
            row.asset,
            row.partition,
            row.queue,
            canvas_of[row.id],
            level_of[row.id],
            row.hard_timeout,
        )
        for row in marked
    }


def withdraw(
    conn: Connection, canvases: Sequence[Canvas], steps: Mapping[int, DispatchedStep]
) -> int:
    """Make the members of canvases that were not published pending again; return how many."""
    ids = {steps[member].canvas for canvas in canvases for member in members(canvas)}
    return conn.execute(_RELEASE, {"canvases": list(ids), "all": True, "follows": None}).rowcount


def release(conn: Connection, canvases: Iterable[UUID], *, follows: int | None = None) -> int:
    """Take the members that still wait out of canvases that have broken; return how many.

    With them goes the one that `follows` where the canvas broke, even if it could start. They are
    dispatched again when they are ready. A late message of an old canvas claims nothing, as it
    names the wrong canvas.
    """
    return conn.execute(
        _RELEASE, {"canvases": list(canvases), "all": False, "follows": follows}
    ).rowcount
