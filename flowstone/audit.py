"""The audit log for those who read it: sealed, verified, exported."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from flowstone import runtime
from flowstone.chain import GENESIS, Check, Finding
from flowstone.errors import BadConfig
from flowstone.runtime import Runtime
from flowstone.store import audit_export, seals
from flowstone.store.ledger import Connection

MAX_FINDINGS: Final = 20
"""The most findings that are kept; the others are counted."""

PASS: Final = 10
"""The most batches that one pass of the reconciler seals."""


@dataclass(frozen=True)
class Verified:
    """What has become of the audit log."""

    rows: int
    """How many rows are sealed."""
    head: str
    """The hash of the last of them, in hexadecimal digits; it stands for all before it."""
    awaiting: int
    """How many were written since, and have no seal yet."""
    findings: tuple[Finding, ...]
    """The first of what is wrong."""
    count: int
    """How much is wrong in all."""


def seal(here: Runtime, *, batches: int | None = None, wait: bool = False) -> int:
    """Seal the rows that await it, in up to so many `batches`; return how many it were.

    Where somebody else seals, that is left to them, unless it is to `wait`.
    Raises LedgerUnavailable.
    """
    sealed = 0
    while batches is None or batches > 0:
        with here.ledger.begin() as conn:
            done = seals.seal(conn, wait=wait)
        sealed += done
        if done < seals.BATCH:
            break
        batches = None if batches is None else batches - 1
    return sealed


def verify(expect: str | None = None) -> Verified:
    """Seal what awaits it, and recompute the chain from the first row of the log to the last.

    `expect` is the head that an earlier verification returned; it must be in the chain. The log
    is read in one pass, and only part of it is in memory at any time. Raises BadConfig for an
    `expect` that is no hash, or LedgerUnavailable.
    """
    wanted = _hash(expect)
    here = runtime.current()
    seal(here, wait=True)
    with here.ledger.begin() as conn:
        return _verify(conn, wanted)


def _verify(conn: Connection, wanted: bytes) -> Verified:
    check, found = Check(), _Findings()
    is_met = wanted == GENESIS
    for link in seals.links(conn):
        found.add(check.follow(link))
        is_met = is_met or link.hash == wanted
    found.add(check.end())
    found.add(seals.past_the_log(conn))
    found.add(seals.gone_unsealed(conn))
    if not is_met:
        said = "is not in the chain: what it stood for was rewritten or cut off"
        found.add([Finding(f"the expected head {wanted.hex()} {said}")])
    awaiting = seals.awaiting(conn)
    return Verified(check.rows, check.head.hex(), awaiting, tuple(found.first), found.count)


class _Findings:
    """The first findings, and the number of all."""

    def __init__(self) -> None:
        self.first: list[Finding] = []
        self.count = 0

    def add(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.count += 1
            if len(self.first) < MAX_FINDINGS:
                self.first.append(finding)


def _hash(expect: str | None) -> bytes:
    if expect is None:
        return GENESIS
    try:
        wanted = bytes.fromhex(expect.strip())
    except ValueError:
        wanted = b""
    if len(wanted) != len(GENESIS):
        raise BadConfig(f"{expect!r} is no head: one is a hash of 64 hexadecimal digits")
    return wanted


def export_lines(
    *, since: str | datetime | None = None, run: str | None = None, asset: str | None = None
) -> Iterator[str]:
    """Return the log as lines of JSON, as `export` does; errors are raised before the first."""
    here = runtime.current()
    start = _time(since)
    with here.ledger.begin() as conn:
        run_id = None if run is None else audit_export.find_run(conn, run)
    seal(here, wait=True)
    return _lines(here, start, run_id, asset)


def _lines(
    here: Runtime, since: datetime | None, run_id: UUID | None, asset: str | None
) -> Iterator[str]:
    with here.ledger.begin() as conn:
        yield from audit_export.lines(conn, since=since, run=run_id, asset=asset)


def export(
    *, since: str | datetime | None = None, run: str | None = None, asset: str | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the audit log, the oldest first, each with its place in the chain.

    Times are texts in UTC (ISO 8601). `since` is a time or a date, in UTC without an offset;
    `run` how a run's id begins; `asset` selects the rows about steps of one. The rows are read as
    they are taken, in one transaction. Raises BadConfig, UnknownRun or LedgerUnavailable.
    """
    for line in export_lines(since=since, run=run, asset=asset):
        yield json.loads(line)


def latest(limit: int, *, run: str | None = None, asset: str | None = None) -> list[dict[str, Any]]:
    """Return the latest rows of the audit log, the newest first; see `export`."""
    with runtime.current().ledger.begin() as conn:
        run_id = None if run is None else audit_export.find_run(conn, run)
        found = audit_export.lines(conn, run=run_id, asset=asset, latest=limit)
        return [json.loads(line) for line in found]


def _time(since: str | datetime | None) -> datetime | None:
    if since is None:
        return None
    try:
        time = datetime.fromisoformat(since) if isinstance(since, str) else since
    except ValueError:
        raise BadConfig(f"{since!r} is no time; write 2026-01-31 or 2026-01-31T12:00:00Z") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
