"""Backfills, the keys of dynamic partitions, and the order in which steps of a run start."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SCHEMA = "flowstone"
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "backfills",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column(
            "max_parallel", sa.Integer(), comment="The most steps that are dispatched at once"
        ),
        sa.Column("stop_ratio", sa.Double(), comment="The part of failed steps at which it pauses"),
        sa.Column("hours", sa.Text(), comment="When steps may start, such as 22:00-06:00"),
        sa.Column(
            "zone", sa.Text(), server_default="UTC", nullable=False, comment="Of these hours"
        ),
        sa.CheckConstraint("max_parallel > 0", name=op.f("ck_backfills_max_parallel")),
        sa.CheckConstraint(
            "stop_ratio > 0 AND stop_ratio <= 1", name=op.f("ck_backfills_stop_ratio")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backfills")),
        schema=SCHEMA,
        comment="What computes many partitions; its runs refer to it",
    )
    op.create_table(
        "dynamic_keys",
        sa.Column("name", sa.Text(), nullable=False, comment="Of the dynamic partitions"),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("added_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("added_by", sa.Text(), nullable=False),
        sa.CheckConstraint("length(key) <= 512", name=op.f("ck_dynamic_keys_key")),
        sa.PrimaryKeyConstraint("name", "key", name=op.f("pk_dynamic_keys")),
        schema=SCHEMA,
        comment="The keys that dynamic partitions have now",
    )
    op.create_index(
        "ix_dynamic_keys_position",
        "dynamic_keys",
        ["name", "position"],
        unique=False,
        schema=SCHEMA,
    )
    op.add_column(
        "outputs",
        sa.Column(
            "cut",
            sa.Text(),
            comment="How the partitions were cut of which it is one; none for keys",
        ),
        schema=SCHEMA,
    )
    op.add_column(
        "quarantine",
        sa.Column(
            "cut",
            sa.Text(),
            comment="How the partitions were cut of which it is one; none for keys",
        ),
        schema=SCHEMA,
    )
    op.add_column("runs", sa.Column("backfill", sa.BigInteger()), schema=SCHEMA)
    op.add_column(
        "runs",
        sa.Column("opens_at", TIME, comment="Until when nothing of it is dispatched"),
        schema=SCHEMA,
    )
    op.add_column(
        "runs",
        sa.Column("pause_reason", sa.Text(), comment="Why it is paused, or was last"),
        schema=SCHEMA,
    )
    op.add_column(
        "runs",
        sa.Column(
            "drains",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="Whether what runs may end by itself, where it is being cancelled",
        ),
        schema=SCHEMA,
    )
    op.create_index(
        "ix_runs_backfill",
        "runs",
        ["backfill"],
        unique=False,
        schema=SCHEMA,
        postgresql_where=sa.text("backfill IS NOT NULL"),
    )
    op.create_foreign_key(
        op.f("fk_runs_backfill"),
        "runs",
        "backfills",
        ["backfill"],
        ["id"],
        source_schema=SCHEMA,
        referent_schema=SCHEMA,
    )
    op.add_column(
        "steps",
        sa.Column(
            "place",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="What is ready starts in this order, and then in that of the ids",
        ),
        schema=SCHEMA,
    )
    op.add_column(
        "steps",
        sa.Column(
            "awaits_until", TIME, comment="Until when an output of another run is waited for"
        ),
        schema=SCHEMA,
    )
    op.drop_index(
        op.f("ix_steps_ready"),
        table_name="steps",
        schema=SCHEMA,
        postgresql_where="((takes IS NULL) AND (state = 'pending'::text) AND (open_deps = 0))",
    )
    op.create_index(
        "ix_steps_ready",
        "steps",
        ["run_id", "place", "id"],
        unique=False,
        schema=SCHEMA,
        postgresql_where=sa.text("takes IS NULL AND state = 'pending' AND open_deps = 0"),
    )
    op.drop_index(
        op.f("ix_steps_slots_wanted"),
        table_name="steps",
        schema=SCHEMA,
        postgresql_where="((takes IS NOT NULL) AND (state = 'pending'::text) AND (open_deps = 0))",
    )
    op.create_index(
        "ix_steps_slots_wanted",
        "steps",
        ["run_id", "takes", "place", "id"],
        unique=False,
        schema=SCHEMA,
        postgresql_where=sa.text("takes IS NOT NULL AND state = 'pending' AND open_deps = 0"),
    )
    op.create_index(
        "ix_steps_awaited",
        "steps",
        ["awaits_until"],
        unique=False,
        schema=SCHEMA,
        postgresql_where=sa.text("state = 'pending' AND awaits_until IS NOT NULL"),
    )
    op.create_index(
        "ix_steps_failed",
        "steps",
        ["asset", "partition", "id"],
        unique=False,
        schema=SCHEMA,
        postgresql_where=sa.text("state IN ('failed', 'upstream_failed')"),
    )


def downgrade() -> None:
    op.drop_index(
        "ix_steps_failed",
        table_name="steps",
        schema=SCHEMA,
        postgresql_where=sa.text("state IN ('failed', 'upstream_failed')"),
    )
    op.drop_index(
        "ix_steps_awaited",
        table_name="steps",
        schema=SCHEMA,
        postgresql_where=sa.text("state = 'pending' AND awaits_until IS NOT NULL"),
    )
    op.drop_index(
        "ix_steps_slots_wanted",
        table_name="steps",
        schema=SCHEMA,
        postgresql_where=sa.text("takes IS NOT NULL AND state = 'pending' AND open_deps = 0"),
    )
    op.create_index(
        op.f("ix_steps_slots_wanted"),
        "steps",
        ["run_id", "takes", sa.text("(id + 0)")],
        unique=False,
        schema=SCHEMA,
        postgresql_where="((takes IS NOT NULL) AND (state = 'pending'::text) AND (open_deps = 0))",
    )
    op.drop_index(
        "ix_steps_ready",
        table_name="steps",
        schema=SCHEMA,
        postgresql_where=sa.text("takes IS NULL AND state = 'pending' AND open_deps = 0"),
    )
    op.create_index(
        op.f("ix_steps_ready"),
        "steps",
        ["run_id", sa.text("(id + 0)")],
        unique=False,
        schema=SCHEMA,
        postgresql_where="((takes IS NULL) AND (state = 'pending'::text) AND (open_deps = 0))",
    )
    op.drop_column("steps", "awaits_until", schema=SCHEMA)
    op.drop_column("steps", "place", schema=SCHEMA)
    op.drop_constraint(op.f("fk_runs_backfill"), "runs", schema=SCHEMA, type_="foreignkey")
    op.drop_index(
        "ix_runs_backfill",
        table_name="runs",
        schema=SCHEMA,
        postgresql_where=sa.text("backfill IS NOT NULL"),
    )
    op.drop_column("runs", "drains", schema=SCHEMA)
    op.drop_column("runs", "pause_reason", schema=SCHEMA)
    op.drop_column("runs", "opens_at", schema=SCHEMA)
    op.drop_column("runs", "backfill", schema=SCHEMA)
    op.drop_column("quarantine", "cut", schema=SCHEMA)
    op.drop_column("outputs", "cut", schema=SCHEMA)
    op.drop_index("ix_dynamic_keys_position", table_name="dynamic_keys", schema=SCHEMA)
    op.drop_table("dynamic_keys", schema=SCHEMA)
    op.drop_table("backfills", schema=SCHEMA)
