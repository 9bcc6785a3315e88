"""Reading back: values and how they stand, from the ledger, without the assets' code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from flowstone import runtime
from flowstone.asset import Asset
from flowstone.errors import BadPartition, BadQuery, NeverMaterialized, UnknownAsset, UnknownVersion
from flowstone.partition import UNPARTITIONED, Key
from flowstone.partition_key import decode_key
from flowstone.store import checks, nodes, pointers, runs, standing, versions
from flowstone.store.checks import RecordedCheck
from flowstone.store.ledger import Connection
from flowstone.store.standing import LastFailure, OpenStep
from flowstone.store.versions import Version

__all__ = ["AssetStatus", "LastFailure", "OpenStep", "Version", "exists", "get", "status"]


@dataclass(frozen=True)
class AssetStatus:
    """How an asset x partition stands."""

    asset: str
    partition: Key
    latest: Version | None
    """The output that readers get; None if there was never one."""
    computing: Sequence[OpenStep]
    """The steps, of any run, that are to compute it."""
    failure: LastFailure | None
    """How the last attempt to compute it ended, where that was not a good end."""
    checks: Sequence[RecordedCheck]
    """What each check has said last of the latest output."""

    @property
    def state(self) -> str:
        """One word: "missing", "stale" or "materialized".

        What is materialized may yet have changed code or inputs: `flowstone plan` knows.
        """
        if self.latest is None:
            return "missing"
        return "stale" if self.latest.stale_at else "materialized"


def get(
    asset: str | Asset,
    partition: Key = UNPARTITIONED,
    *,
    run: str | UUID | None = None,
    version: int | None = None,
) -> Any:  # noqa: ANN401 - any value of a user
    """Return the latest value of an asset x partition, or that of a run, or of a version.

    `partition` is the key or its text. The value comes back as what it was; where this
    process has not imported the asset, models and dataclasses come back as dicts. Raises
    UnknownAsset, BadPartition, NeverMaterialized, UnknownRun or UnknownVersion for what there
    is not, MissingOutput where the value is not in storage any more, and StorageUnavailable.
    """
    here = runtime.current()
    with here.ledger.begin() as conn:
        found = _version(conn, str(asset), partition, run, version)
    return here.read(found.asset, found.output)


def exists(
    asset: str | Asset, partition: Key = UNPARTITIONED, *, run: str | UUID | None = None
) -> bool:
    """Return whether `get` would find the value; it is not read for that.

    Raises what `get` raises, except that nothing is missing: an asset, a partition or a run
    that has no such output has none.
    """
    here = runtime.current()
    with here.ledger.begin() as conn:
        try:
            found = _version(conn, str(asset), partition, run, None)
        except (UnknownAsset, BadPartition, NeverMaterialized, UnknownVersion):
            return False
    return here.outputs.exists(found.output)


def status(asset: str | Asset, partition: Key = UNPARTITIONED) -> AssetStatus:
    """Return how an asset x partition stands; raise UnknownAsset or BadPartition."""
    with runtime.current().ledger.begin() as conn:
        node = standing.find(conn, str(asset), partition)
        latest = versions.latest(conn, node)
        return AssetStatus(
            asset=node[0],
            partition=decode_key(node[1]),
            latest=latest,
            computing=standing.open_steps(conn, node),
            failure=standing.last_failure(conn, node),
            checks=checks.last_of(conn, latest.id) if latest else (),
        )


def _version(
    conn: Connection,
    asset: str,
    partition: Key,
    run: str | UUID | None,
    version: int | None,
) -> Version:
    if run is not None and version is not None:
        raise BadQuery("a run and a version both say which value is meant; give one of the two")
    node = nodes.find(conn, asset, partition)
    if run is not None:
        version = pointers.of_run(conn, node, runs.find(conn, str(run))).output_id
    if version is None:
        version = pointers.latest(conn, node).output_id
    found = versions.one(conn, node, version)
    if found.deleted_at is not None:
        raise versions.given_up(found)
    return found
