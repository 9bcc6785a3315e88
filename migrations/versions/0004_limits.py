"""Priorities, deadlines, time limits; pools and rates; attempts counted apart; the workers."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SCHEMA = "flowstone"
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    _runs()
    _steps()
    _ready("takes IS NULL AND state = 'pending' AND open_deps = 0")
    _limits()
    _workers()
    _watch()


def _runs() -> None:
    _add(
        "runs",
        sa.Column(
            "priority",
            sa.SmallInteger(),
            nullable=False,
            server_default=sa.text("1"),
            comment="The level, 0 for the most urgent",
        ),
        sa.Column("deadline_at", TIME, comment="When the run fails if it has not ended"),
        sa.Column(
            "planned_config",
            postgresql.JSONB(astext_type=sa.Text()),
            comment="The config of each asset of the plan, defaults included and without secrets",
        ),
        sa.Column(
            "boost",
            sa.SmallInteger(),
            nullable=False,
            server_default=sa.text("0"),
            comment="The levels by which it has moved up, as it starves",
        ),
        sa.Column(
            "waits_since", TIME, comment="When it was seen to wait, or to start a step, last"
        ),
    )
    op.create_check_constraint(
        op.f("ck_runs_priority"), "runs", "priority BETWEEN 0 AND 2", schema=SCHEMA
    )
    op.create_check_constraint(
        op.f("ck_runs_boost"), "runs", "boost BETWEEN 0 AND 2", schema=SCHEMA
    )


def _steps() -> None:
    _add(
        "steps",
        sa.Column(
            "takes",
            postgresql.JSONB(astext_type=sa.Text()),
            comment="Slots by the key of the limit",
        ),
        sa.Column(
            "soft_timeout", sa.Double(), comment="Seconds after which an attempt is interrupted"
        ),
        sa.Column("hard_timeout", sa.Double(), comment="Seconds after which its process is killed"),
        sa.Column(
            "max_lost",
            sa.Integer(),
            nullable=False,
            server_default=sa.text("3"),
            comment="How often the process may die that runs the step",
        ),
        sa.Column(
            "lost",
            sa.Integer(),
            nullable=False,
            server_default=sa.text("0"),
            comment="How often it has",
        ),
        sa.Column(
            "failures",
            sa.Integer(),
            nullable=False,
            server_default=sa.text("0"),
            comment="Attempts that have ended with an error",
        ),
        sa.Column(
            "starts_at", TIME, comment="The start that its rate has promised to the next attempt"
        ),
        sa.Column("ends_by", TIME, comment="When the process of the running attempt is killed"),
    )
    op.create_index(
        "ix_steps_slots_taken",
        "steps",
        ["id"],
        schema=SCHEMA,
        postgresql_where=sa.text(
            "takes IS NOT NULL AND canvas IS NOT NULL"
            " AND state IN ('queued', 'running', 'retrying')"
        ),
    )
    op.create_index(
        "ix_steps_slots_wanted",
        "steps",
        ["run_id", "takes", sa.text("(id + 0)")],
        schema=SCHEMA,
        postgresql_where=sa.text("takes IS NOT NULL AND state = 'pending' AND open_deps = 0"),
    )


def _ready(condition: str) -> None:
    op.drop_index("ix_steps_ready", table_name="steps", schema=SCHEMA)
    op.create_index(
        "ix_steps_ready",
        "steps",
        ["run_id", sa.text("(id + 0)")],
        schema=SCHEMA,
        postgresql_where=sa.text(condition),
    )


def _limits() -> None:
    op.create_table(
        "pools",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "declared",
            sa.Integer(),
            comment="Its slots as the definitions or the settings say",
        ),
        sa.Column("slots", sa.Integer(), comment="What an operator has set instead"),
        sa.Column("actor", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.Column("updated_at", TIME, nullable=False, server_default=sa.text("now()")),
        sa.CheckConstraint("declared >= 0 AND slots >= 0", name=op.f("ck_pools_slots")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_pools")),
        schema=SCHEMA,
        comment="One row for each limit on what is dispatched at once; dispatchers lock it",
    )
    op.create_table(
        "rates",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False, comment="From one start to the next"),
        sa.Column("burst", sa.Integer(), nullable=False),
        sa.Column(
            "next_at",
            TIME,
            nullable=False,
            server_default=sa.text("'-infinity'"),
            comment="When the next attempt may start",
        ),
        sa.Column(
            "free_at",
            TIME,
            nullable=False,
            server_default=sa.text("'-infinity'"),
            comment="The first start that is promised to nobody",
        ),
        sa.CheckConstraint("seconds > 0 AND burst >= 1", name=op.f("ck_rates_rate")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_rates")),
        schema=SCHEMA,
        comment="One token bucket for each rate, shared by all workers",
    )


def _workers() -> None:
    op.create_table(
        "workers",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "queues", postgresql.ARRAY(sa.Text()), nullable=False, comment="What it consumes"
        ),
        sa.Column("started_at", TIME, nullable=False, server_default=sa.text("now()")),
        sa.Column("seen_at", TIME, nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
        schema=SCHEMA,
        comment="The workers that are there, each seen a moment ago",
    )
    op.create_table(
        "unattended",
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("since", TIME, nullable=False, server_default=sa.text("now()")),
        sa.Column("seen_at", TIME, nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("queue", name=op.f("pk_unattended")),
        schema=SCHEMA,
        comment="Queues in which steps wait, and which no worker consumes",
    )


def _watch() -> None:
    op.create_table(
        "watch",
        sa.Column("one", sa.Boolean(), nullable=False, server_default=sa.text("true")),
        sa.Column(
            "seen_at",
            TIME,
            nullable=False,
            server_default=sa.text("now()"),
            comment="The reconciler's last pass",
        ),
        sa.Column(
            "waits_since", TIME, comment="When leases were given time, as passes had been missing"
        ),
        sa.CheckConstraint("one", name=op.f("ck_watch_one")),
        sa.PrimaryKeyConstraint("one", name=op.f("pk_watch")),
        schema=SCHEMA,
        comment="One row: since when the reconciler could see whether leases are renewed",
    )


def _add(table: str, *columns: sa.Column) -> None:
    for column in columns:
        op.add_column(table, column, schema=SCHEMA)


def downgrade() -> None:
    for table in ("watch", "unattended", "workers", "rates", "pools"):
        op.drop_table(table, schema=SCHEMA)
    for index in ("ix_steps_slots_wanted", "ix_steps_slots_taken"):
        op.drop_index(index, table_name="steps", schema=SCHEMA)
    _ready("state = 'pending' AND open_deps = 0")
    columns = {
        "steps": (
            "ends_by",
            "starts_at",
            "failures",
            "lost",
            "max_lost",
            "hard_timeout",
            "soft_timeout",
            "takes",
        ),
        "runs": ("waits_since", "boost", "planned_config", "deadline_at", "priority"),
    }
    op.drop_constraint(op.f("ck_runs_boost"), "runs", schema=SCHEMA)
    op.drop_constraint(op.f("ck_runs_priority"), "runs", schema=SCHEMA)
    for table, names in columns.items():
        for name in names:
            op.drop_column(table, name, schema=SCHEMA)
