"""What can be known of an installation, as values: the doctor decides upon them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flowstone.settings import Settings
from flowstone.store.notifications import Stuck
from flowstone.store.vitals import Vitals
from flowstone.store.workers import Unattended, Worker


@dataclass(frozen=True)
class Unknown:
    """A fact that could not be found out."""

    why: str
    remedy: str = ""


@dataclass(frozen=True)
class Server:
    """A server that answers, or cannot be asked."""

    address: str
    """Without the password."""
    is_redis: bool
    policy: str | None = None
    """What a Redis does where its memory is full (`maxmemory-policy`); None if it does not say."""
    appends: bool | None = None
    """Whether a Redis writes what it holds to a file that outlives it (`appendonly`)."""
    is_asked: bool = True
    """Whether it has answered; one that cannot be asked is believed."""


@dataclass(frozen=True)
class CelerySettings:
    """The settings of Celery that FlowStone needs to be so; as celeryconfig.py has them here."""

    visibility: float
    """Seconds after which a Redis gives out again what is not acknowledged."""
    expires: float | None
    """Seconds after which the parts of a chord are forgotten; None is never."""
    content: Mapping[str, tuple[str, ...]]
    """In which forms messages and results are written and read, by setting."""
    flags: Mapping[str, bool]
    """How messages are acknowledged, by setting."""


@dataclass(frozen=True)
class LedgerFacts:
    """What a ledger says whose schema is the one of this version."""

    vitals: Vitals
    workers: tuple[Worker, ...]
    unattended: tuple[Unattended, ...]
    """The queues that nobody consumes, and in which something waits."""
    waits: Mapping[str, float]
    """For how many seconds what has been there longest is under way, by queue."""
    clock_ahead: float
    """The seconds by which the clock of this machine is ahead of the ledger's."""
    stuck: Stuck
    """What people could not be told of approvals."""


@dataclass(frozen=True)
class Definitions:
    """What is known of the assets."""

    assets: int
    longest: float
    """The seconds of the longest hard timeout that one of them has by itself."""
    queues: frozenset[str]


@dataclass(frozen=True)
class LeftOver:
    """The outputs of an asset that are of partitions which its set does not have any more."""

    asset: str
    count: int
    examples: tuple[str, ...]
    is_part: bool
    """Whether the asset has more partitions than were looked at."""


@dataclass(frozen=True)
class Facts:
    """All that the doctor looks at."""

    settings: Settings
    version: str
    """The version of FlowStone of this process."""
    address: str | Unknown
    """Where the ledger is, if it answers."""
    ledger: LedgerFacts | Unknown
    backlog: Mapping[str, int] | Unknown
    """What the reconciler would put right now, by rule."""
    broker: Server | Unknown
    results: Server | Unknown
    held: Mapping[str, int] | Unknown
    """How many messages the broker holds, by queue."""
    celery: CelerySettings | Unknown
    definitions: Definitions | Unknown | None
    """None where the settings name no module."""
    left_over: Sequence[LeftOver] | Unknown = ()
    """What definitions that have changed have left."""
