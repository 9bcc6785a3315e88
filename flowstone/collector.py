"""The collector: deletes values that nobody refers to, old versions, and old quarantine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal

from flowstone import runtime
from flowstone.collectable import without_readers
from flowstone.errors import BadConfig, StorageUnavailable
from flowstone.log import get_logger
from flowstone.runtime import Runtime, whoami
from flowstone.store import collection
from flowstone.store.collection import Value

log = get_logger("flowstone.collector")

GRACE_SECONDS: Final = 3600.0
"""How long a version stays after it was made: somebody may just plan to read what it replaces."""

QUARANTINE_DAYS: Final = 30.0

_BATCH: Final = 1000

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
    return [
        *_old_versions(here, keep, dry_run=dry_run),
        *_old_quarantine(here, quarantine_days, dry_run=dry_run),
        # Last, so that it finds what could not be deleted above, this time or before.
        *(one for name in here.outputs.names for one in _staged(here, name, dry_run=dry_run)),
    ]


def _old_versions(here: Runtime, keep: int | None, *, dry_run: bool) -> Iterator[Collected]:
    with here.ledger.begin() as conn:
        found = collection.surplus(conn, _policies(here), keep, grace=GRACE_SECONDS)
        going = without_readers(found, collection.readers(conn, found))
        values = collection.versions(conn, sorted(going))
    yield from _give_up(here, "outputs", "version", values, dry_run=dry_run)


def _policies(here: Runtime) -> Mapping[str, int]:
    assets = here.registry.graph.assets.values()
    return {asset.name: asset.keep for asset in assets if asset.keep is not None}


def _old_quarantine(here: Runtime, days: float, *, dry_run: bool) -> Iterator[Collected]:
    with here.ledger.begin() as conn:
        values = collection.refused(conn, days * 24 * 3600)
    yield from _give_up(here, "quarantine", "quarantine", values, dry_run=dry_run)


def _give_up(
    here: Runtime,
    table: Literal["outputs", "quarantine"],
    kind: Kind,
    values: Sequence[Value],
    *,
    dry_run: bool,
) -> Iterator[Collected]:
    """Record that values are given up, and then delete them: never the other way round."""
    given_up = {value.id for value in values}
    if not dry_run:
        with here.ledger.begin() as conn:
            given_up = collection.give_up(
                conn, table, sorted(given_up), actor=whoami(), reason="garbage collection"
            )
    for value in values:
        if value.id in given_up:
            output = value.output
            if not dry_run:
                _delete(here, output.io, output.location)
            yield Collected(kind, value.name, output.io, output.location, output.size)


def _staged(here: Runtime, io: str, *, dry_run: bool) -> Iterator[Collected]:
    stored = here.outputs.manager(io).stored()
    while batch := list(islice(stored, _BATCH)):
        with here.ledger.begin() as conn:
            unreferenced = collection.unreferenced(conn, io, batch)
        for location in unreferenced:
            if not dry_run:
                _delete(here, io, location)
            yield Collected("staged", "", io, location, None)


def _delete(here: Runtime, io: str, location: str) -> None:
    try:
        here.outputs.manager(io).delete(location)
    except StorageUnavailable as error:
        # It is given up, so the next collection finds it among what nobody refers to.
        log.warning("not deleted yet", io=io, location=location, error=error.message)
