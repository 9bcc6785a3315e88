"""What produced an output: run, attempt, code, config, inputs, checks, approvals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from flowstone.freshness import Fingerprint
from flowstone.partition_key import Key, decode_key, encode_key, step_name
from flowstone.states import StepState
from flowstone.store import approvals, checks
from flowstone.store.approvals import ApprovalRequest
from flowstone.store.checks import RecordedCheck
from flowstone.store.pointers import NOW, Start, pointed_at
from flowstone.store.tables import SCHEMA


@dataclass(frozen=True)
class RequestedStep:
    """A step, and the run that holds it."""

    step_id: int
    state: StepState
    reason: str
    """Why the plan of the run holds it."""
    run_id: UUID
    requested_by: str
    requested_at: datetime
    request: Mapping[str, Any]
    """What was asked for, as JSON: assets, partition, and how."""
    config: Mapping[str, Any]
    """What the run gave for the config of the asset; the defaults are in its code."""


@dataclass(frozen=True)
class Attempt:
    """The attempt that made an output."""

    number: int
    worker: str
    release: str | None
    """What FLOWSTONE_RELEASE said of the worker's code."""
    started_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True)
class MadeOutput:
    """An output as the ledger keeps it."""

    id: int
    io: str
    """The IO manager that keeps the value."""
    location: str
    format: str
    size: int
    """In bytes."""
    sha256: str
    rows: int | None
    made_at: datetime
    is_latest: bool
    """Whether its asset x partition points at it."""
    stale: str | None
    """Why it counts as fresh no longer; None if it does."""
    deleted_at: datetime | None
    """When its value was given up; the record stays."""


@dataclass(frozen=True)
class ReadInput:
    """One exact output that was read, and the run that has made it."""

    asset: str
    partition: Key
    output_id: int
    sha256: str
    """Of the value as it was read."""
    step_id: int
    """The step that made it."""
    run_id: UUID
    made_at: datetime
    is_deleted: bool

    @property
    def name(self) -> str:
        """What people call the asset x partition."""
        return step_name(self.asset, encode_key(self.partition))


@dataclass(frozen=True)
class MissingPartition:
    """A partition that was to be read, and had no output: it is optional, or others were enough."""

    asset: str
    partition: Key

    @property
    def name(self) -> str:
        """What people call the asset x partition."""
        return step_name(self.asset, encode_key(self.partition))


@dataclass(frozen=True)
class Provenance:
    """What produced one output of an asset x partition."""

    asset: str
    partition: Key
    output: MadeOutput
    made_by: RequestedStep
    attempt: Attempt
    version: str | None
    """What the definition called the version of the code."""
    fingerprint: Fingerprint | None
    """Hashes of code, config and inputs; None for an output from before they were kept."""
    inputs: tuple[ReadInput, ...]
    """In the order of the plan."""
    missing: tuple[MissingPartition, ...]
    """What the plan would have had it read, and was not there; known while its run is kept."""
    checks: tuple[RecordedCheck, ...]
    """What each check has said last of the value."""
    approvals: tuple[ApprovalRequest, ...]
    """What people were asked before it counted, and how they have decided."""
    reused_by: RequestedStep | None
    """The step of the run in question, if that reuses the output; None if it made it."""

    @property
    def name(self) -> str:
        """What people call the asset x partition."""
        return step_name(self.asset, encode_key(self.partition))


_OUTPUT = text(
    f"""
    SELECT o.*, s.asset, s.partition, coalesce({pointed_at("p")} = o.id, false) AS is_latest,
        CASE WHEN o.stale_at <= CAST(:at AS timestamptz) THEN o.stale_reason END AS stale,
        CASE WHEN o.deleted_at <= CAST(:at AS timestamptz) THEN o.deleted_at END AS gone_at,
        a.number, a.worker, a.release, a.started_at, a.finished_at
    FROM {SCHEMA}.outputs o
    JOIN {SCHEMA}.steps s ON s.id = o.step_id
    JOIN {SCHEMA}.attempts a ON a.step_id = s.id AND a.number = s.attempt
    LEFT JOIN {SCHEMA}.latest p ON p.asset = s.asset AND p.partition = s.partition
    WHERE o.id = :output_id
    """
)

_STEP = text(
    f"""
    SELECT s.id, s.state, s.reason, s.run_id, r.actor, r.created_at, r.request,
        r.config->s.asset AS config
    FROM {SCHEMA}.steps s JOIN {SCHEMA}.runs r ON r.id = s.run_id WHERE s.id = :step_id
    """
)

_INPUTS = text(
    f"""
    SELECT s.asset, s.partition, o.id, l.upstream_sha256, o.step_id, s.run_id, o.created_at,
        coalesce(o.deleted_at <= CAST(:at AS timestamptz), false) AS is_deleted
    FROM {SCHEMA}.lineage l
    JOIN {SCHEMA}.outputs o ON o.id = l.upstream_output_id
    JOIN {SCHEMA}.steps s ON s.id = o.step_id
    LEFT JOIN {SCHEMA}.edges e ON e.downstream = l.step_id AND e.upstream = l.upstream_step_id
    WHERE l.step_id = :step_id
    ORDER BY e.position, o.id
    """
)


_MISSING = text(
    f"""
    SELECT s.asset, s.partition FROM {SCHEMA}.edges e
    JOIN {SCHEMA}.steps s ON s.id = e.upstream
    WHERE e.downstream = :step_id AND NOT EXISTS (
        SELECT FROM {SCHEMA}.outputs o WHERE o.step_id = coalesce(s.reuses, s.id))
    ORDER BY e.position
    """
)


def produced(conn: Connection, start: Start, at: datetime | None) -> Provenance:
    """Return what produced the output, as it stood at a time, or stands now."""
    times = {"at": at or NOW}
    output = conn.execute(_OUTPUT, {"output_id": start.output_id, **times}).one()
    inputs = conn.execute(_INPUTS, {"step_id": output.step_id, **times})
    return Provenance(
        asset=output.asset,
        partition=decode_key(output.partition),
        output=_output(output),
        made_by=_step(conn, output.step_id),
        attempt=Attempt(
            output.number, output.worker, output.release, output.started_at, output.finished_at
        ),
        version=output.version,
        fingerprint=Fingerprint.parse(output.fingerprint) if output.fingerprint else None,
        inputs=tuple(_input(row) for row in inputs),
        missing=tuple(
            MissingPartition(asset, decode_key(key))
            for asset, key in conn.execute(_MISSING, {"step_id": output.step_id})
        ),
        checks=tuple(checks.last_of(conn, output.id, at)),
        approvals=tuple(approvals.of_step(conn, output.step_id)),
        reused_by=(
            _step(conn, start.asked_by) if start.asked_by not in (None, output.step_id) else None
        ),
    )


def _step(conn: Connection, step_id: int) -> RequestedStep:
    row = conn.execute(_STEP, {"step_id": step_id}).one()
    return RequestedStep(
        step_id=row.id,
        state=StepState(row.state),
        reason=row.reason,
        run_id=row.run_id,
        requested_by=row.actor,
        requested_at=row.created_at,
        request=row.request,
        config=row.config or {},
    )


def _output(row: Row[*tuple[Any, ...]]) -> MadeOutput:
    return MadeOutput(
        id=row.id,
        io=row.io,
        location=row.location,
        format=row.format,
        size=row.size,
        sha256=row.sha256,
        rows=row.rows,
        made_at=row.created_at,
        is_latest=row.is_latest,
        stale=row.stale,
        deleted_at=row.gone_at,
    )


def _input(row: Row[*tuple[Any, ...]]) -> ReadInput:
    return ReadInput(
        asset=row.asset,
        partition=decode_key(row.partition),
        output_id=row.id,
        sha256=row.upstream_sha256,
        step_id=row.step_id,
        run_id=row.run_id,
        made_at=row.created_at,
        is_deleted=row.is_deleted,
    )
