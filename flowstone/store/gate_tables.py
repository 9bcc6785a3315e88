"""The tables of what steps wait for outside of all workers: gates, votes, notifications.

A gate is an approval that was asked for, or a signal that is to come from outside.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from flowstone.states import DECIDED_GATE_STATES, GateState, sql_list
from flowstone.store.run_tables import steps
from flowstone.store.schema import NOW, SCHEMA, TIME, metadata, only

IS_OPEN: Final = "state = 'open'"
IN_USE: Final = "state IN ('open', 'received')"
DUE_AT: Final = "LEAST(expires_at, remind_at)"
TO_CONTINUE: Final = f"continued_at IS NULL AND state IN ({sql_list(DECIDED_GATE_STATES)})"
"""The condition that the step of a gate is still to go on, as its index has it."""

EVENTS: Final = ("requested", "reminder", "escalated", "decided", "expired", "void", "withdrawn")

gates = Table(
    "gates",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("step_id", BigInteger, ForeignKey(steps.c.id), nullable=False),
    Column("attempt", Integer, nullable=False, comment="The attempt that has asked"),
    Column("state", Text, nullable=False, server_default=GateState.OPEN.value),
    Column("created_at", TIME, nullable=False, server_default=NOW),
    Column("replaces", BigInteger, ForeignKey(f"{SCHEMA}.gates.id"), comment="Asked again after"),
    # What is asked.
    Column("message", Text, nullable=False),
    Column("context", JSONB, nullable=False, comment="What the asset tells those who decide"),
    Column("options", ARRAY(Text), nullable=False, comment="Of which an approval chooses one"),
    Column("subject", Text, comment="The hash of what is to be reviewed"),
    # Who decides.
    Column("approvers", ARRAY(Text), nullable=False, comment="Names and roles; empty is anybody"),
    Column("quorum", Integer, nullable=False, server_default=text("1")),
    Column("four_eyes", Boolean, nullable=False, server_default=text("false")),
    # When.
    Column("expires_at", TIME),
    Column("on_timeout", Text),
    Column("remind_every", Double, comment="Seconds"),
    Column("remind_at", TIME),
    Column("escalation", JSONB, nullable=False, comment="The levels that are still to come"),
    Column("level", Integer, nullable=False, server_default=text("0")),
    Column("notify", ARRAY(Text), comment="Who is told; without it, all that the settings name"),
    # The proposed value, which no reader sees.
    Column("location", Text),
    Column("format", Text),
    Column("size", BigInteger, comment="Bytes"),
    Column("sha256", Text),
    Column("rows", BigInteger),
    Column("io", Text),
    Column("fingerprint", Text, comment="Hashes of code, config and inputs that it was made of"),
    Column("version", Text),
    Column("checks", JSONB(none_as_null=True), comment="What the checks have said of it"),
    # The signal.
    Column("name", Text, comment="What people call the signal"),
    Column("token_hash", Text, comment="The SHA-256 of the token that it comes with"),
    # How it ended.
    Column("closed_at", TIME),
    Column("closed_by", Text),
    Column("channel", Text, comment="By which way the decision or the signal came"),
    Column("reason", Text),
    Column("chosen", Text, comment="One of the options"),
    Column("edited", JSONB(none_as_null=True), comment="What was put in place of the value"),
    Column("difference", JSONB(none_as_null=True), comment="Between what was proposed and that"),
    Column("payload", JSONB(none_as_null=True), comment="What came with the signal"),
    Column("continued_at", TIME, comment="When its step went on"),
    CheckConstraint("kind IN ('approval', 'signal')", "kind"),
    CheckConstraint(only("state", GateState), "state"),
    CheckConstraint("(state = 'open') = (closed_at IS NULL)", "closed_at"),
    CheckConstraint("quorum >= 1", "quorum"),
    CheckConstraint(
        "on_timeout IN ('approve', 'reject', 'escalate', 'fail', 'continue')", "on_timeout"
    ),
    CheckConstraint("(expires_at IS NULL) = (on_timeout IS NULL) OR state <> 'open'", "expires_at"),
    CheckConstraint("remind_every > 0", "remind_every"),
    CheckConstraint("(kind = 'signal') = (num_nonnulls(name, token_hash) = 2)", "signal"),
    CheckConstraint(
        "num_nulls(location, format, size, sha256, io, fingerprint, checks) IN (0, 7)", "value"
    ),
    Index("uq_gates_open", "step_id", unique=True, postgresql_where=text(IS_OPEN)),
    Index(
        "uq_gates_token",
        "token_hash",
        unique=True,
        postgresql_where=text(IN_USE),
    ),
    Index("ix_gates_token", "token_hash", "id", postgresql_where=text("token_hash IS NOT NULL")),
    Index("ix_gates_step_id", "step_id"),
    Index("ix_gates_replaces", "replaces", postgresql_where=text("replaces IS NOT NULL")),
    Index("ix_gates_open", "created_at", postgresql_where=text(IS_OPEN)),
    Index("ix_gates_asked", "created_at", "id", postgresql_where=text("kind = 'approval'")),
    Index("ix_gates_due", text(DUE_AT), postgresql_where=text(IS_OPEN)),
    Index("ix_gates_to_continue", "closed_at", postgresql_where=text(TO_CONTINUE)),
    comment="What a step waits for outside of all workers: an approval, or a signal",
)

votes = Table(
    "votes",
    metadata,
    Column("gate_id", BigInteger, ForeignKey(gates.c.id), nullable=False),
    Column("person", Text, nullable=False, comment="The actor without a host"),
    Column("actor", Text, nullable=False),
    Column("approves", Boolean, nullable=False),
    Column("reason", Text),
    Column("chosen", Text),
    Column("channel", Text, nullable=False),
    Column("at", TIME, nullable=False, server_default=NOW),
    PrimaryKeyConstraint("gate_id", "person"),
    comment="What each approver has said; a quorum of them decides",
)

notifications = Table(
    "notifications",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("gate_id", BigInteger, ForeignKey(gates.c.id), nullable=False),
    Column("event", Text, nullable=False),
    Column("created_at", TIME, nullable=False, server_default=NOW),
    Column("due_at", TIME, nullable=False, server_default=NOW, comment="When it is to be told"),
    Column("tries", Integer, nullable=False, server_default=text("0")),
    Column(
        "told",
        ARRAY(Text),
        nullable=False,
        server_default=text("'{}'::text[]"),
        comment="Who has been told, by name",
    ),
    Column("done_at", TIME, comment="When all had been told, or nobody was tried any longer"),
    Column("error", Text, comment="Why the last try has failed"),
    CheckConstraint(f"event IN ({', '.join(map(repr, EVENTS))})", "event"),
    Index("ix_notifications_gate_id", "gate_id"),
    Index("ix_notifications_due", "due_at", postgresql_where=text("done_at IS NULL")),
    Index("ix_notifications_error", "id", postgresql_where=text("error IS NOT NULL")),
    comment="What is to be told of gates; written with the change itself, so that none is lost",
)

early_signals = Table(
    "early_signals",
    metadata,
    Column("token_hash", Text, primary_key=True),
    Column("payload", JSONB, nullable=False),
    Column("actor", Text, nullable=False),
    Column("channel", Text, nullable=False),
    Column("received_at", TIME, nullable=False, server_default=NOW),
    Column("step_id", BigInteger, ForeignKey(steps.c.id, ondelete="CASCADE"), nullable=False),
    Index("ix_early_signals_step_id", "step_id"),
    comment="Signals with a token of FlowStone's that came before their step has begun to wait",
)
