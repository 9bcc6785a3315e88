"""The tables of what limits the steps, and of who watches: pools, rates, workers, repairs."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    Integer,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

from flowstone.store.schema import NOW, TIME, metadata

pools = Table(
    "pools",
    metadata,
    Column("name", Text, primary_key=True),
    Column("declared", Integer, comment="Its slots as the definitions or the settings say"),
    Column("slots", Integer, comment="What an operator has set instead"),
    Column("actor", Text),
    Column("reason", Text),
    Column("updated_at", TIME, nullable=False, server_default=NOW),
    CheckConstraint("declared >= 0 AND slots >= 0", "slots"),
    comment="One row for each limit on what is dispatched at once; dispatchers lock it",
)

rates = Table(
    "rates",
    metadata,
    Column("key", Text, primary_key=True),
    Column("seconds", Double, nullable=False, comment="From one start to the next"),
    Column("burst", Integer, nullable=False),
    Column(
        "next_at",
        TIME,
        nullable=False,
        server_default=text("'-infinity'"),
        comment="When the next attempt may start",
    ),
    Column(
        "free_at",
        TIME,
        nullable=False,
        server_default=text("'-infinity'"),
        comment="The first start that is promised to nobody",
    ),
    CheckConstraint("seconds > 0 AND burst >= 1", "rate"),
    comment="One token bucket for each rate, shared by all workers",
)

workers = Table(
    "workers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("queues", ARRAY(Text), nullable=False, comment="What it consumes"),
    Column("started_at", TIME, nullable=False, server_default=NOW),
    Column("seen_at", TIME, nullable=False, server_default=NOW),
    Column("version", Text, comment="The version of FlowStone that it runs"),
    Column("processes", Integer, comment="How many steps it can run at once"),
    Column("busy", Integer, comment="How many messages it works on"),
    Column("taken", BigInteger, comment="How many messages it has taken so far"),
    Column(
        "taken_at", TIME, comment="When it was last seen to take one, or to have no process free"
    ),
    Column("clock_ahead", Double, comment="Seconds by which its clock is ahead of the ledger's"),
    comment="The workers that are there, each seen a moment ago",
)

unattended = Table(
    "unattended",
    metadata,
    Column("queue", Text, primary_key=True),
    Column("since", TIME, nullable=False, server_default=NOW),
    Column("seen_at", TIME, nullable=False, server_default=NOW),
    comment="Queues in which steps wait, and which no worker consumes",
)

watch = Table(
    "watch",
    metadata,
    Column("one", Boolean, primary_key=True, server_default=text("true")),
    Column(
        "seen_at", TIME, nullable=False, server_default=NOW, comment="The reconciler's last pass"
    ),
    Column("waits_since", TIME, comment="When leases were given time, as passes had been missing"),
    Column("ticked_at", TIME, comment="When beat has sent for the reconciler last"),
    Column("broker_mark", Text, comment="What the broker knows as long as it keeps messages"),
    Column("passed_at", TIME, comment="When the reconciler has begun its last full pass"),
    CheckConstraint("one", "one"),
    comment="One row: since when the reconciler could see whether leases are renewed",
)

sweeps = Table(
    "sweeps",
    metadata,
    Column("io", Text, primary_key=True),
    Column("place", BigInteger, nullable=False, comment="How many values lie before it"),
    Column("swept_at", TIME, nullable=False, server_default=NOW),
    comment="One row for each IO manager: where the next sweep goes on in its storage",
)

repairs = Table(
    "repairs",
    metadata,
    Column("rule", Text, primary_key=True),
    Column(
        "repaired",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="What it has put right so far",
    ),
    Column("last_at", TIME, nullable=False, server_default=NOW),
    comment="One row for each rule of the reconciler that has put something right",
)
