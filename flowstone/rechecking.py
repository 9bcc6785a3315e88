"""Checks on values that are there already."""

from __future__ import annotations

from collections.abc import Sequence

from flowstone import runtime
from flowstone.asset import Asset
from flowstone.check import Checked, examine
from flowstone.errors import UnknownAsset
from flowstone.partition import UNPARTITIONED, Key
from flowstone.partition_key import decode_key
from flowstone.runtime import whoami
from flowstone.store import checks as store
from flowstone.store import nodes, pointers, versions


def run_checks(
    asset: str | Asset, partition: Key = UNPARTITIONED, *, version: int | None = None
) -> Sequence[Checked]:
    """Run the checks of an asset on a version that there is, by default the latest, and record it.

    Nothing else follows: a value that does not pass stays what readers get, until you
    `invalidate` or `rollback`. This needs the code of the checks. Raises UnknownAsset where
    the asset has none, UnknownVersion, what `get` raises, and what a blocking check raises.
    """
    here = runtime.current()
    graph, name = here.registry.graph, str(asset)
    checks = here.registry.checks.get(graph[name].name, ())
    if not checks:
        raise UnknownAsset(f"asset {name!r} has no checks; declare one with @check(asset={name!r})")
    with here.ledger.begin() as conn:
        node = nodes.find(conn, name, partition)
        found = versions.one(conn, node, version or pointers.latest(conn, node).output_id)
    if found.deleted_at is not None:
        raise versions.given_up(found)
    output = found.output
    said = examine(
        checks,
        lambda kind: here.read(name, output, kind),
        decode_key(node[1]),
        here.resources.secrets.mask,
    )
    with here.ledger.begin() as conn:
        store.add(conn, found.id, said, actor=whoami())
    return said
