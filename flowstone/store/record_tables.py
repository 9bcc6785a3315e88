"""The tables of what is known of the data: outputs, lineage, checks, audit."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from flowstone.store.run_tables import steps
from flowstone.store.schema import NOW, SCHEMA, TIME, metadata

outputs = Table(
    "outputs",
    metadata,
    Column("id", BigInteger, Identity(always=False), primary_key=True),
    Column("step_id", BigInteger, ForeignKey(steps.c.id), nullable=False, unique=True),
    Column("location", Text, nullable=False),
    Column("format", Text, nullable=False),
    Column("size", BigInteger, nullable=False, comment="Bytes"),
    Column("sha256", Text, nullable=False),
    Column("rows", BigInteger),
    Column("created_at", TIME, nullable=False, server_default=NOW),
    Column("fingerprint", Text, comment="Hashes of code, config and inputs that it was made of"),
    Column("io", Text, nullable=False, server_default=text("'default'"), comment="Who keeps it"),
    Column("version", Text, comment="What the definition called the version of its code"),
    Column("stale_at", TIME),
    Column("stale_reason", Text, comment="Why it counts as fresh no longer"),
    Column("deleted_at", TIME, comment="When its value was given up; the record stays"),
    Column("erased_at", TIME, comment="When storage had given it up, too"),
    Column("cut", Text, comment="How the partitions were cut of which it is one; none for keys"),
    UniqueConstraint("io", "location"),
    CheckConstraint("size >= 0", "size"),
    CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", "sha256"),
    CheckConstraint("num_nulls(stale_at, stale_reason) IN (0, 2)", "stale"),
    comment="The stored value of each successful step; immutable",
)

latest = Table(
    "latest",
    metadata,
    Column("asset", Text, nullable=False),
    Column("partition", Text, nullable=False),
    Column("output_id", BigInteger, ForeignKey(outputs.c.id), nullable=False),
    Column("updated_at", TIME, nullable=False, server_default=NOW),
    PrimaryKeyConstraint("asset", "partition"),
    Index("ix_latest_output_id", "output_id"),
    comment="The latest success of each asset x partition, in the order of commits",
)

lineage = Table(
    "lineage",
    metadata,
    Column("step_id", BigInteger, ForeignKey(steps.c.id), nullable=False),
    Column("upstream_step_id", BigInteger, ForeignKey(steps.c.id), nullable=False),
    Column("upstream_output_id", BigInteger, ForeignKey(outputs.c.id), nullable=False),
    Column("upstream_sha256", Text, nullable=False),
    PrimaryKeyConstraint("step_id", "upstream_step_id"),
    Index("ix_lineage_upstream_output_id", "upstream_output_id"),
    Index("ix_lineage_upstream_step_id", "upstream_step_id"),
    comment="The exact outputs that each committed step has read",
)

rollbacks = Table(
    "rollbacks",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("asset", Text, nullable=False),
    Column("partition", Text, nullable=False),
    Column("output_id", BigInteger, ForeignKey(outputs.c.id), nullable=False),
    Column("replaced_id", BigInteger, ForeignKey(outputs.c.id), nullable=False),
    # Whoever moves the pointer has waited for a commit that moved it before.
    Column("at", TIME, nullable=False, server_default=text("clock_timestamp()")),
    Column("actor", Text, nullable=False),
    Index("ix_rollbacks_asset_partition", "asset", "partition"),
    Index("ix_rollbacks_output_id", "output_id"),
    Index("ix_rollbacks_replaced_id", "replaced_id"),
    comment="Each time that the pointer to the latest success was moved back by hand",
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("step_id", BigInteger, ForeignKey(steps.c.id), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("io", Text, nullable=False),
    Column("location", Text, nullable=False),
    Column("format", Text, nullable=False),
    Column("size", BigInteger, nullable=False, comment="Bytes"),
    Column("sha256", Text, nullable=False),
    Column("rows", BigInteger),
    Column("created_at", TIME, nullable=False, server_default=NOW),
    Column("deleted_at", TIME, comment="When its value was given up; the record stays"),
    Column("erased_at", TIME, comment="When storage had given it up, too"),
    Column("cut", Text, comment="How the partitions were cut of which it is one; none for keys"),
    UniqueConstraint("io", "location"),
    Index("ix_quarantine_step_id", "step_id"),
    comment="Values that a blocking check has refused: no output, and no reader sees them",
)

check_results = Table(
    "check_results",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False),
    Column("output_id", BigInteger, ForeignKey(outputs.c.id)),
    Column("quarantine_id", BigInteger, ForeignKey(quarantine.c.id)),
    Column("passed", Boolean, nullable=False),
    Column("blocking", Boolean, nullable=False),
    Column("severity", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("metadata", JSONB, nullable=False),
    Column("actor", Text, nullable=False),
    Column("checked_at", TIME, nullable=False, server_default=NOW),
    CheckConstraint("num_nonnulls(output_id, quarantine_id) = 1", "subject"),
    CheckConstraint("severity IN ('warn', 'error')", "severity"),
    Index("ix_check_results_output_id", "output_id"),
    Index("ix_check_results_quarantine_id", "quarantine_id"),
    comment="What each check said of one exact value",
)

stored_values = Table(
    "stored_values",
    metadata,
    Column("location", Text, primary_key=True),
    Column("data", LargeBinary, nullable=False),
    Column("stored_at", TIME, nullable=False, server_default=NOW),
    comment="Small values, for the IO manager that keeps them as rows",
)

audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("at", TIME, nullable=False, server_default=text("clock_timestamp()")),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("run_id", Uuid, comment="No foreign key: the log outlives what it tells of"),
    Column("step_id", BigInteger),
    Column("details", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("reason", Text, comment="Why, in the words of who did it"),
    Column("before", JSONB),
    Column("after", JSONB),
    Index("ix_audit_run_id", "run_id"),
    comment="Every change of state, append-only",
)

audit_unsealed = Table(
    "audit_unsealed",
    metadata,
    Column("audit_id", BigInteger, primary_key=True, autoincrement=False),
    comment="Rows of the audit log that have no seal yet",
)

audit_seals = Table(
    "audit_seals",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("audit_id", BigInteger, nullable=False, unique=True),
    Column("hash", LargeBinary, nullable=False, comment="Of the row and the hash before it"),
    CheckConstraint("length(hash) = 32", "hash"),
    comment="The chain of hashes over the audit log, append-only",
)

_REFUSE_CHANGE: Final = f"""
CREATE FUNCTION {SCHEMA}.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the table %.% is append-only', TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$
"""

# The statement, not each row: a run of thousands of steps is audited in one insert.
_AWAIT_SEAL: Final = f"""
CREATE FUNCTION {SCHEMA}.await_seal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {SCHEMA}.audit_unsealed SELECT id FROM added;
    RETURN NULL;
END $$
"""

_AUDIT_APPEND_ONLY: Final = f"""
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {SCHEMA}.audit
FOR EACH STATEMENT EXECUTE FUNCTION {SCHEMA}.refuse_change()
"""

_SEALS_APPEND_ONLY: Final = f"""
CREATE TRIGGER audit_seals_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {SCHEMA}.audit_seals
FOR EACH STATEMENT EXECUTE FUNCTION {SCHEMA}.refuse_change()
"""

_AUDIT_AWAITS_SEAL: Final = f"""
CREATE TRIGGER audit_awaits_seal AFTER INSERT ON {SCHEMA}.audit
REFERENCING NEW TABLE AS added
FOR EACH STATEMENT EXECUTE FUNCTION {SCHEMA}.await_seal()
"""

FUNCTIONS_AND_TRIGGERS: Final = (
    _REFUSE_CHANGE,
    _AWAIT_SEAL,
    _AUDIT_APPEND_ONLY,
    _SEALS_APPEND_ONLY,
    _AUDIT_AWAITS_SEAL,
)
