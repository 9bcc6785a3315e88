"""Single flight: a step that another run is computing already joins it, and shares its output.

For each asset x partition at most one step is active, over all runs; the index
uq_steps_active holds it. A ready step that finds an active one, or one that is ready behind
its gate, its leader, becomes
`joined`, and is settled as soon as the leader is active no longer: it takes the leader's
output if that was made of the same, else its turn.

Nobody waits in a circle: a joined step waits for an active one; an active one waits for a
worker, for a time or a person, or for members of its own canvas, which are active, too, and
come before it. It never waits for one that is joined, as a canvas waits for nothing outside.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from flowstone.freshness import Input
from flowstone.plan import Node
from flowstone.states import (
    DONE_STEP_STATES,
    FINAL_RUN_STATES,
    FINAL_STEP_STATES,
    RunState,
    StepState,
    in_state,
    sql_list,
)
from flowstone.store import audit, found, steps
from flowstone.store.dispatch import Follower
from flowstone.store.found import Found
from flowstone.store.tables import SCHEMA
from flowstone.store.tracing import trace
from flowstone.store.waiting import leads

BATCH = 500
"""The most leaders whose followers the reconciler settles in one pass."""

# The lock keeps the leaders active until the joining is committed. Whoever ends one waits for
# that, asks then for followers, and so sees them; one that ends before is not joined.
_LOCK_LEADERS = text(
    f"""
    SELECT id FROM {SCHEMA}.steps
    WHERE id = ANY(CAST(:ids AS bigint[])) AND {leads("steps")}
    ORDER BY id FOR SHARE
    """
)

_JOIN = text(
    f"""
    WITH joined AS (
        UPDATE {SCHEMA}.steps s
        SET state = 'joined', joined_to = n.leader, fingerprint = n.fingerprint
        FROM unnest(CAST(:ids AS bigint[]), CAST(:leaders AS bigint[]),
            CAST(:fingerprints AS text[])) AS n(id, leader, fingerprint)
        WHERE s.id = n.id AND {in_state("s.state", StepState.PENDING)} AND s.open_deps = 0
        RETURNING s.id, s.run_id, s.asset, s.partition, s.joined_to
    )
    {
        audit.recorded(
            "joined",
            "step.joined",
            before="'pending'",
            after="'joined'",
            details="'joined_to', joined_to",
        )
    }
    """
)

_INPUTS = text(
    f"""
    SELECT e.downstream, s.asset, s.partition, o.sha256
    FROM {SCHEMA}.edges e
    JOIN {SCHEMA}.steps s ON s.id = e.upstream
    LEFT JOIN {SCHEMA}.outputs o ON o.step_id = coalesce(s.reuses, s.id)
    WHERE e.downstream = ANY(CAST(:ids AS bigint[]))
    ORDER BY e.downstream, e.position
    """
)

# All that settling changes is locked beforehand in the order of the ids, as everywhere.
_LOCK = text(
    f"""
    WITH followers AS (
        SELECT id FROM {SCHEMA}.steps
        WHERE state = 'joined' AND joined_to = ANY(CAST(:leaders AS bigint[]))
    ), touched AS (
        SELECT id FROM followers
        UNION
        SELECT e.downstream FROM {SCHEMA}.edges e
        JOIN followers f ON f.id = e.upstream WHERE NOT e.pinned
    )
    SELECT s.id FROM {SCHEMA}.steps s JOIN touched ON touched.id = s.id
    ORDER BY s.id FOR NO KEY UPDATE OF s
    """
)

# A leader may itself stand for the output of another step. A forced run takes nothing that was
# there before it was asked for, such as the output that a leader has found fresh.
_SERVE = text(
    f"""
    WITH served AS (
        UPDATE {SCHEMA}.steps f
        SET state = 'succeeded', finished_at = now(), reuses = o.step_id
        FROM {SCHEMA}.steps l
        JOIN {SCHEMA}.outputs o ON o.step_id = coalesce(l.reuses, l.id), {SCHEMA}.runs r
        WHERE f.state = 'joined' AND f.joined_to = ANY(CAST(:leaders AS bigint[]))
          AND l.id = f.joined_to AND {in_state("l.state", *DONE_STEP_STATES)}
          AND o.fingerprint = f.fingerprint AND o.stale_at IS NULL
          AND r.id = f.run_id
          AND (r.request->'force' IS DISTINCT FROM 'true' OR o.created_at > r.created_at)
        RETURNING f.id, f.run_id, f.asset, f.partition, f.reuses, r.driver
    ), traced AS (
        {trace("served")}
    ), recorded AS (
        {
        audit.recorded(
            "served",
            "step.succeeded",
            before="'joined'",
            after="'succeeded'",
            details="'reuses', reuses",
        )
    }
    )
    SELECT id, run_id, driver FROM served
    """
)

_LET_GO = text(
    f"""
    WITH freed AS (
        UPDATE {SCHEMA}.steps f
        SET state = 'pending', joined_to = NULL, fingerprint = NULL
        FROM {SCHEMA}.steps l, {SCHEMA}.runs r
        WHERE f.state = 'joined' AND f.joined_to = ANY(CAST(:leaders AS bigint[]))
          AND l.id = f.joined_to AND NOT {leads("l")}
          AND r.id = f.run_id
        RETURNING f.id, f.run_id, f.asset, f.partition, r.driver, l.id AS leader
    ), recorded AS (
        {
        audit.recorded(
            "freed",
            "step.left",
            before="'joined'",
            after="'pending'",
            details="'joined_to', leader",
        )
    }
    )
    SELECT id, run_id, driver FROM freed
    """
)


def _leaders_that_ended(condition: str) -> str:
    return f"""
    SELECT DISTINCT l.id FROM {SCHEMA}.steps f JOIN {SCHEMA}.steps l ON l.id = f.joined_to
    WHERE f.state = 'joined' AND NOT {leads("l")} {condition}
    ORDER BY l.id LIMIT :batch
    """


_ENDED = text(_leaders_that_ended(""))
_LEFT = f"""
    SELECT f.id, f.run_id, f.asset, f.partition
    FROM {SCHEMA}.steps f JOIN {SCHEMA}.steps l ON l.id = f.joined_to
    WHERE f.state = 'joined' AND NOT {leads("l")}
    ORDER BY f.id LIMIT :batch
"""
# As text, so that the leaders are found by their ids, and not by all steps of the run.
_ENDED_IN_RUN = text(_leaders_that_ended("AND l.run_id::text = CAST(:run_id AS text)"))

_FOLLOWERS = text(
    f"""
    SELECT DISTINCT f.run_id FROM {SCHEMA}.steps f JOIN {SCHEMA}.runs r ON r.id = f.run_id
    WHERE f.state = 'joined' AND f.joined_to = :step_id AND r.driver = 'celery'
    """
)

_OPEN_ELSEWHERE = text(
    f"""
    SELECT s.asset, s.partition, s.run_id
    FROM unnest(CAST(:assets AS text[]), CAST(:partitions AS text[])) AS n(asset, partition)
    JOIN {SCHEMA}.steps s ON s.asset = n.asset AND s.partition = n.partition
    JOIN {SCHEMA}.runs r ON r.id = s.run_id
    WHERE s.run_id <> :run_id AND s.state NOT IN ({sql_list(FINAL_STEP_STATES)})
      AND s.awaits_until IS NULL
      AND r.state NOT IN ({sql_list(FINAL_RUN_STATES | {RunState.PAUSED})})
    ORDER BY s.id LIMIT 1
    """
)


@dataclass(frozen=True)
class OpenElsewhere:
    """An asset x partition that another run is to compute."""

    node: Node
    run_id: UUID


@dataclass(frozen=True)
class Settled:
    """A step that was joined, and now has succeeded or is pending."""

    step_id: int
    run_id: UUID
    has_coordinator: bool
    """Whether a coordinator must be woken; whoever drives an inline run looks by itself."""


def inputs(conn: Connection, step_ids: Iterable[int]) -> Mapping[int, list[Input]]:
    """Return what each of these steps reads, all of which has ended, in the order of the plan."""
    read: dict[int, list[Input]] = defaultdict(list)
    for row in conn.execute(_INPUTS, {"ids": list(step_ids)}):
        read[row.downstream].append((row.asset, row.partition, row.sha256))
    return read


def join(conn: Connection, followers: Mapping[Follower, str | None], *, actor: str) -> None:
    """Have ready steps wait for their leaders, except for those whose leader has just ended.

    The values are the fingerprints that an output must have to serve; None takes none.
    """
    ids = [follower.leader for follower in followers]
    active = set(conn.scalars(_LOCK_LEADERS, {"ids": ids}))
    joining = [follower for follower in followers if follower.leader in active]
    conn.execute(
        _JOIN,
        {
            "ids": [follower.step_id for follower in joining],
            "leaders": [follower.leader for follower in joining],
            "fingerprints": [followers[follower] for follower in joining],
            "actor": actor,
        },
    )


def settle(conn: Connection, leaders: Sequence[int], *, actor: str) -> list[Settled]:
    """Settle all that is joined to those of these steps that are no longer active.

    Those for whom the output serves have succeeded by it, with a lineage of their own;
    the others are pending, and take their turn.
    """
    if not conn.execute(_LOCK, {"leaders": list(leaders)}).all():
        return []
    values = {"leaders": list(leaders), "actor": actor}
    served = conn.execute(_SERVE, values).all()
    steps.lower_readers(conn, [row.id for row in served])
    freed = conn.execute(_LET_GO, values).all()
    return [Settled(row.id, row.run_id, row.driver == "celery") for row in (*served, *freed)]


def leave(conn: Connection, run_id: UUID, actor: str) -> frozenset[UUID]:
    """Settle what is joined to steps of a run that have ended; return the runs to wake."""
    ended = conn.scalars(_ENDED_IN_RUN, {"run_id": run_id, "batch": BATCH}).all()
    return to_wake(settle(conn, ended, actor=actor)) if ended else frozenset()


def followers(conn: Connection, step_id: int) -> frozenset[UUID]:
    """Return the runs that have a coordinator, and a step that is joined to this one."""
    return frozenset(conn.scalars(_FOLLOWERS, {"step_id": step_id}))


def find_left(conn: Connection) -> list[Found]:
    """Return the steps that are still joined to one that is no longer active."""
    return found.steps(conn, _LEFT, batch=BATCH)


def left(conn: Connection, *, actor: str) -> list[Settled]:
    """Settle whatever is still joined to a step that is no longer active."""
    ended = conn.scalars(_ENDED, {"batch": BATCH}).all()
    return settle(conn, ended, actor=actor) if ended else []


def to_wake(settled: Iterable[Settled]) -> frozenset[UUID]:
    """Return the runs whose coordinator has something to do now."""
    return frozenset(step.run_id for step in settled if step.has_coordinator)


def open_elsewhere(conn: Connection, run_id: UUID, nodes: Sequence[Node]) -> OpenElsewhere | None:
    """Return the first of the nodes that another run has still to compute, if there is one.

    Runs that are paused do not count.
    """
    values = {
        "run_id": run_id,
        "assets": [asset for asset, _ in nodes],
        "partitions": [partition for _, partition in nodes],
    }
    row = conn.execute(_OPEN_ELSEWHERE, values).one_or_none()
    return OpenElsewhere((row.asset, row.partition), row.run_id) if row else None
