"""The keys of dynamic partitions, for callers: they are added and removed while everything runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from flowstone import runtime
from flowstone.dynamic_set import check_name
from flowstone.errors import BadPartition
from flowstone.partition_key import Key, encode_key, label
from flowstone.partition_set import check_listed, key_list
from flowstone.runtime import whoami
from flowstone.store import dynamic_keys

__all__ = ["add_partitions", "dynamic_partitions", "remove_partitions"]


def add_partitions(
    name: str, keys: Collection[Key], *, by: str | None = None, reason: str | None = None
) -> int:
    """Add keys to the dynamic partitions of a name; return how many were not there before.

    All of them or none are added, in their order. `by` says who does it, this user by default;
    it and `reason` are kept in the audit log. Raises BadPartition for what is no key, and for two
    keys that Python takes for one, such as 1 and True.
    """
    wanted = _encoded(name, keys)
    for key in wanted.values():
        check_listed(key)
    with runtime.current().ledger.begin() as conn:
        dynamic_keys.lock(conn, name)
        _refuse_twins(name, wanted, dynamic_keys.keys(conn, name))
        return len(dynamic_keys.add(conn, name, list(wanted), actor=by or whoami(), reason=reason))


def remove_partitions(
    name: str, keys: Collection[Key], *, by: str | None = None, reason: str | None = None
) -> int:
    """Remove keys, or what is written so, from dynamic partitions; return how many were there.

    What was made for them stays, and can be read. Raises BadPartition for what is no key.
    """
    wanted = _encoded(name, keys)
    with runtime.current().ledger.begin() as conn:
        dynamic_keys.lock(conn, name)
        there = _there(wanted, dynamic_keys.keys(conn, name))
        return len(dynamic_keys.remove(conn, name, there, actor=by or whoami(), reason=reason))


def dynamic_partitions(name: str) -> list[Key]:
    """Return the keys that there are now, in the order in which they were added."""
    check_name(name)
    with runtime.current().ledger.begin() as conn:
        return list(dynamic_keys.keys(conn, name).values())


def _encoded(name: str, keys: Collection[Key]) -> dict[str, Key]:
    """Return the keys by their encoded forms, or raise BadPartition."""
    check_name(name)
    return {encode_key(key): key for key in key_list(keys)}


def _refuse_twins(name: str, wanted: Mapping[str, Key], known: Mapping[str, Key]) -> None:
    """Refuse keys that are equal to others: a fan-in is a dict of them, which would lose one."""
    forms = {key: encoded for encoded, key in known.items()}
    for encoded, key in wanted.items():
        other = forms.setdefault(key, encoded)
        if other != encoded:
            raise BadPartition(
                f"the keys {encoded} and {other} of {name!r} would be one key in a dict; "
                "add one of the two"
            )


def _there(wanted: Mapping[str, Key], known: Mapping[str, Key]) -> list[str]:
    """Return those of the known keys that are wanted, or that alone are written so."""
    written: dict[str, list[str]] = {}
    for encoded in known:
        written.setdefault(label(encoded), []).append(encoded)
    found: dict[str, None] = {}
    for encoded, key in wanted.items():
        if encoded in known:
            found[encoded] = None
        elif isinstance(key, str) and len(meant := written.get(key, [])) == 1:
            found[meant[0]] = None
    return list(found)
