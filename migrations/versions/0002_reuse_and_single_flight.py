"""Reuse, single flight, optional inputs, idempotency keys, leases of inline runs, parked retries."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

IN_FLIGHT = "state IN ('queued', 'running', 'retrying')"
ACTIVE = "state IN ('queued', 'retrying', 'running', 'waiting_approval', 'waiting_signal')"


def upgrade() -> None:
    op.add_column(
        "runs",
        sa.Column(
            "idempotency_key",
            sa.Text(),
            comment="Chosen by the caller; a second request gets this run",
        ),
        schema="flowstone",
    )
    op.add_column(
        "runs",
        sa.Column(
            "lease_until",
            sa.DateTime(timezone=True),
            comment="Of an inline run: until when its process counts as alive",
        ),
        schema="flowstone",
    )
    op.create_unique_constraint(
        op.f("uq_runs_idempotency_key"), "runs", ["idempotency_key"], schema="flowstone"
    )
    for name, comment in (
        ("reuses", "The step whose output stands for this one's"),
        ("joined_to", "The step of another run that this one waits for, or has waited for"),
    ):
        op.add_column(
            "steps", sa.Column(name, sa.BigInteger(), comment=comment), schema="flowstone"
        )
        op.create_foreign_key(
            op.f(f"fk_steps_{name}"),
            "steps",
            "steps",
            [name],
            ["id"],
            source_schema="flowstone",
            referent_schema="flowstone",
        )
    op.add_column(
        "steps",
        sa.Column(
            "fingerprint",
            sa.Text(),
            comment="What the output of joined_to must be made of to serve",
        ),
        schema="flowstone",
    )
    op.create_check_constraint(
        op.f("ck_steps_joined_to"),
        "steps",
        "state <> 'joined' OR joined_to IS NOT NULL",
        schema="flowstone",
    )
    # Messages that are under way claim nothing after this: the coordinator sends new ones.
    op.execute(
        "UPDATE flowstone.steps SET state = 'pending', canvas = NULL, queued_at = NULL "
        "WHERE state = 'queued'"
    )
    # The other attempts at the same asset x partition are fenced off; their steps run again.
    op.execute(
        "WITH twice AS (SELECT id, row_number() OVER (PARTITION BY asset, partition ORDER BY id)"
        " AS place FROM flowstone.steps WHERE state IN ('running', 'retrying')), again AS ("
        "UPDATE flowstone.steps s SET state = 'pending', token = NULL, lease_until = NULL,"
        " retry_at = NULL, canvas = NULL, queued_at = NULL"
        " FROM twice WHERE twice.id = s.id AND twice.place > 1 RETURNING s.id)"
        " UPDATE flowstone.attempts a SET outcome = 'lost', finished_at = now()"
        " FROM again WHERE a.step_id = again.id AND a.outcome IS NULL"
    )
    op.create_index(
        "uq_steps_active",
        "steps",
        ["asset", "partition"],
        unique=True,
        schema="flowstone",
        postgresql_where=sa.text(ACTIVE),
    )
    op.create_index(
        "ix_steps_joined_to",
        "steps",
        ["joined_to"],
        schema="flowstone",
        postgresql_where=sa.text("state = 'joined'"),
    )
    op.drop_index("ix_steps_in_flight", table_name="steps", schema="flowstone")
    op.create_index(
        "ix_steps_in_flight",
        "steps",
        ["run_id"],
        schema="flowstone",
        postgresql_where=sa.text(f"{IN_FLIGHT} AND canvas IS NOT NULL"),
    )
    op.create_index(
        "ix_steps_retry_at",
        "steps",
        ["retry_at"],
        schema="flowstone",
        postgresql_where=sa.text("state = 'retrying'"),
    )
    op.add_column(
        "edges",
        sa.Column(
            "optional",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="The reader runs without the upstream output if there is none",
        ),
        schema="flowstone",
    )
    op.add_column(
        "outputs",
        sa.Column(
            "fingerprint",
            sa.Text(),
            comment="Hashes of code, config and inputs that it was made of",
        ),
        schema="flowstone",
    )


def downgrade() -> None:
    op.drop_column("outputs", "fingerprint", schema="flowstone")
    op.drop_column("edges", "optional", schema="flowstone")
    op.drop_index("ix_steps_retry_at", table_name="steps", schema="flowstone")
    op.drop_index("ix_steps_in_flight", table_name="steps", schema="flowstone")
    op.create_index(
        "ix_steps_in_flight",
        "steps",
        ["run_id"],
        schema="flowstone",
        postgresql_where=sa.text(IN_FLIGHT),
    )
    # An older version would let a parked retry wait for a message that nobody has sent.
    op.execute(
        "UPDATE flowstone.steps SET state = 'pending', retry_at = NULL "
        "WHERE state = 'retrying' AND canvas IS NULL"
    )
    op.drop_index("ix_steps_joined_to", table_name="steps", schema="flowstone")
    op.drop_index("uq_steps_active", table_name="steps", schema="flowstone")
    op.execute("UPDATE flowstone.steps SET state = 'pending' WHERE state = 'joined'")
    op.drop_constraint(op.f("ck_steps_joined_to"), "steps", schema="flowstone")
    for name in ("fingerprint", "joined_to", "reuses"):
        op.drop_column("steps", name, schema="flowstone")
    for name in ("lease_until", "idempotency_key"):
        op.drop_column("runs", name, schema="flowstone")
