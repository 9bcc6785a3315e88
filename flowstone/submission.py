"""What callers give becomes a request, and is recorded as a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal, TypeVar
from uuid import UUID, uuid4

from flowstone import selection
from flowstone.asset import Asset
from flowstone.choice import Choice
from flowstone.errors import BadConfig, BadSelection, KeyReused, UnknownAsset
from flowstone.made_of import asset_config, check_names, refuse_secrets
from flowstone.names import NAME
from flowstone.partition import Key
from flowstone.partition_key import encode_key
from flowstone.priority import Priority
from flowstone.request import OnConflict, Only, Order, Request
from flowstone.resource_config import check_overrides, without_none
from flowstone.runtime import Runtime, whoami
from flowstone.store import runs
from flowstone.store.ledger import Connection
from flowstone.targets import selected_by

MAX_WINDOW = 1_000_000
"""The largest window of a run; beyond it, no window would serve as well."""

MAX_DEADLINE = 10 * 365 * 86_400
"""Seconds; beyond it, no deadline would serve as well."""

Assets = str | Asset | Sequence[str | Asset]
Config = Mapping[str, Mapping[str, Any]]
Conflicts = Literal["join", "queue", "refuse"]
Priorities = Literal["high", "normal", "low"]
Driver = Literal["celery", "inline"]

MAX_IDEMPOTENCY_KEY = 200
"""Characters of an idempotency key."""


def request(
    assets: Assets,
    partition: Key,
    *,
    upstream: bool,
    force: bool,
    on_conflict: str = OnConflict.JOIN,
    io: Mapping[str, str] | None = None,
    resources: Config | None = None,
    priority: str = Priority.NORMAL,
    deadline: float | None = None,
    pool: str | None = None,
    choice: Choice | None = None,
    only: str | None = None,
    order: str | None = None,
    queue: str | None = None,
) -> Request:
    """Return what these arguments ask for.

    Raises UnknownAsset, BadSelection, BadPartition or BadConfig.
    """
    many = [assets] if isinstance(assets, str | Asset) else list(assets)
    names = tuple(dict.fromkeys(str(asset) for asset in many))
    if not names:
        raise UnknownAsset("no asset is named; give at least one")
    for name in names:
        if not NAME.fullmatch(name):
            selection.check(name)
    return Request(
        assets=names,
        partition=encode_key(partition),
        upstream=upstream,
        force=force,
        on_conflict=_one_of(OnConflict, "on_conflict", on_conflict),
        io=_managers(io or {}),
        resources=_overrides(resources or {}),
        priority=_one_of(Priority, "priority", priority),
        deadline=_deadline(deadline),
        pool=_pool(pool),
        choice=None if choice is None else tuple(choice.as_json()),
        only=None if only is None else _one_of(Only, "only", only),
        order=None if order is None else _one_of(Order, "order", order),
        queue=queue,
    )


def _managers(given: Any) -> dict[str, str]:  # noqa: ANN401 - the caller may not check types
    if not isinstance(given, Mapping) or not all(isinstance(n, str) for n in given.values()):
        raise BadConfig("io must be a mapping of asset -> name of an IO manager")
    chosen = {str(asset): name for asset, name in given.items()}
    for text in (*chosen, *chosen.values()):
        # PostgreSQL cannot even store a NUL.
        if not NAME.fullmatch(text):
            raise BadConfig(f"io names {text!r}, which is no name of an asset or of an IO manager")
    return chosen


def _overrides(given: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any]:
    # What is None is not given, and must not look as if it were.
    said = {name: values for name, values in given.items() if values is not None}
    kept = json_config(said, "the config of a resource", "mapping of resource")
    return {name: values for name, values in without_none(kept).items() if values}


_Word = TypeVar("_Word", bound=StrEnum)


def _one_of(words: type[_Word], what: str, given: str) -> _Word:
    try:
        return words(given)
    except ValueError:
        known = ", ".join(repr(str(word)) for word in words)
        raise BadConfig(f"{what} is {given!r}; it must be one of {known}") from None


def _deadline(given: float | None) -> float | None:
    if given is not None and not 0 < given < MAX_DEADLINE:
        raise BadConfig(f"deadline is {given}; it must be a number of seconds, above 0")
    return given


def _pool(given: str | None) -> str | None:
    if given is not None and not NAME.fullmatch(given):
        raise BadConfig(f"pool is {given!r}, which is no name of a pool")
    return given


def _nothing_more(conn: Connection, run_id: UUID) -> None:
    """Record a run and nothing else."""


def record(
    here: Runtime,
    request: Request,
    config: Config | None,
    max_in_flight: int | None,
    *,
    driver: Driver,
    key: str | None,
    attach: Callable[[Connection, UUID], None] = _nothing_more,
) -> tuple[UUID, bool]:
    """Record a request, unless there is a run with its key; return the run, and if it is new.

    What is to be there with a new run is what `attach` writes, in the same transaction.
    """
    _check_key(key)
    if request.resources:
        # Before it is stored, as it could hold a secret in a place where none is expected.
        check_overrides(here.registry.resources, here.settings.resources, request.resources)
    run_id = uuid4()
    values = json_config(config or {}), window(here, max_in_flight)
    check_config(here, request, values[0])
    lease = here.leases.seconds if driver == "inline" else None
    with here.ledger.begin() as conn:
        if create(conn, run_id, request, *values, driver=driver, key=key, lease=lease):
            attach(conn, run_id)
            return run_id, True
        assert key is not None
        return _same(runs.of_key(conn, key), request, values[0], key), False


def check_config(here: Runtime, request: Request, config: Mapping[str, Any]) -> None:
    """Raise BadConfig for a config that does not fit, as far as this process can tell.

    It can if it has the definitions; without a config, none are imported for that. Whether the
    config of what is upstream may be left out, the planner knows, and of which assets no partition
    is left where only some are asked for.
    """
    found = here.definitions(importing=bool(config))
    if found is None:
        return
    # First, as a config that is refused for anything else could be stored all the same.
    refuse_secrets(found.graph.assets, config)
    try:
        selected = selected_by(request, found.graph)
    except (BadSelection, UnknownAsset):
        # The coordinator knows more, or says what is wrong.
        return
    assets = found.graph.assets
    if not (here.has_all_definitions or assets.keys() >= set(request.assets)):
        # A selection may mean more where more is defined.
        config = {name: given for name, given in config.items() if name in assets}
    check_names(config, selected.assets)
    needed = selected.anchors if request.only is None else ()
    for name in (*needed, *config):
        asset_config(assets[name], config)


def _same(found: runs.Run, request: Request, config: Mapping[str, Any], key: str) -> UUID:
    """Return the run of an idempotency key; raise KeyReused if it is not the one asked for."""
    if (found.request, found.config) != (request, config):
        raise key_reused(key, found.id)
    return found.id


def key_reused(key: str | None, run_id: UUID) -> KeyReused:
    """Return the error for the idempotency key of a run that is not the one asked for."""
    return KeyReused(
        f"the idempotency key {key!r} belongs to run {run_id}, whose request or config is "
        "a different one; use another key"
    )


def _check_key(key: str | None) -> None:
    given: Any = key  # as the caller may not check types
    if given is None:
        return
    if not isinstance(given, str) or not given.strip() or len(given) > MAX_IDEMPOTENCY_KEY:
        raise BadConfig(f"an idempotency key is a text of 1 to {MAX_IDEMPOTENCY_KEY} characters")
    if not given.isprintable():
        raise BadConfig(f"the idempotency key {given!r} holds characters that cannot be printed")


def create(
    conn: Connection,
    run_id: UUID,
    request: Request,
    config: Mapping[str, Any],
    max_in_flight: int,
    *,
    driver: Driver,
    key: str | None = None,
    lease: float | None = None,
) -> bool:
    """Record a run; return False, and record nothing, if there is one with that key."""
    return runs.create(
        conn,
        run_id,
        request,
        config=config,
        driver=driver,
        max_in_flight=max_in_flight,
        actor=whoami(),
        idempotency_key=key,
        lease=lease,
    )


def window(here: Runtime, max_in_flight: int | None) -> int:
    """Return the window of a run, by default that of the settings; raise BadConfig."""
    check_window("max_in_flight", max_in_flight)
    return max_in_flight or here.settings.max_in_flight


def check_window(what: str, given: object) -> None:
    """Raise BadConfig for what can be no window of a run; the caller may not check types."""
    if given is None:
        return
    if not isinstance(given, int) or isinstance(given, bool) or not 0 < given <= MAX_WINDOW:
        raise BadConfig(f"{what} is {given!r}; it must be a whole number from 1 to {MAX_WINDOW}")


def json_config(
    config: Config, what: str = "config", shape: str = "mapping of asset"
) -> dict[str, Any]:
    """Return a config as it is stored with its run; raise BadConfig."""
    given: Any = config  # as the caller may not check types
    if not isinstance(given, Mapping) or not all(isinstance(c, Mapping) for c in given.values()):
        raise BadConfig(f"{what} must be a {shape} -> mapping of values")
    try:
        text = json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadConfig(f"{what} must hold JSON values only: {error}") from None
    if "\\u0000" in text:
        raise BadConfig(f"{what} holds the character NUL, which PostgreSQL cannot store")
    back: dict[str, Any] = json.loads(text)
    return back
