"""The versions of an asset x partition: which there are, going back, declaring them stale."""

from __future__ import annotations

from collections.abc import Sequence

from flowstone import runtime
from flowstone.asset import Asset
from flowstone.partition import UNPARTITIONED, Key
from flowstone.runtime import whoami
from flowstone.store import checks as check_store
from flowstone.store import nodes
from flowstone.store import versions as store
from flowstone.store.checks import RecordedCheck
from flowstone.store.versions import Version

__all__ = ["RecordedCheck", "Version", "check_results", "rollback", "versions"]


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


def check_results(
    asset: str | Asset, partition: Key = UNPARTITIONED, *, limit: int = 100
) -> Sequence[RecordedCheck]:
    """Return what checks have said of the values of an asset x partition, the newest first.

    Raises UnknownAsset or BadPartition.
    """
    with runtime.current().ledger.begin() as conn:
        return check_store.history(conn, nodes.find(conn, str(asset), partition), limit)
