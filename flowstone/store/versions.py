"""Versions: the outputs of an asset x partition, and which of them the latest one is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from flowstone.errors import UnknownVersion
from flowstone.outcome import StoredOutput
from flowstone.partition_key import step_name
from flowstone.plan import Node
from flowstone.store import audit
from flowstone.store.tables import SCHEMA

_VERSION = f"""
    SELECT o.*, s.run_id, s.asset, s.partition, l.output_id IS NOT NULL AS is_latest
    FROM {SCHEMA}.steps s
    JOIN {SCHEMA}.outputs o ON o.step_id = s.id
    LEFT JOIN {SCHEMA}.latest l
        ON l.asset = s.asset AND l.partition = s.partition AND l.output_id = o.id
"""

_OF_NODE = text(
    f"{_VERSION} WHERE s.asset = :asset AND s.partition = :partition "
    "ORDER BY o.id DESC LIMIT :limit"
)

_LATEST = text(
    f"{_VERSION} WHERE s.asset = :asset AND s.partition = :partition AND l.output_id IS NOT NULL"
)

_ONE = text(f"{_VERSION} WHERE o.id = :id AND s.asset = :asset AND s.partition = :partition")

_LOCK_POINTER = text(
    f"""
    SELECT output_id FROM {SCHEMA}.latest
    WHERE asset = :asset AND partition = :partition FOR UPDATE
    """
)

# A commit that comes between locks the pointer as this does, and is then what was replaced.
_POINT = text(
    f"""
    WITH moved AS (
        UPDATE {SCHEMA}.latest SET output_id = :output_id, updated_at = clock_timestamp()
        WHERE asset = :asset AND partition = :partition AND output_id = :replaced_id
        RETURNING asset, partition, output_id
    )
    INSERT INTO {SCHEMA}.rollbacks (asset, partition, output_id, replaced_id, actor)
    SELECT asset, partition, output_id, :replaced_id, :actor FROM moved
    """
)

# Not one that is stale: it would be computed again at once.
_BEFORE = text(
    f"""
    SELECT o.id FROM {SCHEMA}.steps s JOIN {SCHEMA}.outputs o ON o.step_id = s.id
    WHERE s.asset = :asset AND s.partition = :partition AND o.id < :latest
      AND o.deleted_at IS NULL AND o.stale_at IS NULL
    ORDER BY o.id DESC LIMIT 1
    """
)

_HOLD = text(
    f"""
    SELECT id FROM {SCHEMA}.outputs WHERE id = ANY(CAST(:ids AS bigint[]))
    ORDER BY id FOR KEY SHARE
    """
)

# What a plan reads from outside, or uses again, is held until the plan is written.
_HOLD_OF_STEPS = text(
    f"""
    SELECT o.deleted_at, s.asset, s.partition
    FROM {SCHEMA}.steps s JOIN {SCHEMA}.outputs o ON o.step_id = coalesce(s.reuses, s.id)
    WHERE s.id = ANY(CAST(:step_ids AS bigint[]))
    ORDER BY o.id FOR KEY SHARE OF o
    """
)

_MARK_STALE = text(
    f"""
    WITH marked AS (
        UPDATE {SCHEMA}.outputs SET stale_at = now(), stale_reason = :because
        WHERE id = ANY(CAST(:ids AS bigint[])) AND stale_at IS NULL AND deleted_at IS NULL
        RETURNING id, step_id
    ), recorded AS (
        INSERT INTO {SCHEMA}.audit (actor, action, run_id, step_id, details, reason, before, after)
        SELECT :actor, 'output.invalidated', s.run_id, s.id,
            jsonb_build_object('asset', s.asset, 'partition', s.partition, 'version', marked.id),
            CAST(:reason AS text), '{{"stale": false}}', '{{"stale": true}}'
        FROM marked JOIN {SCHEMA}.steps s ON s.id = marked.step_id
    )
    SELECT id FROM marked
    """
)

_AT = text(f"SELECT id FROM {SCHEMA}.outputs WHERE io = :io AND location = :location")


@dataclass(frozen=True)
class Version:
    """One output of an asset x partition; `id` grows with each."""

    id: int
    asset: str
    partition: str
    """The encoded key."""
    run_id: UUID
    step_id: int
    output: StoredOutput
    created_at: datetime
    is_latest: bool
    code_version: str | None
    """What the definition of the asset called its code."""
    stale_at: datetime | None
    stale_reason: str | None
    deleted_at: datetime | None
    """When its value was given up; None while it can be read."""

    @property
    def name(self) -> str:
        """What people call the asset x partition."""
        return step_name(self.asset, self.partition)


def of_node(conn: Connection, node: Node, limit: int = 100) -> list[Version]:
    """Return the versions of an asset x partition, the newest first."""
    found = conn.execute(_OF_NODE, {**_values(node), "limit": limit})
    return [_version(row) for row in found]


def latest(conn: Connection, node: Node) -> Version | None:
    """Return the latest version: that of the last commit, or the one rolled back to since."""
    row = conn.execute(_LATEST, _values(node)).one_or_none()
    return None if row is None else _version(row)


def roll_back(
    conn: Connection, node: Node, to: int | None, *, actor: str, reason: str | None
) -> Version:
    """Make an older version the latest, by default the one before; return it.

    Raises UnknownVersion where there is none, it is of another asset x partition, its value
    is gone, or it is the latest already.
    """
    replaced = conn.scalar(_LOCK_POINTER, _values(node))
    if to is None:
        to = conn.scalar(_BEFORE, {**_values(node), "latest": replaced})
    if to is None:
        raise UnknownVersion(f"there is no version of {step_name(*node)} before the latest")
    # The collector must not give it up meanwhile.
    conn.execute(_HOLD, {"ids": [to]})
    target = one(conn, node, to)
    if target.is_latest:
        raise UnknownVersion(f"version {target.id} of {target.name} is the latest already")
    if target.deleted_at is not None:
        raise given_up(target)
    conn.execute(
        _POINT,
        {**_values(node), "output_id": target.id, "replaced_id": replaced, "actor": actor},
    )
    audit.record(
        conn,
        actor=actor,
        action="output.rolled_back",
        run_id=target.run_id,
        step_id=target.step_id,
        details={"asset": target.asset, "partition": target.partition},
        reason=reason,
        before={"version": replaced},
        after={"version": target.id},
    )
    return target


def given_up(version: Version) -> UnknownVersion:
    """Return the error of whoever wants the value of a version that has none any more."""
    return UnknownVersion(
        f"the value of version {version.id} of {version.name} was given up at "
        f"{version.deleted_at:%Y-%m-%d %H:%M}; `flowstone versions` shows what is left"
    )


def hold(conn: Connection, step_ids: Sequence[int]) -> None:
    """Keep the collector from the outputs of steps until the transaction ends.

    Raises UnknownVersion where the value of one has been given up already.
    """
    for row in conn.execute(_HOLD_OF_STEPS, {"step_ids": sorted(step_ids)}):
        if row.deleted_at is not None:
            raise UnknownVersion(
                f"the value of {step_name(row.asset, row.partition)} that this would read was "
                f"given up at {row.deleted_at:%Y-%m-%d %H:%M}; submit the request anew"
            )


def mark_stale(
    conn: Connection, ids: Sequence[int], because: str, *, actor: str, reason: str | None = None
) -> list[int]:
    """Let versions count as fresh no longer; return those that did until now.

    `because` is the reason that plans then give for computing them again, `reason` that of
    whoever asked for it.
    """
    values = {"ids": sorted(ids), "because": because, "actor": actor, "reason": reason}
    return list(conn.scalars(_MARK_STALE, values))


def mark_missing(conn: Connection, output: StoredOutput, *, actor: str) -> None:
    """Note that the value of an output, which a reader wanted, is not in storage."""
    at = conn.scalar(_AT, {"io": output.io, "location": output.location})
    if at is not None:
        mark_stale(conn, [at], "value is gone", actor=actor)


def one(conn: Connection, node: Node, id: int) -> Version:
    """Return a version by its id; raise UnknownVersion."""
    row = conn.execute(_ONE, {**_values(node), "id": id}).one_or_none()
    if row is None:
        raise UnknownVersion(
            f"{step_name(*node)} has no version {id}; `flowstone versions` lists those it has"
        )
    return _version(row)


def _values(node: Node) -> dict[str, Any]:
    return {"asset": node[0], "partition": node[1]}


def _version(row: Row[*tuple[Any, ...]]) -> Version:
    return Version(
        id=row.id,
        asset=row.asset,
        partition=row.partition,
        run_id=row.run_id,
        step_id=row.step_id,
        output=StoredOutput(row.location, row.format, row.size, row.sha256, row.rows, row.io),
        created_at=row.created_at,
        is_latest=row.is_latest,
        code_version=row.version,
        stale_at=row.stale_at,
        stale_reason=row.stale_reason,
        deleted_at=row.deleted_at,
    )
