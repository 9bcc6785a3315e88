"""Repairs counted by rule; what workers do; beat's last tick; the mark in the broker."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SCHEMA = "flowstone"
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "repairs",
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column(
            "repaired",
            sa.BigInteger(),
            nullable=False,
            server_default=sa.text("0"),
            comment="What it has put right so far",
        ),
        sa.Column("last_at", TIME, nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("rule", name=op.f("pk_repairs")),
        schema=SCHEMA,
        comment="One row for each rule of the reconciler that has put something right",
    )
    op.create_table(
        "sweeps",
        sa.Column("io", sa.Text(), nullable=False),
        sa.Column(
            "place", sa.BigInteger(), nullable=False, comment="How many values lie before it"
        ),
        sa.Column("swept_at", TIME, nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("io", name=op.f("pk_sweeps")),
        schema=SCHEMA,
        comment="One row for each IO manager: where the next sweep goes on in its storage",
    )
    for column in (
        sa.Column("version", sa.Text(), comment="The version of FlowStone that it runs"),
        sa.Column("processes", sa.Integer(), comment="How many steps it can run at once"),
        sa.Column("busy", sa.Integer(), comment="How many messages it works on"),
        sa.Column("taken", sa.BigInteger(), comment="How many messages it has taken so far"),
        sa.Column(
            "taken_at",
            TIME,
            comment="When it was last seen to take one, or to have no process free",
        ),
        sa.Column(
            "clock_ahead",
            sa.Double(),
            comment="Seconds by which its clock is ahead of the ledger's",
        ),
    ):
        op.add_column("workers", column, schema=SCHEMA)
    for column in (
        sa.Column("ticked_at", TIME, comment="When beat has sent for the reconciler last"),
        sa.Column(
            "broker_mark", sa.Text(), comment="What the broker knows as long as it keeps messages"
        ),
        sa.Column("passed_at", TIME, comment="When the reconciler has begun its last full pass"),
    ):
        op.add_column("watch", column, schema=SCHEMA)
    op.add_column(
        "steps",
        sa.Column(
            "level", sa.SmallInteger(), comment="The urgency of its last message, 0 for the first"
        ),
        schema=SCHEMA,
    )


def downgrade() -> None:
    op.drop_column("steps", "level", schema=SCHEMA)
    for column in ("passed_at", "broker_mark", "ticked_at"):
        op.drop_column("watch", column, schema=SCHEMA)
    for column in ("clock_ahead", "taken_at", "taken", "busy", "processes", "version"):
        op.drop_column("workers", column, schema=SCHEMA)
    op.drop_table("sweeps", schema=SCHEMA)
    op.drop_table("repairs", schema=SCHEMA)
