"""The versions of an asset x partition: which there are, going back, declaring them stale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from flowstone import runtime
from flowstone.asset import Asset
from flowstone.partition import UNPARTITIONED, Key
from flowstone.runtime import whoami
from flowstone.store import checks as check_store
from flowstone.store import lineage, nodes, pointers, standing
from flowstone.store import versions as store
from flowstone.store.checks import RecordedCheck
from flowstone.store.lineage import TracedOutput
from flowstone.store.versions import Version

__all__ = [
    "RecordedCheck",
    "TracedOutput",
    "Version",
    "check_results",
    "invalidate",
    "rollback",
    "versions",
]

INVALIDATED: Final = "invalidated"
"""The reason that plans then give."""


def versions(
    asset: str | Asset, partition: Key = UNPARTITIONED, *, limit: int = 100
) -> Sequence[Version]:
    """Return the outputs that an asset x partition has had, the newest first.

    Raises UnknownAsset or BadPartition.
    """
    with runtime.current().ledger.begin() as conn:
        return store.of_node(conn, nodes.find(conn, str(asset), partition), limit)


def rollback(
    asset: str | Asset,
    partition: Key = UNPARTITIONED,
    *,
    to: int | None = None,
    reason: str | None = None,
) -> Version:
    """Make an older version of an asset x partition its latest, and return it.

    `to` is its id, by default that of the version before. Readers get it from now on; what
    was made of the version that is left is not fresh, and the next run computes it again.
    Nothing is deleted: to go forward again is a rollback, too. Raises UnknownAsset,
    BadPartition, or UnknownVersion also where its value is gone.
    """
    with runtime.current().ledger.begin() as conn:
        node = nodes.find(conn, str(asset), partition)
        return store.roll_back(conn, node, to, actor=whoami(), reason=reason)


def invalidate(
    asset: str | Asset,
    partition: Key = UNPARTITIONED,
    *,
    cascade: bool = True,
    reason: str | None = None,
    dry_run: bool = False,
) -> Sequence[TracedOutput]:
    """Mark the latest version of an asset x partition as stale, and return what was marked.

    With `cascade`, that is also whatever was made of it, or of an earlier version of it,
    directly or through others. Values stay readable; the next run that is asked for them
    computes them again. What is stale already is left as it is. What is being computed of it
    just now is stale as soon as it is there. With `dry_run` nothing is
    marked. Raises UnknownAsset or BadPartition.
    """
    with runtime.current().ledger.begin() as conn:
        node = nodes.find(conn, str(asset), partition)
        start = pointers.latest(conn, node).output_id
        found: list[TracedOutput] = [*lineage.impact(conn, start, None, None)]
        # Older versions, too: somebody may go back to one that was made of this.
        found += lineage.downstream(conn, start, None, None)[1:]
        by_id = {one.output_id: one for one in (found if cascade else found[:1])}
        fresh = [one for one in by_id.values() if one.stale is None and not one.is_deleted]
        if not dry_run:
            ids = [one.output_id for one in fresh]
            store.mark_stale(conn, ids, INVALIDATED, actor=whoami(), reason=reason)
            store.taint(conn, list(by_id), INVALIDATED)
    return fresh


def check_results(
    asset: str | Asset, partition: Key = UNPARTITIONED, *, limit: int = 100
) -> Sequence[RecordedCheck]:
    """Return what checks have said of the values of an asset x partition, the newest first.

    Raises UnknownAsset or BadPartition.
    """
    with runtime.current().ledger.begin() as conn:
        # Of a value that was refused, there may never have been an output.
        return check_store.history(conn, standing.find(conn, str(asset), partition), limit)
