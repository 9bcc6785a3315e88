"""Attempts that cannot end by themselves: their process has died, or their worker stops.

Their steps are ready again in the same transaction, unless a process has died too often.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Row, TextClause, text

from flowstone.partition_key import step_name
from flowstone.poison import Death, poisoned
from flowstone.states import StepState, in_state
from flowstone.store import audit, dispatch, failing, found, steps
from flowstone.store.failing import Reason
from flowstone.store.found import LOCKED, Found
from flowstone.store.steps import Claim
from flowstone.store.tables import SCHEMA

LOST: Final = "lost"
HANDED_BACK: Final = "handed_back"

SILENT: Final = "its lease ended without a word from it"
"""What the reconciler knows of the end of a process."""

# Only the attempt of that worker: the same message may have been delivered to another one, too.
_MINE = text(
    f"""
    SELECT s.id, s.canvas FROM unnest(CAST(:ids AS bigint[]), CAST(:canvases AS uuid[]))
        AS m(id, canvas)
    JOIN {SCHEMA}.steps s ON s.id = m.id AND s.canvas = m.canvas
    JOIN {SCHEMA}.attempts a ON a.step_id = s.id AND a.number = s.attempt
    WHERE {in_state("s.state", StepState.RUNNING)} AND a.token = s.token AND a.worker = :worker
    ORDER BY s.id FOR NO KEY UPDATE OF s
    """
)

# The step of a message that its attempt has ended well, and the one that it hands on to.
_DONE = text(
    f"""
    SELECT s.id, s.run_id, s.canvas, s.feeds, s.takes FROM {SCHEMA}.steps s
    JOIN {SCHEMA}.attempts a ON a.step_id = s.id AND a.number = s.attempt
    WHERE s.id = :step_id AND s.canvas = :canvas AND a.worker = :worker
      AND {in_state("s.state", StepState.SUCCEEDED, StepState.SKIPPED)}
    """
)

_EXPIRED = f"""
    SELECT id, run_id, asset, partition, canvas FROM {SCHEMA}.steps
    WHERE state = 'running' AND lease_until < now()
    ORDER BY id LIMIT :batch
"""


def _ending(outcome: str, count: str) -> TextClause:
    """Return the UPDATE that ends the attempts of running steps, which are locked."""
    return text(
        f"""
        WITH freed AS (
            UPDATE {SCHEMA}.steps
            SET state = 'pending', token = NULL, lease_until = NULL, canvas = NULL,
                queued_at = NULL{count}
            WHERE id = ANY(CAST(:ids AS bigint[])) AND {in_state("state", StepState.RUNNING)}
            RETURNING id, run_id, asset, partition, attempt, lost, max_lost, takes
        ), ended AS (
            UPDATE {SCHEMA}.attempts a
            SET outcome = '{outcome}', finished_at = now(), error_type = '{outcome}',
                error_message = :said
            FROM freed WHERE a.step_id = freed.id AND a.number = freed.attempt
            RETURNING a.step_id, a.worker, a.started_at
        ), told AS (
            SELECT freed.*, ended.worker, ended.started_at
            FROM freed LEFT JOIN ended ON ended.step_id = freed.id
        ), recorded AS (
            {
            audit.recorded(
                "told",
                f"step.{outcome}",
                before="'running'",
                after="'pending'",
                reason="CAST(:said AS text)",
                details="'attempt', attempt, 'worker', worker, 'began', started_at",
            )
        }
        )
        SELECT id, run_id, asset, partition, takes, lost >= max_lost AS is_poisoned
        FROM told ORDER BY id
        """
    )


_LOSE = _ending(LOST, ", lost = lost + 1")
_HAND_BACK = _ending(HANDED_BACK, "")

_DEATHS = text(
    f"""
    SELECT number, worker, started_at, error_message,
        EXTRACT(epoch FROM finished_at - started_at) AS seconds
    FROM {SCHEMA}.attempts WHERE step_id = :step_id AND outcome = '{LOST}' ORDER BY number
    """
)


@dataclass(frozen=True)
class Message:
    """What the message of a step names: the step, and the canvas that carries it."""

    step_id: int
    canvas: UUID


@dataclass(frozen=True)
class Freed:
    """A step that was taken from its attempt, or one that is done and handed nothing on."""

    step_id: int
    run_id: UUID
    takes: frozenset[str] = frozenset()
    """The keys of the slots that it has left."""


def find_expired(conn: Connection, batch: int) -> list[Found]:
    """Return the steps whose process has been silent for longer than its lease."""
    return found.steps(conn, _EXPIRED, batch=batch)


def expired(conn: Connection, batch: int, *, actor: str) -> list[Freed]:
    """Free the steps whose process has been silent for longer than its lease."""
    silent = conn.execute(text(_EXPIRED + LOCKED), {"batch": batch}).all()
    return _lose(conn, silent, SILENT, actor)


def lose(conn: Connection, message: Message, *, worker: str, end: str) -> list[Freed]:
    """Free the step of a message if `worker` still runs it, whose process has died.

    `end` says what is known of that. A step that has lost `max_lost` attempts fails: what
    kills its process each time must not go round for ever. That may happen before the step is
    claimed, while its definitions are loaded; then it was claimed on behalf of the dead. Or
    after it is done: then what should have followed in its canvas is free.
    """
    mine = _mine(conn, [message], worker)
    if not mine:
        claim = steps.claim(
            conn,
            message.step_id,
            message.canvas,
            worker=worker,
            lease=0,
            # Its rate bounds what starts, and this has not.
            in_turn=True,
        )
        if not isinstance(claim, Claim):
            return _hand_on(conn, message, worker)
        mine = _mine(conn, [message], worker)
        end += ", before it began"
    return _lose(conn, mine, end, worker)


def _hand_on(conn: Connection, message: Message, worker: str) -> list[Freed]:
    """Free what was to follow a step that is done: its message may never have been sent.

    The others of the canvas that could start have messages of their own.
    """
    values = {"step_id": message.step_id, "canvas": message.canvas, "worker": worker}
    done = conn.execute(_DONE, values).all()
    for row in done:
        dispatch.release(conn, [row.canvas], follows=row.feeds)
    return [Freed(row.id, row.run_id, frozenset(row.takes or ())) for row in done]


def hand_back(
    conn: Connection, messages: Iterable[Message], *, worker: str, reason: str
) -> list[Freed]:
    """Free the steps of messages that `worker` still runs; neither a loss nor a failure."""
    return _free(conn, _HAND_BACK, _mine(conn, list(messages), worker), reason, worker)[0]


def _mine(conn: Connection, messages: Sequence[Message], worker: str) -> Sequence[Row[Any]]:
    values = {
        "ids": [message.step_id for message in messages],
        "canvases": [message.canvas for message in messages],
        "worker": worker,
    }
    return conn.execute(_MINE, values).all()


def _lose(conn: Connection, rows: Sequence[Row[Any]], end: str, actor: str) -> list[Freed]:
    freed, poisoned_rows = _free(conn, _LOSE, rows, end, actor)
    for row in poisoned_rows:
        name = step_name(row.asset, row.partition)
        reason = Reason("poison", poisoned(name, _deaths(conn, row.id)))
        failing.fail_pending(conn, row.id, name, row.run_id, reason, actor=actor)
    return freed


def _free(
    conn: Connection, ending: TextClause, rows: Sequence[Row[Any]], said: str, actor: str
) -> tuple[list[Freed], list[Row[Any]]]:
    """Return the steps that are ready again, and the rows of those that have died too often."""
    if not rows:
        return [], []
    values = {"ids": [row.id for row in rows], "said": said, "actor": actor}
    freed = conn.execute(ending, values).all()
    dispatch.release(conn, {row.canvas for row in rows})
    return (
        [Freed(row.id, row.run_id, frozenset(row.takes or ())) for row in freed],
        [row for row in freed if row.is_poisoned],
    )


def _deaths(conn: Connection, step_id: int) -> list[Death]:
    return [
        Death(
            row.number,
            row.worker,
            row.started_at,
            float(row.seconds),
            # Those of an older version tell no more.
            row.error_message or SILENT,
        )
        for row in conn.execute(_DEATHS, {"step_id": step_id})
    ]
