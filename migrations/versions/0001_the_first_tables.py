"""The first tables: runs, steps, edges, attempts, outputs, latest, lineage, audit."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Written out here, not imported: a migration does not change when the code does.
REFUSE_CHANGE = """
CREATE FUNCTION flowstone.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the table %.% is append-only', TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$
"""

APPEND_ONLY = """
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON flowstone.audit
FOR EACH STATEMENT EXECUTE FUNCTION flowstone.refuse_change()
"""


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("state", sa.Text(), server_default="requested", nullable=False),
        sa.Column("driver", sa.Text(), nullable=False),
        sa.Column("request", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("config", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("max_in_flight", sa.Integer(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("planned_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "cancel_grace",
            sa.Double(),
            nullable=True,
            comment="Seconds that running steps have to end by themselves",
        ),
        sa.Column("cancel_reason", sa.Text(), nullable=True),
        sa.Column(
            "resumed_from", sa.Uuid(), nullable=True, comment="The run that this one goes on with"
        ),
        sa.CheckConstraint(
            "(finished_at IS NOT NULL) = (state IN ('cancelled', 'failed', 'succeeded'))",
            name=op.f("ck_runs_finished_at"),
        ),
        sa.CheckConstraint(
            "num_nulls(cancel_requested_at, cancel_grace, cancel_reason) IN (0, 3)",
            name=op.f("ck_runs_cancel"),
        ),
        sa.CheckConstraint("cancel_grace >= 0", name=op.f("ck_runs_cancel_grace")),
        sa.CheckConstraint("driver IN ('celery', 'inline')", name=op.f("ck_runs_driver")),
        sa.CheckConstraint(
            "state IN ('cancelled', 'failed', 'paused', 'planned', 'requested', 'running', 'succeeded', 'waiting')",
            name=op.f("ck_runs_state"),
        ),
        sa.CheckConstraint("max_in_flight > 0", name=op.f("ck_runs_max_in_flight")),
        sa.ForeignKeyConstraint(
            ["resumed_from"], ["flowstone.runs.id"], name=op.f("fk_runs_resumed_from")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sa.UniqueConstraint("resumed_from", name=op.f("uq_runs_resumed_from")),
        schema="flowstone",
        comment="One request to materialize something",
    )
    op.create_index(
        "ix_runs_open",
        "runs",
        ["created_at"],
        unique=False,
        schema="flowstone",
        postgresql_where=sa.text("state NOT IN ('cancelled', 'failed', 'succeeded')"),
    )
    op.create_table(
        "steps",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("asset", sa.Text(), nullable=False),
        sa.Column("partition", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("reason", sa.Text(), nullable=False, comment="Why the plan holds this step"),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column(
            "open_deps",
            sa.Integer(),
            nullable=False,
            comment="Dependencies that have not committed",
        ),
        sa.Column(
            "feeds",
            sa.BigInteger(),
            nullable=True,
            comment="The one step of the run that reads this one, if just one",
        ),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "token", sa.Uuid(), nullable=True, comment="The fencing token of the running attempt"
        ),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("retry_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "canvas",
            sa.Uuid(),
            nullable=True,
            comment="The chain or chord that carries the step now",
        ),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("queued_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(finished_at IS NOT NULL) = (state IN ('cancelled', 'failed', 'skipped', 'succeeded', 'upstream_failed'))",
            name=op.f("ck_steps_finished_at"),
        ),
        sa.CheckConstraint(
            "(state = 'retrying') = (retry_at IS NOT NULL)", name=op.f("ck_steps_retry_at")
        ),
        sa.CheckConstraint(
            "(state = 'running') = (token IS NOT NULL) AND (token IS NULL) = (lease_until IS NULL)",
            name=op.f("ck_steps_lease"),
        ),
        sa.CheckConstraint(
            "state IN ('cancelled', 'failed', 'joined', 'pending', 'queued', 'retrying', 'running', 'skipped', 'succeeded', 'upstream_failed', 'waiting_approval', 'waiting_signal')",
            name=op.f("ck_steps_state"),
        ),
        sa.CheckConstraint("length(partition) <= 512", name=op.f("ck_steps_partition")),
        sa.CheckConstraint("open_deps >= 0", name=op.f("ck_steps_open_deps")),
        sa.ForeignKeyConstraint(["run_id"], ["flowstone.runs.id"], name=op.f("fk_steps_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_steps")),
        sa.UniqueConstraint(
            "run_id", "asset", "partition", name=op.f("uq_steps_run_id_asset_partition")
        ),
        schema="flowstone",
        comment="One asset x partition inside one run: the materialization record",
    )
    op.create_index(
        "ix_steps_asset", "steps", ["asset", "partition"], unique=False, schema="flowstone"
    )
    op.create_index(
        "ix_steps_canvas",
        "steps",
        ["canvas"],
        unique=False,
        schema="flowstone",
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index(
        "ix_steps_in_flight",
        "steps",
        ["run_id"],
        unique=False,
        schema="flowstone",
        postgresql_where=sa.text("state IN ('queued', 'running', 'retrying')"),
    )
    op.create_index(
        "ix_steps_lease",
        "steps",
        ["lease_until"],
        unique=False,
        schema="flowstone",
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index(
        "ix_steps_open",
        "steps",
        ["run_id"],
        unique=False,
        schema="flowstone",
        postgresql_where=sa.text(
            "state NOT IN ('cancelled', 'failed', 'skipped', 'succeeded', 'upstream_failed')"
        ),
    )
    op.create_index(
        "ix_steps_ready",
        "steps",
        ["run_id", "id"],
        unique=False,
        schema="flowstone",
        postgresql_where=sa.text("state = 'pending' AND open_deps = 0"),
    )
    op.create_table(
        "attempts",
        sa.Column("step_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("token", sa.Uuid(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("error_type", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("traceback", sa.Text(), nullable=True),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(outcome IS NULL) = (finished_at IS NULL)", name=op.f("ck_attempts_finished_at")
        ),
        sa.CheckConstraint("number >= 1", name=op.f("ck_attempts_number")),
        sa.ForeignKeyConstraint(
            ["step_id"], ["flowstone.steps.id"], name=op.f("fk_attempts_step_id")
        ),
        sa.PrimaryKeyConstraint("step_id", "number", name=op.f("pk_attempts")),
        sa.UniqueConstraint("token", name=op.f("uq_attempts_token")),
        schema="flowstone",
        comment="Each try at a step, and how it ended",
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=True),
        sa.Column("step_id", sa.BigInteger(), nullable=True),
        sa.Column(
            "details",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["run_id"], ["flowstone.runs.id"], name=op.f("fk_audit_run_id")),
        sa.ForeignKeyConstraint(["step_id"], ["flowstone.steps.id"], name=op.f("fk_audit_step_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        schema="flowstone",
        comment="Every change of state, append-only",
    )
    op.create_index("ix_audit_run_id", "audit", ["run_id"], unique=False, schema="flowstone")
    op.create_table(
        "edges",
        sa.Column("downstream", sa.BigInteger(), nullable=False),
        sa.Column("upstream", sa.BigInteger(), nullable=False),
        sa.Column(
            "position", sa.Integer(), nullable=False, comment="The place among the step's inputs"
        ),
        sa.Column(
            "pinned",
            sa.Boolean(),
            nullable=False,
            comment="The upstream step is one of an earlier run",
        ),
        sa.ForeignKeyConstraint(
            ["downstream"], ["flowstone.steps.id"], name=op.f("fk_edges_downstream")
        ),
        sa.ForeignKeyConstraint(
            ["upstream"], ["flowstone.steps.id"], name=op.f("fk_edges_upstream")
        ),
        sa.PrimaryKeyConstraint("downstream", "upstream", name=op.f("pk_edges")),
        schema="flowstone",
        comment="What each step of a plan reads",
    )
    op.create_index("ix_edges_upstream", "edges", ["upstream"], unique=False, schema="flowstone")
    op.create_table(
        "outputs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("step_id", sa.BigInteger(), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False, comment="Bytes"),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name=op.f("ck_outputs_sha256")),
        sa.CheckConstraint("size >= 0", name=op.f("ck_outputs_size")),
        sa.ForeignKeyConstraint(
            ["step_id"], ["flowstone.steps.id"], name=op.f("fk_outputs_step_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outputs")),
        sa.UniqueConstraint("location", name=op.f("uq_outputs_location")),
        sa.UniqueConstraint("step_id", name=op.f("uq_outputs_step_id")),
        schema="flowstone",
        comment="The stored value of each successful step; immutable",
    )
    op.create_table(
        "latest",
        sa.Column("asset", sa.Text(), nullable=False),
        sa.Column("partition", sa.Text(), nullable=False),
        sa.Column("output_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["output_id"], ["flowstone.outputs.id"], name=op.f("fk_latest_output_id")
        ),
        sa.PrimaryKeyConstraint("asset", "partition", name=op.f("pk_latest")),
        schema="flowstone",
        comment="The latest success of each asset x partition, in the order of commits",
    )
    op.create_table(
        "lineage",
        sa.Column("step_id", sa.BigInteger(), nullable=False),
        sa.Column("upstream_step_id", sa.BigInteger(), nullable=False),
        sa.Column("upstream_output_id", sa.BigInteger(), nullable=False),
        sa.Column("upstream_sha256", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["step_id"], ["flowstone.steps.id"], name=op.f("fk_lineage_step_id")
        ),
        sa.ForeignKeyConstraint(
            ["upstream_output_id"],
            ["flowstone.outputs.id"],
            name=op.f("fk_lineage_upstream_output_id"),
        ),
        sa.ForeignKeyConstraint(
            ["upstream_step_id"], ["flowstone.steps.id"], name=op.f("fk_lineage_upstream_step_id")
        ),
        sa.PrimaryKeyConstraint("step_id", "upstream_step_id", name=op.f("pk_lineage")),
        schema="flowstone",
        comment="The exact outputs that each committed step has read",
    )
    op.create_index(
        "ix_lineage_upstream_step_id",
        "lineage",
        ["upstream_step_id"],
        unique=False,
        schema="flowstone",
    )
    op.execute(REFUSE_CHANGE)
    op.execute(APPEND_ONLY)


def downgrade() -> None:
    op.drop_index("ix_lineage_upstream_step_id", table_name="lineage", schema="flowstone")
    op.drop_table("lineage", schema="flowstone")
    op.drop_table("latest", schema="flowstone")
    op.drop_table("outputs", schema="flowstone")
    op.drop_index("ix_edges_upstream", table_name="edges", schema="flowstone")
    op.drop_table("edges", schema="flowstone")
    op.drop_index("ix_audit_run_id", table_name="audit", schema="flowstone")
    op.drop_table("audit", schema="flowstone")
    op.drop_table("attempts", schema="flowstone")
    op.drop_index(
        "ix_steps_ready",
        table_name="steps",
        schema="flowstone",
        postgresql_where=sa.text("state = 'pending' AND open_deps = 0"),
    )
    op.drop_index(
        "ix_steps_open",
        table_name="steps",
        schema="flowstone",
        postgresql_where=sa.text(
            "state NOT IN ('cancelled', 'failed', 'skipped', 'succeeded', 'upstream_failed')"
        ),
    )
    op.drop_index(
        "ix_steps_lease",
        table_name="steps",
        schema="flowstone",
        postgresql_where=sa.text("state = 'running'"),
    )
    op.drop_index(
        "ix_steps_in_flight",
        table_name="steps",
        schema="flowstone",
        postgresql_where=sa.text("state IN ('queued', 'running', 'retrying')"),
    )
    op.drop_index(
        "ix_steps_canvas",
        table_name="steps",
        schema="flowstone",
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.drop_index("ix_steps_asset", table_name="steps", schema="flowstone")
    op.drop_table("steps", schema="flowstone")
    op.drop_index(
        "ix_runs_open",
        table_name="runs",
        schema="flowstone",
        postgresql_where=sa.text("state NOT IN ('cancelled', 'failed', 'succeeded')"),
    )
    op.drop_table("runs", schema="flowstone")
    op.execute("DROP FUNCTION flowstone.refuse_change()")
