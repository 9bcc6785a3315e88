"""The collector: deletes values that nobody refers to, old versions, and old quarantine."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal, TypeVar

from flowstone import runtime
from flowstone.collectable import without_readers
from flowstone.errors import BadConfig, FlowStoneError, LedgerUnavailable, StorageUnavailable
from flowstone.log import get_logger
from flowstone.runtime import Runtime, whoami
from flowstone.store import collection, repair_counts, sweeps
from flowstone.store.collection import Table, Value

log = get_logger("flowstone.collector")

GRACE_SECONDS: Final = 3600.0
"""How long a version stays after it was made: somebody may just plan to read what it replaces."""

QUARANTINE_DAYS: Final = 30.0

SWEEP_SECONDS: Final = 600.0
"""How long a sweep that beat sends for goes on; the next one goes on from there."""

STAGED_FILE: Final = "staged_file"
"""The name under which a sweep counts what it has deleted, beside the rules of the reconciler."""

_BATCH: Final = 500

Kind = Literal["staged", "version", "quarantine"]


@dataclass(frozen=True)
class Collected:
    """A value that was deleted, or would be."""

    kind: Kind
    """Staged by an attempt that never committed it, an old version, or refused by a check."""
    name: str
    """The asset x partition; empty for a staged one."""
    io: str
    location: str
    size: int | None
    """In bytes; None for a staged one."""


def collect(
    *,
    keep: int | None = None,
    quarantine_days: float = QUARANTINE_DAYS,
    dry_run: bool = False,
) -> Sequence[Collected]:
    """Delete the values that are not needed any more, and return which these are.

    That is what attempts have staged and not committed; what is in quarantine for longer than
    `quarantine_days`; and the versions of each asset x partition beyond those that its
    definition says to `keep`, or else the argument; without either, all are kept. The latest
    is kept in any case, as is whatever a version that is kept was made of, or a run that is
    open reads, and what is younger than an hour. Records stay: lineage goes on to name what
    was deleted. With `dry_run` nothing is deleted. Raises BadConfig, StorageUnavailable or
    LedgerUnavailable; what was deleted until then is recorded.
    """
    if keep is not None and keep < 1:
        raise BadConfig(f"keep is {keep}; the latest version is always kept, so it is 1 or more")
    if quarantine_days < 0:
        raise BadConfig(f"quarantine_days is {quarantine_days}; it must be 0 or more")
    here = runtime.current()
    versions = _known(here, _old_versions(here, keep))
    refused = _known(here, _old_quarantine(here, quarantine_days))
    if not dry_run:
        versions = _give_up(here, "outputs", versions)
        refused = _give_up(here, "quarantine", refused)
        # Those of an earlier collection, too, whose storage was away then.
        _erase(here, "outputs")
        _erase(here, "quarantine")
    return [
        *(_collected("version", value) for value in versions),
        *(_collected("quarantine", value) for value in refused),
        *(one for name in here.outputs.names for one in _staged(here, name, dry_run=dry_run)),
    ]


def sweep(here: Runtime, *, seconds: float = SWEEP_SECONDS) -> int:
    """Delete what attempts that have ended have staged and not committed; return how much.

    Nothing else is touched: no version, no quarantine, nothing of an attempt that has not ended.
    After `seconds` no further batch is begun: the next sweep goes on there, when it has looked at
    the storages that were swept longer ago. So is one that is away. Raises LedgerUnavailable.
    """
    end = time.monotonic() + seconds
    deleted = 0
    with here.ledger.begin() as conn:
        places = sweeps.places(conn)
    swept = [io for io in places if io in here.outputs.names]
    for io in [*(io for io in here.outputs.names if io not in places), *swept]:
        place = places.get(io, 0)
        try:
            for batch in _batches(islice(here.outputs.manager(io).stored(), place, None)):
                gone = _sweep(here, io, batch, place)
                deleted += gone
                place += len(batch) - gone
                if time.monotonic() >= end:
                    log.warning("the sweep has not come to its end", io=io, seconds=seconds)
                    return deleted
            with here.ledger.begin() as conn:
                sweeps.note(conn, io, 0)
        except LedgerUnavailable:
            raise
        except FlowStoneError as error:
            log.warning("not swept", io=io, error=error.message)
    return deleted


def _sweep(here: Runtime, io: str, locations: Sequence[str], place: int) -> int:
    with here.ledger.begin() as conn:
        unreferenced = collection.unreferenced(conn, locations)
    deleted = sum(_delete(here, io, location) for location in unreferenced)
    with here.ledger.begin() as conn:
        repair_counts.add(conn, STAGED_FILE, deleted)
        sweeps.note(conn, io, place + len(locations) - deleted)
    return deleted


def _collected(kind: Kind, value: Value) -> Collected:
    output = value.output
    return Collected(kind, value.name, output.io, output.location, output.size)


def _old_versions(here: Runtime, keep: int | None) -> Sequence[Value]:
    with here.ledger.begin() as conn:
        found = collection.surplus(conn, _policies(here), keep, grace=GRACE_SECONDS)
        going = without_readers(found, collection.readers(conn, found))
        return collection.versions(conn, sorted(going))


def _policies(here: Runtime) -> Mapping[str, int]:
    assets = here.registry.graph.assets.values()
    return {asset.name: asset.keep for asset in assets if asset.keep is not None}


def _old_quarantine(here: Runtime, days: float) -> Sequence[Value]:
    with here.ledger.begin() as conn:
        return collection.refused(conn, days * 24 * 3600)


def _known(here: Runtime, values: Sequence[Value]) -> Sequence[Value]:
    """Leave out what lies with IO managers that this process does not have."""
    known = [value for value in values if value.output.io in here.outputs.names]
    unknown = sorted({value.output.io for value in values} - set(here.outputs.names))
    if unknown:
        log.warning(
            "values are kept, as FLOWSTONE_IO does not say where they are",
            values=len(values) - len(known),
            io=", ".join(unknown),
        )
    return known


def _give_up(here: Runtime, table: Table, values: Sequence[Value]) -> Sequence[Value]:
    """Record that values are given up, before any is deleted: never the other way round."""
    given_up: set[int] = set()
    for batch in _batches(values):
        with here.ledger.begin() as conn:
            given_up |= collection.give_up(
                conn, table, [v.id for v in batch], actor=whoami(), reason="garbage collection"
            )
    return [value for value in values if value.id in given_up]


def _erase(here: Runtime, table: Table) -> None:
    with here.ledger.begin() as conn:
        values = collection.to_erase(conn, table)
    for value in _known(here, values):
        if _delete(here, value.output.io, value.output.location):
            with here.ledger.begin() as conn:
                collection.erased(conn, table, value.id)


def _staged(here: Runtime, io: str, *, dry_run: bool) -> Iterator[Collected]:
    for batch in _batches(here.outputs.manager(io).stored()):
        with here.ledger.begin() as conn:
            unreferenced = collection.unreferenced(conn, batch)
        for location in unreferenced:
            if not dry_run:
                _delete(here, io, location)
            yield Collected("staged", "", io, location, None)


def _delete(here: Runtime, io: str, location: str) -> bool:
    try:
        here.outputs.manager(io).delete(location)
    except StorageUnavailable as error:
        # The next collection finds it again.
        log.warning("not deleted yet", io=io, location=location, error=error.message)
        return False
    return True


T = TypeVar("T")


def _batches(values: Iterable[T]) -> Iterator[list[T]]:
    left = iter(values)
    while batch := list(islice(left, _BATCH)):
        yield batch
