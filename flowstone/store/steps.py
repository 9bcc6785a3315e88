"""Steps: claim, commit, fail, retry. Each is fenced: a stale token writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, select, text, update

from flowstone.gate import Gate
from flowstone.limits import RATE, Timeout, is_rate
from flowstone.outcome import Failure, StoredOutput, Succeeded
from flowstone.partition_key import step_name
from flowstone.plan import Node
from flowstone.states import DECIDED_GATE_STATES, StepState, in_state, sql_list
from flowstone.store import audit, dispatch
from flowstone.store.checks import CHECKED, as_json
from flowstone.store.prepared import Prepared
from flowstone.store.tables import SCHEMA, attempts, steps
from flowstone.store.tracing import trace
from flowstone.summary import one_line

_S = StepState


@dataclass(frozen=True)
class Earlier:
    """The latest output of an asset x partition: the step that made it, and of what."""

    step_id: int
    fingerprint: str | None


@dataclass(frozen=True)
class Claim:
    """The right of one attempt to commit one step, and what the attempt needs for it."""

    step_id: int
    run_id: UUID
    asset: str
    partition: str
    attempt: int
    failures: int
    """How many attempts have ended with an error before this one."""
    token: UUID
    canvas: UUID
    worker: str
    inputs: Mapping[Node, StoredOutput | None]
    """The exact outputs that the plan of the run gives the step, in its order.

    None stands for one that an optional dependency does not have.
    """
    config: Mapping[str, Any]
    """The config of the run, by asset."""
    io: Mapping[str, str]
    """The IO managers of assets that the run chooses, by asset."""
    resources: Mapping[str, Mapping[str, Any]]
    """Values for the config of resources that the run gives, by resource."""
    earlier: Earlier | None
    """What the step may be able to reuse; None if there is nothing, or the run is forced."""
    timeout: Timeout | None = None
    """How long the attempt may take; None leaves it to the settings."""
    takes: Mapping[str, int] = field(default_factory=dict)
    """The slots that the step holds while it is dispatched, by the key of the limit."""
    gate: Gate | None = None
    """What was decided while it waited, behind which it goes on now."""

    @property
    def name(self) -> str:
        """What people call the step."""
        return step_name(self.asset, self.partition)


@dataclass(frozen=True)
class Refused:
    """A step that could not be claimed, and the state that it was found in."""

    state: StepState | None
    """None if there is no such step, or it is carried by another canvas now."""
    rate: str | None = None
    """The limit by whose rate a step starts that could be claimed else."""


_HAS_RATE = f"""takes @? '$.keyvalue() ? (@.key starts with "{RATE}")'"""

# A retry that comes a moment early is no duplicate: its countdown ran on another clock. A step
# with a rate is claimed by whoever has taken a token for it, in the same transaction.
_CLAIM = Prepared(
    f"""
    WITH claimed AS (
        UPDATE {SCHEMA}.steps
        SET state = 'running', attempt = attempt + 1, token = :token, retry_at = NULL,
            error = NULL, lease_until = now() + make_interval(secs => :lease),
            ends_by = now() + make_interval(
                secs => coalesce(hard_timeout, CAST(:time_limit AS double precision))),
            starts_at = NULL,
            started_at = coalesce(started_at, now())
        WHERE id = :step_id AND canvas = :canvas AND open_deps = 0
          AND ({in_state("state", _S.QUEUED)}
            OR {in_state("state", _S.RETRYING)} AND retry_at <= now() + interval '1 second')
          AND (takes IS NULL OR :in_turn OR NOT {_HAS_RATE})
        RETURNING id, run_id, asset, partition, attempt, failures, takes, soft_timeout,
            hard_timeout, gate
    ), attempted AS (
        INSERT INTO {SCHEMA}.attempts (step_id, number, token, worker, release)
        SELECT id, attempt, :token, :worker, CAST(:release AS text) FROM claimed
    )
    SELECT c.run_id, c.asset, c.partition, c.attempt, c.failures, c.takes, c.soft_timeout,
        c.hard_timeout, r.config,
        r.request->'io' AS io, r.request->'resources' AS resources, (
        SELECT jsonb_agg(
            jsonb_build_array(
                s.asset, s.partition, o.location, o.format, o.size, o.sha256, o.rows, o.io)
            ORDER BY e.position)
        FROM {SCHEMA}.edges e
        JOIN {SCHEMA}.steps s ON s.id = e.upstream
        LEFT JOIN {SCHEMA}.outputs o ON o.step_id = coalesce(s.reuses, s.id)
        WHERE e.downstream = c.id
    ) AS inputs, (
        SELECT jsonb_build_array(o.step_id, o.fingerprint)
        FROM {SCHEMA}.latest l
        JOIN {SCHEMA}.outputs o ON o.id = l.output_id
        WHERE l.asset = c.asset AND l.partition = c.partition
          AND r.request->'force' IS DISTINCT FROM 'true' AND o.stale_at IS NULL
    ) AS earlier, CASE WHEN c.gate IS NOT NULL THEN (
        SELECT to_jsonb(g) FROM {SCHEMA}.gates g
        WHERE g.id = c.gate AND g.state IN ({sql_list(DECIDED_GATE_STATES)})
    ) END AS gate
    FROM claimed c JOIN {SCHEMA}.runs r ON r.id = c.run_id
    """
)

_RENEW = text(
    f"""
    UPDATE {SCHEMA}.steps s SET lease_until = now() + make_interval(secs => :lease)
    FROM {SCHEMA}.runs r
    WHERE s.token = ANY(CAST(:tokens AS uuid[])) AND s.state = 'running' AND r.id = s.run_id
    RETURNING s.token, r.cancel_requested_at IS NULL OR r.drains AS goes_on
    """
)

# All of a commit in one statement: one round trip, and one transaction. The readers are locked in
# the order of their ids, so that two commits that lower the counters of the same steps cannot
# deadlock.
_COMMIT = Prepared(
    f"""
    WITH done AS (
        UPDATE {SCHEMA}.steps
        SET state = 'succeeded', finished_at = now(), token = NULL, lease_until = NULL
        WHERE id = :step_id AND {in_state("state", _S.RUNNING)} AND token = :token
        RETURNING id, run_id, asset, partition, attempt, tainted
    ), attempted AS (
        UPDATE {SCHEMA}.attempts a SET outcome = 'succeeded', finished_at = now()
        FROM done WHERE a.step_id = done.id AND a.number = done.attempt
    ), output AS (
        INSERT INTO {SCHEMA}.outputs
            (step_id, location, format, size, sha256, rows, io, fingerprint, version, cut, stale_at,
                stale_reason)
        SELECT id, :location, :format, CAST(:size AS bigint), :sha256, CAST(:rows AS bigint),
            :io, :fingerprint, CAST(:version AS text), CAST(:cut AS text),
            CASE WHEN tainted IS NOT NULL THEN now() END, tainted
        FROM done
        RETURNING id
    ), checked AS (
        INSERT INTO {SCHEMA}.check_results
            (output_id, actor, name, passed, blocking, severity, message, metadata)
        SELECT output.id, CAST(:actor AS text), c.* FROM output, {CHECKED}
    ), traced AS (
        {trace("done")}
    ), pointed AS (
        INSERT INTO {SCHEMA}.latest (asset, partition, output_id)
        SELECT done.asset, done.partition, output.id FROM done, output
        ON CONFLICT (asset, partition)
            DO UPDATE SET output_id = excluded.output_id, updated_at = clock_timestamp()
    ), readers AS (
        SELECT s.id FROM done
        JOIN {SCHEMA}.edges e ON e.upstream = done.id AND NOT e.pinned
        JOIN {SCHEMA}.steps s ON s.id = e.downstream
        ORDER BY s.id FOR NO KEY UPDATE OF s
    ), lowered AS (
        UPDATE {SCHEMA}.steps s
        SET open_deps = s.open_deps - 1,
            queued_at = CASE WHEN s.state = 'queued' THEN now() END
        FROM readers WHERE s.id = readers.id
    ), recorded AS (
        {
        audit.recorded(
            "done",
            "step.succeeded",
            before="'running'",
            after="'succeeded'",
            details="'attempt', attempt",
        )
    }
    )
    SELECT id FROM done
    """
)

# What a commit does to its readers, for steps that are done without one; and for those that have
# failed, to the readers that can do without them.
_LOWER = text(
    f"""
    WITH readers AS (
        SELECT downstream AS id, count(*) AS by FROM {SCHEMA}.edges
        WHERE upstream = ANY(CAST(:ids AS bigint[])) AND NOT pinned AND (optional OR :done)
        GROUP BY downstream
    ), locked AS (
        SELECT s.id, readers.by FROM {SCHEMA}.steps s JOIN readers ON readers.id = s.id
        ORDER BY s.id FOR NO KEY UPDATE OF s
    )
    UPDATE {SCHEMA}.steps s
    SET open_deps = s.open_deps - locked.by,
        queued_at = CASE WHEN s.state = 'queued' THEN now() END
    FROM locked WHERE s.id = locked.id AND {in_state("s.state", _S.PENDING, _S.QUEUED)}
    """
)


def claim(
    conn: Connection,
    step_id: int,
    canvas: UUID,
    *,
    worker: str,
    lease: float,
    release: str | None = None,
    time_limit: float | None = None,
    in_turn: bool = False,
) -> Claim | Refused:
    """Give the step to this attempt for `lease` seconds, unless it has gone elsewhere.

    `release` names the code that the worker runs. `time_limit` is after how many seconds the
    attempt is ended by force if the plan does not say; None is never. A step with a rate is
    refused unless it is `in_turn`, see `rates.turn`.
    """
    token = uuid4()
    row = _CLAIM.first(
        conn,
        {
            "step_id": step_id,
            "canvas": canvas,
            "token": token,
            "lease": lease,
            "worker": worker,
            "release": release,
            "time_limit": time_limit,
            "in_turn": in_turn,
        },
    )
    if row is None:
        return _refused(conn, step_id, canvas)
    return Claim(
        step_id=step_id,
        run_id=row.run_id,
        asset=row.asset,
        partition=row.partition,
        attempt=row.attempt,
        failures=row.failures,
        token=token,
        canvas=canvas,
        worker=worker,
        inputs={
            (asset, key): StoredOutput(location, *rest) if location else None
            for asset, key, location, *rest in row.inputs or ()
        },
        config=row.config,
        # A run of an older version has neither.
        io=row.io or {},
        resources=row.resources or {},
        earlier=Earlier(*row.earlier) if row.earlier else None,
        timeout=timeout_of(row.soft_timeout, row.hard_timeout),
        takes=row.takes or {},
        gate=Gate.of(row.gate) if row.gate else None,
    )


def timeout_of(soft: float | None, hard: float | None) -> Timeout | None:
    """Return the timeout that a step was planned with."""
    return None if soft is None or hard is None else Timeout(soft, hard)


def _refused(conn: Connection, step_id: int, canvas: UUID) -> Refused:
    row = conn.execute(
        select(steps.c.state, steps.c.takes).where(steps.c.id == step_id, steps.c.canvas == canvas)
    ).one_or_none()
    if row is None:
        return Refused(None)
    waits = row.state in (_S.QUEUED, _S.RETRYING)
    rate = next(filter(is_rate, row.takes or ()), None) if waits else None
    return Refused(StepState(row.state), rate)


def renew(conn: Connection, tokens: list[UUID], *, lease: float) -> set[UUID]:
    """Extend the leases of all attempts that a process runs; return those that may go on.

    The others have lost their step, or belong to runs that are being cancelled.
    """
    renewed = conn.execute(_RENEW, {"tokens": tokens, "lease": lease})
    return {row.token for row in renewed if row.goes_on}


def commit(conn: Connection, claim: Claim, made: Succeeded) -> bool:
    """Make an output the step's, with checks, lineage, pointer, counters and audit row.

    Returns False if the token is stale: then nothing is written.
    """
    values = {
        "step_id": claim.step_id,
        "token": claim.token,
        "actor": claim.worker,
        "fingerprint": str(made.fingerprint),
        "version": made.version,
        "cut": made.cut,
        "checks": as_json(made.checks),
    }
    return _COMMIT.first(conn, values | asdict(made.output)) is not None


def skip(conn: Connection, claim: Claim, reuses: int) -> bool:
    """End the step without an output of its own; return False if the token is stale.

    Who reads it gets what the step `reuses` has made.
    """
    values = {"finished_at": text("now()"), "reuses": reuses}
    if not finish(
        conn, claim, StepState.SKIPPED, values, details={"reuses": reuses}, reason="fresh"
    ):
        return False
    lower_readers(conn, [claim.step_id])
    return True


def lower_readers(conn: Connection, step_ids: Sequence[int], *, done: bool = True) -> None:
    """Count down what the readers of steps wait for.

    Where the steps are not `done`, but have failed, those that can do without them go on.
    """
    conn.execute(_LOWER, {"ids": list(step_ids), "done": done})


def is_recorded(conn: Connection, claim: Claim, outcome: str) -> bool:
    """Return whether this very attempt has been recorded with this outcome already."""
    query = select(attempts.c.outcome).where(attempts.c.token == claim.token)
    return conn.scalar(query) == outcome


def holds(conn: Connection, claim: Claim) -> bool:
    """Return whether the attempt still has its step; that stays so until the transaction ends."""
    query = select(steps.c.id).where(
        steps.c.id == claim.step_id,
        steps.c.state == _S.RUNNING,
        steps.c.token == claim.token,
    )
    return conn.execute(query.with_for_update(key_share=True)).one_or_none() is not None


def retry(
    conn: Connection, claim: Claim, failure: Failure, delay: float, *, park: bool = False
) -> bool:
    """Let the step wait `delay` seconds for its next attempt; return False if stale.

    To `park` it takes it out of its canvas, and frees what has not started of that: the
    reconciler makes the step ready again when it is due.
    """
    values: dict[str, Any] = {
        "retry_at": text("now() + make_interval(secs => :delay)").bindparams(delay=delay),
        "error": failure.as_json(),
        "failures": claim.failures + 1,
    }
    if park:
        values |= {"canvas": None, "queued_at": None}
    if not finish(conn, claim, StepState.RETRYING, values, failure=failure):
        return False
    if park:
        dispatch.release(conn, [claim.canvas])
    return True


def finish(
    conn: Connection,
    claim: Claim,
    target: StepState,
    values: dict[str, Any],
    *,
    outcome: str | None = None,
    failure: Failure | None = None,
    details: Mapping[str, Any] | None = None,
    reason: str | None = None,
) -> bool:
    """Move a running step on, if `claim` still holds it, and close its attempt.

    The `outcome` of the attempt is by default the state of the step. `reason` is for the audit
    log; by default it is the failure.
    """
    moved = conn.execute(
        update(steps)
        .where(
            steps.c.id == claim.step_id,
            steps.c.state == StepState.RUNNING,
            steps.c.token == claim.token,
        )
        .values(state=target, token=None, lease_until=None, **values)
        .returning(steps.c.id)
    ).one_or_none()
    if moved is None:
        return False
    conn.execute(
        update(attempts)
        .where(attempts.c.step_id == claim.step_id, attempts.c.number == claim.attempt)
        .values(
            outcome=outcome or target,
            finished_at=text("now()"),
            error_type=failure and failure.type,
            error_message=failure and failure.message,
            traceback=failure and failure.traceback,
        )
    )
    audit.record(
        conn,
        actor=claim.worker,
        action=f"step.{outcome or target}",
        run_id=claim.run_id,
        step_id=claim.step_id,
        details=audit.of_step(
            claim.asset,
            claim.partition,
            attempt=claim.attempt,
            **(failure.as_json() if failure else {}),
            **(details or {}),
        ),
        reason=one_line(failure.type, failure.message) if failure else reason,
        before={"state": StepState.RUNNING},
        after={"state": target},
    )
    return True
