"""IO managers, versions, checks, quarantine; an audit log that stands alone, chained by hashes."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SCHEMA = "flowstone"
JSONB = postgresql.JSONB(astext_type=sa.Text())
TIME = sa.DateTime(timezone=True)

AWAIT_SEAL = """
CREATE FUNCTION flowstone.await_seal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO flowstone.audit_unsealed SELECT id FROM added;
    RETURN NULL;
END $$
"""

SEALS_APPEND_ONLY = """
CREATE TRIGGER audit_seals_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON flowstone.audit_seals
FOR EACH STATEMENT EXECUTE FUNCTION flowstone.refuse_change()
"""

AUDIT_AWAITS_SEAL = """
CREATE TRIGGER audit_awaits_seal AFTER INSERT ON flowstone.audit
REFERENCING NEW TABLE AS added
FOR EACH STATEMENT EXECUTE FUNCTION flowstone.await_seal()
"""


def upgrade() -> None:
    _outputs()
    _rollbacks()
    _quarantine()
    _check_results()
    _stored_values()
    _audit()
    op.add_column(
        "attempts",
        sa.Column("release", sa.Text(), comment="What FLOWSTONE_RELEASE said of the worker's code"),
        schema=SCHEMA,
    )
    op.create_index(
        "ix_steps_reuses",
        "steps",
        ["reuses"],
        schema=SCHEMA,
        postgresql_where=sa.text("reuses IS NOT NULL"),
    )
    _pruning()
    _indexes(
        "upper(state) NOT IN ('CANCELLED', 'FAILED', 'SKIPPED', 'SUCCEEDED', 'UPSTREAM_FAILED')",
        "(id + 0)",
    )


def _indexes(is_open: str, order: str) -> None:
    for name in ("ix_steps_ready", "ix_steps_open"):
        op.drop_index(name, table_name="steps", schema=SCHEMA)
    op.create_index(
        "ix_steps_ready",
        "steps",
        ["run_id", sa.text(order)],
        schema=SCHEMA,
        postgresql_where=sa.text("state = 'pending' AND open_deps = 0"),
    )
    op.create_index(
        "ix_steps_open",
        "steps",
        ["run_id"],
        schema=SCHEMA,
        postgresql_where=sa.text(is_open),
    )


# What refers to a row must be found fast when that is to be deleted.
REFERENCES = (
    ("ix_latest_output_id", "latest", "output_id", None),
    ("ix_lineage_upstream_output_id", "lineage", "upstream_output_id", None),
    ("ix_steps_has_joined", "steps", "joined_to", "joined_to IS NOT NULL"),
    ("ix_attempts_message", "attempts", "finished_at", "error_message IS NOT NULL"),
)


def _pruning() -> None:
    op.add_column(
        "runs",
        sa.Column("pruned_at", TIME, comment="When the first of its steps was pruned"),
        schema=SCHEMA,
    )
    for name, table, column, where in REFERENCES:
        op.create_index(
            name, table, [column], schema=SCHEMA, postgresql_where=where and sa.text(where)
        )


def _outputs() -> None:
    for column in (
        sa.Column(
            "io",
            sa.Text(),
            nullable=False,
            server_default=sa.text("'default'"),
            comment="Who keeps it",
        ),
        sa.Column(
            "version", sa.Text(), comment="What the definition called the version of its code"
        ),
        sa.Column("stale_at", TIME),
        sa.Column("stale_reason", sa.Text(), comment="Why it counts as fresh no longer"),
        sa.Column("deleted_at", TIME, comment="When its value was given up; the record stays"),
        sa.Column("erased_at", TIME, comment="When storage had given it up, too"),
    ):
        op.add_column("outputs", column, schema=SCHEMA)
    op.drop_constraint(op.f("uq_outputs_location"), "outputs", schema=SCHEMA)
    op.create_unique_constraint(
        op.f("uq_outputs_io_location"), "outputs", ["io", "location"], schema=SCHEMA
    )
    op.create_check_constraint(
        op.f("ck_outputs_stale"),
        "outputs",
        "num_nulls(stale_at, stale_reason) IN (0, 2)",
        schema=SCHEMA,
    )


def _rollbacks() -> None:
    op.create_table(
        "rollbacks",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("asset", sa.Text(), nullable=False),
        sa.Column("partition", sa.Text(), nullable=False),
        sa.Column("output_id", sa.BigInteger(), nullable=False),
        sa.Column("replaced_id", sa.BigInteger(), nullable=False),
        sa.Column("at", TIME, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["output_id"], ["flowstone.outputs.id"], name=op.f("fk_rollbacks_output_id")
        ),
        sa.ForeignKeyConstraint(
            ["replaced_id"], ["flowstone.outputs.id"], name=op.f("fk_rollbacks_replaced_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollbacks")),
        schema=SCHEMA,
        comment="Each time that the pointer to the latest success was moved back by hand",
    )
    op.create_index(
        "ix_rollbacks_asset_partition", "rollbacks", ["asset", "partition"], schema=SCHEMA
    )
    for column in ("output_id", "replaced_id"):
        op.create_index(f"ix_rollbacks_{column}", "rollbacks", [column], schema=SCHEMA)


def _quarantine() -> None:
    op.create_table(
        "quarantine",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("step_id", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("io", sa.Text(), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False, comment="Bytes"),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("rows", sa.BigInteger()),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("deleted_at", TIME, comment="When its value was given up; the record stays"),
        sa.Column("erased_at", TIME, comment="When storage had given it up, too"),
        sa.ForeignKeyConstraint(
            ["step_id"], ["flowstone.steps.id"], name=op.f("fk_quarantine_step_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quarantine")),
        sa.UniqueConstraint("io", "location", name=op.f("uq_quarantine_io_location")),
        schema=SCHEMA,
        comment="Values that a blocking check has refused: no output, and no reader sees them",
    )
    op.create_index("ix_quarantine_step_id", "quarantine", ["step_id"], schema=SCHEMA)


def _check_results() -> None:
    op.create_table(
        "check_results",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("output_id", sa.BigInteger()),
        sa.Column("quarantine_id", sa.BigInteger()),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("blocking", sa.Boolean(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("metadata", JSONB, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("checked_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "num_nonnulls(output_id, quarantine_id) = 1", name=op.f("ck_check_results_subject")
        ),
        sa.CheckConstraint("severity IN ('warn', 'error')", name=op.f("ck_check_results_severity")),
        sa.ForeignKeyConstraint(
            ["output_id"], ["flowstone.outputs.id"], name=op.f("fk_check_results_output_id")
        ),
        sa.ForeignKeyConstraint(
            ["quarantine_id"],
            ["flowstone.quarantine.id"],
            name=op.f("fk_check_results_quarantine_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_check_results")),
        schema=SCHEMA,
        comment="What each check said of one exact value",
    )
    for column in ("output_id", "quarantine_id"):
        op.create_index(f"ix_check_results_{column}", "check_results", [column], schema=SCHEMA)


def _stored_values() -> None:
    op.create_table(
        "stored_values",
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("stored_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("location", name=op.f("pk_stored_values")),
        schema=SCHEMA,
        comment="Small values, for the IO manager that keeps them as rows",
    )


def _audit() -> None:
    op.drop_constraint(op.f("fk_audit_run_id"), "audit", schema=SCHEMA)
    op.drop_constraint(op.f("fk_audit_step_id"), "audit", schema=SCHEMA)
    op.alter_column(
        "audit",
        "run_id",
        comment="No foreign key: the log outlives what it tells of",
        schema=SCHEMA,
    )
    for column in (
        sa.Column("reason", sa.Text(), comment="Why, in the words of who did it"),
        sa.Column("before", JSONB),
        sa.Column("after", JSONB),
    ):
        op.add_column("audit", column, schema=SCHEMA)
    op.create_table(
        "audit_unsealed",
        sa.Column("audit_id", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.PrimaryKeyConstraint("audit_id", name=op.f("pk_audit_unsealed")),
        schema=SCHEMA,
        comment="Rows of the audit log that have no seal yet",
    )
    op.create_table(
        "audit_seals",
        sa.Column("position", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("audit_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "hash", sa.LargeBinary(), nullable=False, comment="Of the row and the hash before it"
        ),
        sa.CheckConstraint("length(hash) = 32", name=op.f("ck_audit_seals_hash")),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_audit_seals")),
        sa.UniqueConstraint("audit_id", name=op.f("uq_audit_seals_audit_id")),
        schema=SCHEMA,
        comment="The chain of hashes over the audit log, append-only",
    )
    # What was written before is sealed like what is written from now on.
    op.execute("INSERT INTO flowstone.audit_unsealed SELECT id FROM flowstone.audit")
    op.execute(AWAIT_SEAL)
    op.execute(SEALS_APPEND_ONLY)
    op.execute(AUDIT_AWAITS_SEAL)


# What an older version would not find, and could not keep from being deleted.
ELSEWHERE = """
SELECT EXISTS (SELECT FROM flowstone.stored_values)
    OR EXISTS (SELECT FROM flowstone.outputs WHERE io <> 'default')
"""


def downgrade() -> None:
    if op.get_bind().scalar(sa.text(ELSEWHERE)):
        raise RuntimeError(
            "values lie in rows or with other IO managers than the default, where an older "
            "version cannot read them; compute them with io='default' and run `flowstone gc` first"
        )
    _indexes(
        "state NOT IN ('cancelled', 'failed', 'skipped', 'succeeded', 'upstream_failed')", "id"
    )
    for name, table, _, _ in REFERENCES:
        op.drop_index(name, table_name=table, schema=SCHEMA)
    op.drop_column("runs", "pruned_at", schema=SCHEMA)
    op.drop_index("ix_steps_reuses", table_name="steps", schema=SCHEMA)
    op.drop_column("attempts", "release", schema=SCHEMA)
    op.execute("DROP TRIGGER audit_awaits_seal ON flowstone.audit")
    for table in (
        "audit_seals",
        "audit_unsealed",
        "check_results",
        "quarantine",
        "rollbacks",
        "stored_values",
    ):
        op.drop_table(table, schema=SCHEMA)
    op.execute("DROP FUNCTION flowstone.await_seal()")
    for name in ("after", "before", "reason"):
        op.drop_column("audit", name, schema=SCHEMA)
    op.alter_column("audit", "run_id", comment=None, schema=SCHEMA)
    for name, table in (("run_id", "runs"), ("step_id", "steps")):
        # Not checked for the rows that are there: what they tell of may have been pruned.
        op.create_foreign_key(
            op.f(f"fk_audit_{name}"),
            "audit",
            table,
            [name],
            ["id"],
            source_schema=SCHEMA,
            referent_schema=SCHEMA,
            postgresql_not_valid=True,
        )
    op.drop_constraint(op.f("ck_outputs_stale"), "outputs", schema=SCHEMA)
    op.drop_constraint(op.f("uq_outputs_io_location"), "outputs", schema=SCHEMA)
    op.create_unique_constraint(op.f("uq_outputs_location"), "outputs", ["location"], schema=SCHEMA)
    for name in ("erased_at", "deleted_at", "stale_reason", "stale_at", "version", "io"):
        op.drop_column("outputs", name, schema=SCHEMA)
