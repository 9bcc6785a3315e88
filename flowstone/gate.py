"""Gates: what a step waits for outside of all workers, an approval or a signal, as values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from flowstone.outcome import StoredOutput
from flowstone.states import GateState

Kind = Literal["approval", "signal"]

TIMEOUT = "timeout"
"""Who has decided where nobody did in time."""


@dataclass(frozen=True)
class Gate:
    """A row of the table gates. Times are those of the ledger."""

    id: int
    kind: Kind
    step_id: int
    attempt: int
    state: GateState
    created_at: datetime
    replaces: int | None
    message: str
    context: Mapping[str, Any]
    options: Sequence[str]
    subject: str | None
    approvers: Sequence[str]
    quorum: int
    four_eyes: bool
    expires_at: datetime | None
    on_timeout: str | None
    remind_every: float | None
    remind_at: datetime | None
    escalation: Sequence[Mapping[str, Any]]
    """The levels that are still to come, with the fields of `Escalation`."""
    level: int
    notify: Sequence[str] | None
    value: StoredOutput | None
    """The proposed value, which no reader sees."""
    fingerprint: str | None
    version: str | None
    checks: Sequence[Mapping[str, Any]] | None
    name: str | None
    closed_at: datetime | None
    closed_by: str | None
    channel: str | None
    reason: str | None
    chosen: str | None
    edited: Mapping[str, Any] | None
    """The value that was put in place of the proposed one, under "value"."""
    difference: Sequence[Mapping[str, Any]] | None
    payload: Mapping[str, Any] | None
    """What came with the signal, under "value"."""
    continued_at: datetime | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Gate:
        """Return the gate of a row; times may be texts, as they are in JSON."""
        stored = ("location", "format", "size", "sha256", "rows", "io")
        plain = {name: row[name] for name in cls.__dataclass_fields__ if name != "value"}
        times = {name: _time(plain[name]) for name in plain if name.endswith("_at")}
        value = None
        if row["location"] is not None:
            value = StoredOutput(**{name: row[name] for name in stored})
        return cls(**{**plain, **times, "state": GateState(row["state"]), "value": value})

    @property
    def label(self) -> str:
        """What people call it."""
        return f"approval {self.id}" if self.kind == "approval" else f"signal {self.name}"


def _time(value: str | datetime | None) -> datetime | None:
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def subject(sha256: str | None, fingerprint: str, message: str, context: Mapping[str, Any]) -> str:
    """Return the hash of what is to be reviewed: the value, what it is made of, what is said."""
    said = json.dumps([sha256, fingerprint, message, context], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()
