"""The tables of backfills, and of the keys that are added at run time."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    Identity,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
)

from flowstone.partition_key import MAX_KEY_LENGTH
from flowstone.store.schema import NOW, TIME, metadata

backfills = Table(
    "backfills",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("created_at", TIME, nullable=False, server_default=NOW),
    Column("actor", Text, nullable=False),
    Column("max_parallel", Integer, comment="The most steps that are dispatched at once"),
    Column("stop_ratio", Double, comment="The part of failed steps at which it pauses"),
    Column("hours", Text, comment="When steps may start, such as 22:00-06:00"),
    Column("zone", Text, nullable=False, server_default="UTC", comment="Of these hours"),
    CheckConstraint("max_parallel > 0", "max_parallel"),
    CheckConstraint("stop_ratio > 0 AND stop_ratio <= 1", "stop_ratio"),
    comment="What computes many partitions; its runs refer to it",
)

dynamic_keys = Table(
    "dynamic_keys",
    metadata,
    Column("name", Text, nullable=False, comment="Of the dynamic partitions"),
    Column("key", Text, nullable=False),
    Column("position", BigInteger, Identity(always=True), nullable=False),
    Column("added_at", TIME, nullable=False, server_default=NOW),
    Column("added_by", Text, nullable=False),
    PrimaryKeyConstraint("name", "key"),
    CheckConstraint(f"length(key) <= {MAX_KEY_LENGTH}", "key"),
    Index("ix_dynamic_keys_position", "name", "position"),
    comment="The keys that dynamic partitions have now",
)
