"""Gates: approvals and signals that steps wait for, votes, and what is to be told of them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SCHEMA = "flowstone"
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:

    op.create_table(
        "early_signals",
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("payload", JSONB(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("received_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("step_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["step_id"],
            ["flowstone.steps.id"],
            name=op.f("fk_early_signals_step_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_early_signals")),
        schema=SCHEMA,
        comment="Signals with a token of FlowStone's that came before their step has begun to wait",
    )
    op.create_index(
        "ix_early_signals_step_id", "early_signals", ["step_id"], unique=False, schema=SCHEMA
    )
    op.create_table(
        "gates",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("step_id", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False, comment="The attempt that has asked"),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("replaces", sa.BigInteger(), comment="Asked again after"),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column(
            "context", JSONB(), nullable=False, comment="What the asset tells those who decide"
        ),
        sa.Column(
            "options", ARRAY(sa.Text()), nullable=False, comment="Of which an approval chooses one"
        ),
        sa.Column("subject", sa.Text(), comment="The hash of what is to be reviewed"),
        sa.Column(
            "approvers",
            ARRAY(sa.Text()),
            nullable=False,
            comment="Names and roles; empty is anybody",
        ),
        sa.Column("quorum", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("four_eyes", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("expires_at", TIME),
        sa.Column("on_timeout", sa.Text()),
        sa.Column("remind_every", sa.Double(), comment="Seconds"),
        sa.Column("remind_at", TIME),
        sa.Column(
            "escalation", JSONB(), nullable=False, comment="The levels that are still to come"
        ),
        sa.Column("level", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "notify",
            ARRAY(sa.Text()),
            comment="Who is told; without it, all that the settings name",
        ),
        sa.Column("location", sa.Text()),
        sa.Column("format", sa.Text()),
        sa.Column("size", sa.BigInteger(), comment="Bytes"),
        sa.Column("sha256", sa.Text()),
        sa.Column("rows", sa.BigInteger()),
        sa.Column("io", sa.Text()),
        sa.Column(
            "fingerprint",
            sa.Text(),
            comment="Hashes of code, config and inputs that it was made of",
        ),
        sa.Column("version", sa.Text()),
        sa.Column("checks", JSONB(), comment="What the checks have said of it"),
        sa.Column("name", sa.Text(), comment="What people call the signal"),
        sa.Column("token_hash", sa.Text(), comment="The SHA-256 of the token that it comes with"),
        sa.Column("closed_at", TIME),
        sa.Column("closed_by", sa.Text()),
        sa.Column("channel", sa.Text(), comment="By which way the decision or the signal came"),
        sa.Column("reason", sa.Text()),
        sa.Column("chosen", sa.Text(), comment="One of the options"),
        sa.Column("edited", JSONB(), comment="What was put in place of the value"),
        sa.Column("difference", JSONB(), comment="Between what was proposed and that"),
        sa.Column("payload", JSONB(), comment="What came with the signal"),
        sa.Column("continued_at", TIME, comment="When its step went on"),
        sa.CheckConstraint(
            "(expires_at IS NULL) = (on_timeout IS NULL) OR state <> 'open'",
            name=op.f("ck_gates_expires_at"),
        ),
        sa.CheckConstraint(
            "(kind = 'signal') = (num_nonnulls(name, token_hash) = 2)", name=op.f("ck_gates_signal")
        ),
        sa.CheckConstraint(
            "(state = 'open') = (closed_at IS NULL)", name=op.f("ck_gates_closed_at")
        ),
        sa.CheckConstraint("kind IN ('approval', 'signal')", name=op.f("ck_gates_kind")),
        sa.CheckConstraint(
            "on_timeout IN ('approve', 'reject', 'escalate', 'fail', 'continue')",
            name=op.f("ck_gates_on_timeout"),
        ),
        sa.CheckConstraint(
            "state IN ('approved', 'expired', 'open', 'received', 'rejected', 'void', 'withdrawn')",
            name=op.f("ck_gates_state"),
        ),
        sa.CheckConstraint(
            "num_nulls(location, format, size, sha256, io, fingerprint, checks) IN (0, 7)",
            name=op.f("ck_gates_value"),
        ),
        sa.CheckConstraint("quorum >= 1", name=op.f("ck_gates_quorum")),
        sa.CheckConstraint("remind_every > 0", name=op.f("ck_gates_remind_every")),
        sa.ForeignKeyConstraint(
            ["replaces"], ["flowstone.gates.id"], name=op.f("fk_gates_replaces")
        ),
        sa.ForeignKeyConstraint(["step_id"], ["flowstone.steps.id"], name=op.f("fk_gates_step_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gates")),
        schema=SCHEMA,
        comment="What a step waits for outside of all workers: an approval, or a signal",
    )
    op.create_index(
        "ix_gates_asked",
        "gates",
        ["created_at", "id"],
        unique=False,
        schema=SCHEMA,
        postgresql_where=sa.text("kind = 'approval'"),
    )
    op.create_index(
        "ix_gates_due",
        "gates",
        [sa.literal_column("LEAST(expires_at, remind_at)")],
        unique=False,
        schema=SCHEMA,
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_index(
        "ix_gates_open",
        "gates",
        ["created_at"],
        unique=False,
        schema=SCHEMA,
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_index(
        "ix_gates_replaces",
        "gates",
        ["replaces"],
        unique=False,
        schema=SCHEMA,
        postgresql_where=sa.text("replaces IS NOT NULL"),
    )
    op.create_index("ix_gates_step_id", "gates", ["step_id"], unique=False, schema=SCHEMA)
    op.create_index(
        "ix_gates_token",
        "gates",
        ["token_hash", "id"],
        unique=False,
        schema=SCHEMA,
        postgresql_where=sa.text("token_hash IS NOT NULL"),
    )
    op.create_index(
        "ix_gates_to_continue",
        "gates",
        ["closed_at"],
        unique=False,
        schema=SCHEMA,
        postgresql_where=sa.text(
            "continued_at IS NULL AND state IN ('approved', 'expired', 'received', 'rejected')"
        ),
    )
    op.create_index(
        "uq_gates_open",
        "gates",
        ["step_id"],
        unique=True,
        schema=SCHEMA,
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_index(
        "uq_gates_token",
        "gates",
        ["token_hash"],
        unique=True,
        schema=SCHEMA,
        postgresql_where=sa.text("state IN ('open', 'received')"),
    )
    op.create_table(
        "notifications",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("gate_id", sa.BigInteger(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "due_at",
            TIME,
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it is to be told",
        ),
        sa.Column("tries", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "told",
            ARRAY(sa.Text()),
            server_default=sa.text("'{}'::text[]"),
            nullable=False,
            comment="Who has been told, by name",
        ),
        sa.Column(
            "done_at", TIME, comment="When all had been told, or nobody was tried any longer"
        ),
        sa.Column("error", sa.Text(), comment="Why the last try has failed"),
        sa.CheckConstraint(
            "event IN ('requested', 'reminder', 'escalated', 'decided', 'expired', 'void', 'withdrawn')",
            name=op.f("ck_notifications_event"),
        ),
        sa.ForeignKeyConstraint(
            ["gate_id"], ["flowstone.gates.id"], name=op.f("fk_notifications_gate_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notifications")),
        schema=SCHEMA,
        comment="What is to be told of gates; written with the change itself, so that none is lost",
    )
    op.create_index(
        "ix_notifications_due",
        "notifications",
        ["due_at"],
        unique=False,
        schema=SCHEMA,
        postgresql_where=sa.text("done_at IS NULL"),
    )
    op.create_index(
        "ix_notifications_error",
        "notifications",
        ["id"],
        unique=False,
        schema=SCHEMA,
        postgresql_where=sa.text("error IS NOT NULL"),
    )
    op.create_index(
        "ix_notifications_gate_id", "notifications", ["gate_id"], unique=False, schema=SCHEMA
    )
    op.create_table(
        "votes",
        sa.Column("gate_id", sa.BigInteger(), nullable=False),
        sa.Column("person", sa.Text(), nullable=False, comment="The actor without a host"),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("approves", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("chosen", sa.Text()),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["gate_id"], ["flowstone.gates.id"], name=op.f("fk_votes_gate_id")),
        sa.PrimaryKeyConstraint("gate_id", "person", name=op.f("pk_votes")),
        schema=SCHEMA,
        comment="What each approver has said; a quorum of them decides",
    )
    op.add_column(
        "steps",
        sa.Column("gate", sa.BigInteger(), comment="The gate that it waits at, or goes on behind"),
        schema=SCHEMA,
    )
    op.create_index(
        "ix_steps_behind_gate",
        "steps",
        ["asset", "partition"],
        unique=False,
        schema=SCHEMA,
        postgresql_where=sa.text("state = 'pending' AND gate IS NOT NULL"),
    )
    op.create_index(
        "ix_steps_waiting",
        "steps",
        ["run_id"],
        unique=False,
        schema=SCHEMA,
        postgresql_where=sa.text("state IN ('waiting_approval', 'waiting_signal')"),
    )
    op.create_index(
        "ix_steps_put_off",
        "steps",
        ["run_id"],
        unique=False,
        schema=SCHEMA,
        postgresql_where=sa.text("lower(state) IN ('joined', 'retrying')"),
    )
    op.create_check_constraint(
        op.f("ck_steps_gate"),
        "steps",
        "state NOT IN ('waiting_approval', 'waiting_signal') OR gate IS NOT NULL AND canvas IS NULL",
        schema=SCHEMA,
    )


def downgrade() -> None:
    op.drop_constraint(op.f("ck_steps_gate"), "steps", schema=SCHEMA)
    op.drop_index(
        "ix_steps_put_off",
        table_name="steps",
        schema=SCHEMA,
        postgresql_where=sa.text("lower(state) IN ('joined', 'retrying')"),
    )
    op.drop_index(
        "ix_steps_waiting",
        table_name="steps",
        schema=SCHEMA,
        postgresql_where=sa.text("state IN ('waiting_approval', 'waiting_signal')"),
    )
    op.drop_column("steps", "gate", schema=SCHEMA)
    op.drop_table("votes", schema=SCHEMA)
    op.drop_table("notifications", schema=SCHEMA)
    op.drop_table("gates", schema=SCHEMA)
    op.drop_table("early_signals", schema=SCHEMA)
