"""Pools for operators: how they stand, and more or fewer slots while everything runs."""

from __future__ import annotations

from typing import Final

from flowstone import runtime
from flowstone.errors import BadConfig, UnknownPool, did_you_mean
from flowstone.limits import is_pool
from flowstone.names import NAME
from flowstone.outbox import wake_others
from flowstone.runtime import whoami
from flowstone.store import pools as store
from flowstone.store import slots as slot_store
from flowstone.store.pools import PoolStatus

__all__ = ["PoolStatus", "list_pools", "reset_pool", "set_pool"]

MAX_SLOTS: Final = 1_000_000
"""The most slots of a pool; beyond it, a pool would not limit anything."""


def list_pools() -> list[PoolStatus]:
    """Return all pools, and the limits of assets (asset:NAME), with who holds their slots."""
    with runtime.current().ledger.begin() as conn:
        return store.status(conn)


def set_pool(name: str, slots: int, *, reason: str | None = None) -> None:
    """Give a pool so many slots from now on, whatever the settings say; 0 closes it for a time.

    What runs is left alone, even where it holds more. Raises BadConfig.
    """
    if not NAME.fullmatch(name.removeprefix("asset:")):
        raise BadConfig(f"{name!r} is no name of a pool")
    if not 0 <= slots <= MAX_SLOTS:
        raise BadConfig(f"{slots} slots make no sense; say 0 to {MAX_SLOTS}")
    _override(name, slots, reason)


def reset_pool(name: str, *, reason: str | None = None) -> None:
    """Give a pool the slots again that the settings, or its asset, say.

    Raises UnknownPool, and BadConfig for a pool that exists by `set_pool` alone.
    """
    _override(name, None, reason)


def _override(name: str, slots: int | None, reason: str | None) -> None:
    here = runtime.current()
    with here.ledger.begin() as conn:
        known = {pool.name: pool for pool in store.status(conn)}
        if name not in known and (slots is None or not is_pool(name)):
            raise UnknownPool(f"there is no pool {name!r}{did_you_mean(name, known)}")
        if slots is None and known[name].declared is None:
            raise BadConfig(
                f"the settings know no pool {name!r}, so that steps would wait for it for ever; "
                "set its slots, or add it to FLOWSTONE_POOLS first"
            )
        store.override(conn, name, slots, actor=whoami(), reason=reason)
    with here.ledger.begin() as conn:
        going = slot_store.may_go_on(conn, [name])
    wake_others(here, going)
