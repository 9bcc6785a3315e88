"""The tables of what runs: runs, steps, edges, attempts."""

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
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from flowstone.partition_key import MAX_KEY_LENGTH
from flowstone.states import (
    ACTIVE_STEP_STATES,
    FINAL_RUN_STATES,
    FINAL_STEP_STATES,
    WAITING_STEP_STATES,
    RunState,
    StepState,
    is_open,
    is_put_off,
    sql_list,
)
from flowstone.store.schema import NOW, SCHEMA, TIME, exactly_in, metadata, only

SINGLE_FLIGHT: Final = "uq_steps_active"
"""The index that lets one step of an asset x partition be active, over all runs."""

runs = Table(
    "runs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("state", Text, nullable=False, server_default=RunState.REQUESTED.value),
    Column("driver", Text, nullable=False),
    Column("request", JSONB, nullable=False),
    Column("config", JSONB, nullable=False),
    Column("max_in_flight", Integer, nullable=False),
    Column("actor", Text, nullable=False),
    Column("error", JSONB),
    Column("created_at", TIME, nullable=False, server_default=NOW),
    Column("planned_at", TIME),
    Column("started_at", TIME),
    Column("finished_at", TIME),
    Column("cancel_requested_at", TIME),
    Column("cancel_grace", Double, comment="Seconds that running steps have to end by themselves"),
    Column("cancel_reason", Text),
    Column(
        "resumed_from",
        Uuid,
        ForeignKey(f"{SCHEMA}.runs.id"),
        comment="The run that this one goes on with",
    ),
    Column("idempotency_key", Text, comment="Chosen by the caller; a second request gets this run"),
    Column("lease_until", TIME, comment="Of an inline run: until when its process counts as alive"),
    Column("pruned_at", TIME, comment="When the first of its steps was pruned"),
    Column(
        "priority",
        SmallInteger,
        nullable=False,
        server_default=text("1"),
        comment="The level, 0 for the most urgent",
    ),
    Column("deadline_at", TIME, comment="When the run fails if it has not ended"),
    Column(
        "planned_config",
        JSONB,
        comment="The config of each asset of the plan, defaults included and without secrets",
    ),
    Column(
        "boost",
        SmallInteger,
        nullable=False,
        server_default=text("0"),
        comment="The levels by which it has moved up, as it starves",
    ),
    Column("waits_since", TIME, comment="When it was seen to wait, or to start a step, last"),
    UniqueConstraint("resumed_from"),
    UniqueConstraint("idempotency_key"),
    CheckConstraint(only("state", RunState), "state"),
    CheckConstraint("driver IN ('celery', 'inline')", "driver"),
    CheckConstraint("max_in_flight > 0", "max_in_flight"),
    CheckConstraint(exactly_in("finished_at", FINAL_RUN_STATES), "finished_at"),
    CheckConstraint(
        "num_nulls(cancel_requested_at, cancel_grace, cancel_reason) IN (0, 3)", "cancel"
    ),
    CheckConstraint("cancel_grace >= 0", "cancel_grace"),
    CheckConstraint("priority BETWEEN 0 AND 2", "priority"),
    CheckConstraint("boost BETWEEN 0 AND 2", "boost"),
    Index(
        "ix_runs_open",
        "created_at",
        postgresql_where=text(f"state NOT IN ({sql_list(FINAL_RUN_STATES)})"),
    ),
    comment="One request to materialize something",
)

steps = Table(
    "steps",
    metadata,
    Column("id", BigInteger, Identity(always=False), primary_key=True),
    Column("run_id", Uuid, ForeignKey(runs.c.id), nullable=False),
    Column("asset", Text, nullable=False),
    Column("partition", Text, nullable=False),
    Column("state", Text, nullable=False, server_default=StepState.PENDING.value),
    Column("reason", Text, nullable=False, comment="Why the plan holds this step"),
    Column("queue", Text, nullable=False),
    Column("open_deps", Integer, nullable=False, comment="Dependencies that have not committed"),
    Column("feeds", BigInteger, comment="The one step of the run that reads this one, if just one"),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("token", Uuid, comment="The fencing token of the running attempt"),
    Column("lease_until", TIME),
    Column("retry_at", TIME),
    Column("canvas", Uuid, comment="The chain or chord that carries the step now"),
    Column("error", JSONB),
    Column("queued_at", TIME),
    Column("started_at", TIME),
    Column("finished_at", TIME),
    Column(
        "reuses",
        BigInteger,
        ForeignKey(f"{SCHEMA}.steps.id"),
        comment="The step whose output stands for this one's",
    ),
    Column(
        "joined_to",
        BigInteger,
        ForeignKey(f"{SCHEMA}.steps.id"),
        comment="The step of another run that this one waits for, or has waited for",
    ),
    Column("fingerprint", Text, comment="What the output of joined_to must be made of to serve"),
    Column("tainted", Text, comment="Why its output will be stale from the beginning"),
    Column("takes", JSONB(none_as_null=True), comment="Slots by the key of the limit"),
    Column("soft_timeout", Double, comment="Seconds after which an attempt is interrupted"),
    Column("hard_timeout", Double, comment="Seconds after which its process is killed"),
    Column(
        "max_lost",
        Integer,
        nullable=False,
        server_default=text("3"),
        comment="How often the process may die that runs the step",
    ),
    Column("lost", Integer, nullable=False, server_default=text("0"), comment="How often it has"),
    Column(
        "failures",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="Attempts that have ended with an error",
    ),
    Column("starts_at", TIME, comment="The start that its rate has promised to the next attempt"),
    Column("ends_by", TIME, comment="When the process of the running attempt is killed"),
    Column("level", SmallInteger, comment="The urgency of its last message, 0 for the first"),
    # No foreign key: the gate has one to its step.
    Column("gate", BigInteger, comment="The gate that it waits at, or goes on behind"),
    UniqueConstraint("run_id", "asset", "partition"),
    CheckConstraint(only("state", StepState), "state"),
    CheckConstraint("open_deps >= 0", "open_deps"),
    CheckConstraint(f"length(partition) <= {MAX_KEY_LENGTH}", "partition"),
    CheckConstraint(exactly_in("finished_at", FINAL_STEP_STATES), "finished_at"),
    CheckConstraint(
        "(state = 'running') = (token IS NOT NULL) AND (token IS NULL) = (lease_until IS NULL)",
        "lease",
    ),
    CheckConstraint("(state = 'retrying') = (retry_at IS NOT NULL)", "retry_at"),
    CheckConstraint("state <> 'joined' OR joined_to IS NOT NULL", "joined_to"),
    CheckConstraint(
        f"state NOT IN ({sql_list(WAITING_STEP_STATES)}) OR gate IS NOT NULL AND canvas IS NULL",
        "gate",
    ),
    Index(
        SINGLE_FLIGHT,
        "asset",
        "partition",
        unique=True,
        postgresql_where=text(f"state IN ({sql_list(ACTIVE_STEP_STATES)})"),
    ),
    Index("ix_steps_joined_to", "joined_to", postgresql_where=text("state = 'joined'")),
    Index(
        "ix_steps_ready",
        "run_id",
        # Not the plain id: PostgreSQL would walk along the primary key for the first few of a run.
        text("(id + 0)"),
        postgresql_where=text("takes IS NULL AND state = 'pending' AND open_deps = 0"),
    ),
    Index(
        "ix_steps_in_flight",
        "run_id",
        postgresql_where=text("state IN ('queued', 'running', 'retrying') AND canvas IS NOT NULL"),
    ),
    Index(
        "ix_steps_open",
        "run_id",
        postgresql_where=text(is_open("state")),
    ),
    Index("ix_steps_retry_at", "retry_at", postgresql_where=text("state = 'retrying'")),
    Index("ix_steps_lease", "lease_until", postgresql_where=text("state = 'running'")),
    Index("ix_steps_canvas", "canvas", postgresql_where=text("state = 'queued'")),
    Index(
        "ix_steps_waiting",
        "run_id",
        postgresql_where=text(f"state IN ({sql_list(WAITING_STEP_STATES)})"),
    ),
    Index(
        "ix_steps_put_off",
        "run_id",
        postgresql_where=text(is_put_off("state")),
    ),
    Index(
        "ix_steps_behind_gate",
        "asset",
        "partition",
        postgresql_where=text("state = 'pending' AND gate IS NOT NULL"),
    ),
    Index("ix_steps_asset", "asset", "partition"),
    Index("ix_steps_reuses", "reuses", postgresql_where=text("reuses IS NOT NULL")),
    Index("ix_steps_has_joined", "joined_to", postgresql_where=text("joined_to IS NOT NULL")),
    Index(
        "ix_steps_slots_taken",
        "id",
        postgresql_where=text(
            "takes IS NOT NULL AND canvas IS NOT NULL"
            " AND state IN ('queued', 'running', 'retrying')"
        ),
    ),
    Index(
        "ix_steps_slots_wanted",
        "run_id",
        "takes",
        text("(id + 0)"),
        postgresql_where=text("takes IS NOT NULL AND state = 'pending' AND open_deps = 0"),
    ),
    comment="One asset x partition inside one run: the materialization record",
)

edges = Table(
    "edges",
    metadata,
    Column("downstream", BigInteger, ForeignKey(steps.c.id), nullable=False),
    Column("upstream", BigInteger, ForeignKey(steps.c.id), nullable=False),
    Column("position", Integer, nullable=False, comment="The place among the step's inputs"),
    Column("pinned", Boolean, nullable=False, comment="The upstream step is one of an earlier run"),
    Column(
        "optional",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="The reader runs without the upstream output if there is none",
    ),
    PrimaryKeyConstraint("downstream", "upstream"),
    Index("ix_edges_upstream", "upstream"),
    comment="What each step of a plan reads",
)

attempts = Table(
    "attempts",
    metadata,
    Column("step_id", BigInteger, ForeignKey(steps.c.id), nullable=False),
    Column("number", Integer, nullable=False),
    Column("token", Uuid, nullable=False, unique=True),
    Column("worker", Text, nullable=False),
    Column("outcome", Text),
    Column("error_type", Text),
    Column("error_message", Text),
    Column("traceback", Text),
    Column("started_at", TIME, nullable=False, server_default=NOW),
    Column("finished_at", TIME),
    Column("release", Text, comment="What FLOWSTONE_RELEASE said of the worker's code"),
    PrimaryKeyConstraint("step_id", "number"),
    CheckConstraint("number >= 1", "number"),
    CheckConstraint("(outcome IS NULL) = (finished_at IS NULL)", "finished_at"),
    Index("ix_attempts_message", "finished_at", postgresql_where=text("error_message IS NOT NULL")),
    comment="Each try at a step, and how it ended",
)
