"""Assets: what people declare. A decorated function makes one named, partitioned data artefact."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any, Final, Protocol, cast, overload

from flowstone.approval import Approval
from flowstone.attributes import Tags, checked_owners, checked_tags, checked_word
from flowstone.errors import BadSignature, DefinitionError
from flowstone.freshness import digest
from flowstone.limits import Policy, Rate, Timeout, asset_key, rate_key
from flowstone.mapping import PartitionMapping, written
from flowstone.names import DEFAULT_IO, NAME
from flowstone.partition import PartitionSet, UnpartitionedSet
from flowstone.retry import Retry
from flowstone.rollup import Needs
from flowstone.signature import check_handler, code_of, location_of, parameters
from flowstone.source import code_hash

Handler = Callable[..., Any]
"""A function that makes the value of an asset after an approval or a signal."""


@dataclass(frozen=True)
class Dep:
    """A dependency written out: the asset to read and, if not the default, the mapping."""

    asset: str
    mapping: PartitionMapping | None = None
    optional: bool = False
    """Whether the asset is computed without it if it is missing or fails; it then gets None."""
    needs: Needs | None = None
    """How many of the partitions that it reads must be there: AtLeast(20), Ratio(0.9), else all."""
    grace: timedelta | None = None
    """How long after the end of its window the asset waits for partitions that are missing."""


@dataclass(frozen=True)
class Dependency:
    """One upstream asset of an asset, and the parameter that receives it (None: order only)."""

    asset: str
    parameter: str | None
    mapping: PartitionMapping | None
    optional: bool = False
    needs: Needs | None = None
    grace: timedelta | None = None

    @property
    def may_miss_some(self) -> bool:
        """Whether the asset is computed although a partition of it is missing or has failed."""
        return self.optional or self.needs is not None


@dataclass(frozen=True)
class Asset:
    """A named data artefact with the function that computes it. Made by `@asset`."""

    name: str
    function: Callable[..., Any]
    dependencies: tuple[Dependency, ...]
    partitions: PartitionSet
    context_parameter: str | None
    requires: tuple[str, ...]
    """The resources that the function may use."""
    config: type[Any] | None
    retry: Retry
    queue: str
    description: str
    location: str
    version: str | None = None
    volatile: bool = False
    io: str = DEFAULT_IO
    """The name of the IO manager that keeps the outputs."""
    pickle: bool = False
    """Whether values that have no other format are pickled."""
    keep: int | None = None
    """How many versions of a partition are kept; None keeps all."""
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The columns, as "asset.column", that each declared column is made of."""
    injected: tuple[str, ...] = ()
    """The resources that parameters of the same names receive."""
    timeout: Timeout | None = None
    """How long an attempt may take; None leaves that to the settings."""
    pool: str | None = None
    """The pool of which an attempt takes slots."""
    weight: int = 1
    """How many slots of the pool it takes."""
    max_running: int | None = None
    """How many steps of the asset may be dispatched at once, over all runs."""
    rate: Rate | None = None
    """How often attempts may start."""
    approval: Approval | None = None
    """What people are asked before a value counts."""
    on_approved: Handler | None = None
    """Makes the value when people have approved; without it, that is what they have approved."""
    on_rejected: Handler | None = None
    """Makes the value when they have rejected; without it, the step fails then."""
    on_signal: Handler | None = None
    """Makes the value when a signal has come; without it, that is the payload."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """What it is selected by; "" for a tag without a value."""
    group: str | None = None
    """Which assets it belongs to."""
    kind: str | None = None
    """What it is, such as "table" or "report"."""
    owners: tuple[str, ...] = ()
    """The people or teams who answer for it."""

    @cached_property
    def code_hash(self) -> str:
        """The hash of the version, or of the function's source, and of how it gets its inputs.

        By another mapping the same partitions may come as one value, or as a dict of them.
        """
        reads = [
            [d.parameter, d.asset, None if d.mapping is None else written(d.mapping, self._code_of)]
            for d in self.dependencies
        ]
        handlers = [self.on_approved, self.on_rejected, self.on_signal]
        later = [handler and code_hash(handler, self.version) for handler in handlers]
        # Without any it is that of older versions.
        return digest(
            [code_hash(self.function, self.version), reads, *([later] if any(later) else [])]
        )

    def _code_of(self, function: Callable[..., Any]) -> str:
        """Return the hash of a function by which a mapping goes, as it is of the asset's own."""
        try:
            return code_hash(function, self.version)
        except DefinitionError:
            # Such as the `get` of a dict, of which there is no source.
            return ""

    @property
    def reads_itself(self) -> bool:
        """Whether a partition of it is made of other ones of the same asset."""
        return any(dependency.asset == self.name for dependency in self.dependencies)

    def policy(self, run_pool: str | None = None) -> Policy:
        """Return what holds for the steps of the asset, in a run that shares a pool perhaps."""
        takes: dict[str, int] = {run_pool: 1} if run_pool else {}
        if self.pool is not None:
            takes[self.pool] = self.weight
        if self.max_running is not None:
            takes[asset_key(self.name)] = 1
        if self.rate is not None:
            takes[rate_key(self.rate, self.name)] = 1
        return Policy(takes, self.timeout, self.retry.max_lost)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the user's own types
        """Call the function itself, as a test of the asset would."""
        return self.function(*args, **kwargs)

    def __str__(self) -> str:
        return self.name


def check_timeouts(assets: Iterable[Asset], limit: float) -> None:
    """Raise DefinitionError for an asset that may take longer than `limit`, in seconds.

    Brokers give a message out again, and results of chords expire, by that limit.
    """
    for asset in assets:
        if asset.timeout is not None and asset.timeout.hard > limit:
            raise DefinitionError(
                f"asset {asset.name!r} ({asset.location}) has a hard timeout of "
                f"{asset.timeout.hard:g} s, above FLOWSTONE_TIME_LIMIT ({limit:g} s); lower its "
                "timeout=, or raise the setting for all processes"
            )


class Definition(Protocol):
    """What a decorator makes."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def function(self) -> Callable[..., Any]: ...  # noqa: D102
    @property
    def location(self) -> str: ...  # noqa: D102


class Definitions:
    """What the decorators have recorded in this process.

    A redefinition must not silently win, so they remember all that they saw rather
    than leave it to the module's namespace: two definitions of a name are told when
    the definitions are loaded. A module that is loaded anew replaces what it defined
    at the same place: it is compiled anew, whereas a loop runs the same code again.
    """

    def __init__(self) -> None:
        self._by_place: dict[tuple[str, str], list[Definition]] = {}

    def add(self, made: Definition) -> None:
        """Record a definition."""
        here = self._by_place.setdefault((made.name, made.location), [])
        if here and code_of(here[-1].function) is not code_of(made.function):
            here.clear()
        here.append(made)

    def __iter__(self) -> Iterator[Definition]:
        """Yield all definitions in the order in which they were made first."""
        for here in self._by_place.values():
            yield from here


DEFINED: Final = Definitions()


@overload
def asset(function: Callable[..., Any], /) -> Asset: ...
@overload
def asset(
    *,
    name: str | None = ...,
    deps: Sequence[str | Dep] | Mapping[str, str | Dep] = ...,
    partitions: PartitionSet | None = ...,
    requires: Sequence[str] = ...,
    config: type[Any] | None = ...,
    retry: Retry | None = ...,
    queue: str = ...,
    version: str | None = ...,
    volatile: bool = ...,
    io: str = ...,
    pickle: bool = ...,
    keep: int | None = ...,
    columns: Mapping[str, Sequence[str]] | None = ...,
    timeout: float | Timeout | None = ...,
    pool: str | None = ...,
    weight: int = ...,
    max_running: int | None = ...,
    rate: Rate | None = ...,
    approval: Approval | None = ...,
    on_approved: Handler | None = ...,
    on_rejected: Handler | None = ...,
    on_signal: Handler | None = ...,
    description: str | None = ...,
    tags: Tags = ...,
    group: str | None = ...,
    kind: str | None = ...,
    owners: Sequence[str] = ...,
) -> Callable[[Callable[..., Any]], Asset]: ...
def asset(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    deps: Sequence[str | Dep] | Mapping[str, str | Dep] = (),
    partitions: PartitionSet | None = None,
    requires: Sequence[str] = (),
    config: type[Any] | None = None,
    retry: Retry | None = None,
    queue: str = "assets",
    version: str | None = None,
    volatile: bool = False,
    io: str = DEFAULT_IO,
    pickle: bool = False,
    keep: int | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
    timeout: float | Timeout | None = None,
    pool: str | None = None,
    weight: int = 1,
    max_running: int | None = None,
    rate: Rate | None = None,
    approval: Approval | None = None,
    on_approved: Handler | None = None,
    on_rejected: Handler | None = None,
    on_signal: Handler | None = None,
    description: str | None = None,
    tags: Tags = (),
    group: str | None = None,
    kind: str | None = None,
    owners: Sequence[str] = (),
) -> Asset | Callable[[Callable[..., Any]], Asset]:
    """Declare that a function makes an asset.

    Each parameter of the function names the asset that it reads, but for
    `context`, which receives the `Context`, and those named like resources in `requires`,
    which receive these. `deps` says more: a mapping
    `{"parameter": "asset"}` where the two names differ or the partition mapping
    is not the default, or a list of assets that must come first although the
    function does not receive them. `Dep(..., optional=True)` in either lets the asset
    be computed without: None arrives for what is missing or has failed.

    `name` defaults to the function's name, `partitions` to none, `config` is a
    pydantic model whose fields a run may set, `queue` one of the Celery queues.
    `version` says when the asset makes something else; without one, that is when the
    source of the function changes. A `volatile` asset reads what is outside the graph, a
    service perhaps, so that it is computed anew each time. `columns` says for columns of the
    value which columns of the assets that it reads they are made of, as "asset.column".
    `io` names the IO manager that keeps the outputs, `pickle` allows for values that have no
    other format, `keep` is how many versions of a partition the collector leaves, and
    `requires` names resources.

    `timeout` is how many seconds an attempt may take, `pool` names the pool of which it takes
    `weight` slots, `max_running` is how many steps of the asset may run at once, and `rate` how
    often attempts may start.

    `approval` has people approve each value before it counts. `on_approved`, `on_rejected` and
    `on_signal` are functions that make the value when an approval was decided, or a signal has
    come; they may take what the function takes, and `decision`, or `payload` and `signal`.

    `tags` (a mapping, or a list such as `["daily", "team=data"]`), `group`, `kind` and `owners`
    are words by which people find and select assets; what is computed does not depend on them.
    Raises BadSignature for a function that cannot be called that way, and DefinitionError for
    numbers that make no sense.
    """

    def declare(function: Callable[..., Any]) -> Asset:
        needed = _requires(function, requires)
        _check_handlers(function, needed, on_approved, on_rejected, on_signal)
        where = f"asset {function.__name__!r} ({location_of(function)})"
        made = Asset(
            name=checked_name(function.__name__ if name is None else name),
            function=function,
            dependencies=_dependencies(function, deps, needed),
            partitions=partitions or UnpartitionedSet(),
            context_parameter="context" if "context" in _filled(function) else None,
            requires=needed,
            config=config,
            retry=retry or Retry(),
            queue=queue,
            description=(
                inspect.getdoc(function) or ""
                if description is None
                else inspect.cleandoc(description)
            ),
            location=location_of(function),
            version=version,
            volatile=volatile,
            io=io,
            pickle=pickle,
            keep=_checked_keep(function, keep),
            columns=_columns(function, columns or {}),
            injected=tuple(name for name in _filled(function) if name in needed),
            timeout=timeout if isinstance(timeout, Timeout | None) else Timeout(timeout),
            pool=_checked_pool(function, pool, weight),
            weight=weight,
            max_running=_checked_max_running(function, max_running),
            rate=rate,
            approval=approval,
            on_approved=on_approved,
            on_rejected=on_rejected,
            on_signal=on_signal,
            tags=checked_tags(tags, where),
            group=checked_word(group, "group", where),
            kind=checked_word(kind, "kind", where),
            owners=checked_owners(owners, where),
        )
        DEFINED.add(made)
        return made

    return declare if function is None else declare(function)


def _check_handlers(
    function: Callable[..., Any],
    needed: Sequence[str],
    on_approved: Handler | None,
    on_rejected: Handler | None,
    on_signal: Handler | None,
) -> None:
    known = {*_filled(function), *needed, "context"}
    check_handler("on_approved=", on_approved, known, ["decision"])
    check_handler("on_rejected=", on_rejected, known, ["decision"])
    check_handler("on_signal=", on_signal, known, ["payload", "signal"])


def _checked_keep(function: Callable[..., Any], keep: int | None) -> int | None:
    if keep is not None and keep < 1:
        raise DefinitionError(
            f"asset {function.__name__!r} ({location_of(function)}): keep={keep}, but the latest "
            "version is always kept; say 1 or more"
        )
    return keep


def _checked_pool(function: Callable[..., Any], pool: str | None, weight: int) -> str | None:
    where = f"asset {function.__name__!r} ({location_of(function)})"
    if weight < 1 or (weight > 1 and pool is None):
        raise DefinitionError(f"{where}: weight={weight}; it is 1 or more slots of the pool=")
    return pool if pool is None else checked_name(pool)


def _checked_max_running(function: Callable[..., Any], max_running: int | None) -> int | None:
    if max_running is not None and max_running < 1:
        raise DefinitionError(
            f"asset {function.__name__!r} ({location_of(function)}): max_running={max_running}, "
            "so that it could never run; say 1 or more"
        )
    return max_running


def checked_name(name: str) -> str:
    """Return a name that definitions may have; raise DefinitionError."""
    if NAME.fullmatch(name):
        return name
    raise DefinitionError(
        f"{name!r} is not a name; use letters, digits, '_', '.' and '-', at most 200 characters"
    )


def _filled(function: Callable[..., Any]) -> list[str]:
    return parameters(function, f"asset {function.__name__!r} ({location_of(function)})")


def _requires(function: Callable[..., Any], requires: Sequence[str]) -> tuple[str, ...]:
    if isinstance(requires, str):
        raise BadSignature(f"asset {function.__name__!r}: requires= takes a list, not a string")
    return tuple(dict.fromkeys(requires))


def _dependencies(
    function: Callable[..., Any],
    deps: Sequence[str | Dep] | Mapping[str, str | Dep],
    requires: Sequence[str],
) -> tuple[Dependency, ...]:
    if isinstance(deps, str):
        raise BadSignature(f"asset {function.__name__!r}: deps= takes a list, not a string")
    named = {k: _dep(v) for k, v in deps.items()} if isinstance(deps, Mapping) else {}
    unnamed = [] if isinstance(deps, Mapping) else [_dep(d) for d in cast("Sequence[str]", deps)]
    filled = [name for name in _filled(function) if name != "context"]
    _refuse_both(function, {*named, *(d.asset for d in (*named.values(), *unnamed))}, requires)
    filled = [name for name in filled if name not in requires]
    _refuse_twice(function, unnamed)
    stray = sorted(set(named) - set(filled))
    if stray:
        raise BadSignature(
            f"asset {function.__name__!r} ({location_of(function)}): deps= names the parameter "
            f"{stray[0]!r}, which the function does not have"
        )
    found = [
        _dependency(function, dep, parameter)
        for parameter in filled
        for dep in [named.get(parameter) or _listed(unnamed, parameter) or Dep(parameter)]
    ]
    received = {d.asset for d in found}
    found += [_dependency(function, dep, None) for dep in unnamed if dep.asset not in received]
    _refuse_twice(function, found)
    return tuple(found)


def _dependency(function: Callable[..., Any], dep: Dep, parameter: str | None) -> Dependency:
    where = f"asset {function.__name__!r} ({location_of(function)}) reads {dep.asset!r} with"
    if dep.optional and dep.needs is not None:
        raise DefinitionError(
            f"{where} optional=True, which needs none, and with needs= {dep.needs}; say one of both"
        )
    if dep.grace is not None and dep.grace <= timedelta(0):
        raise DefinitionError(f"{where} grace={dep.grace}; it is a time to wait, above 0")
    return Dependency(dep.asset, parameter, dep.mapping, dep.optional, dep.needs, dep.grace)


def _columns(
    function: Callable[..., Any], columns: Mapping[str, Sequence[str]]
) -> Mapping[str, tuple[str, ...]]:
    for name, made_of in columns.items():
        if isinstance(made_of, str):
            raise BadSignature(
                f"asset {function.__name__!r} ({location_of(function)}): columns= takes a list for "
                f"each column, not a string; write {name!r}: [{made_of!r}]"
            )
    return {name: tuple(made_of) for name, made_of in columns.items()}


def _listed(deps: Sequence[Dep], name: str) -> Dep | None:
    return next((dep for dep in deps if dep.asset == name), None)


def _refuse_both(function: Callable[..., Any], read: set[str], requires: Sequence[str]) -> None:
    for name in requires:
        if name in read:
            raise BadSignature(
                f"asset {function.__name__!r} ({location_of(function)}): {name!r} is both an asset "
                "that it reads and a resource that it requires; rename one of the two"
            )


def _refuse_twice(function: Callable[..., Any], found: Sequence[Dep | Dependency]) -> None:
    names = [dependency.asset for dependency in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise BadSignature(f"asset {function.__name__!r} reads {twice[0]!r} twice; read it once")


def _dep(value: str | Dep) -> Dep:
    return value if isinstance(value, Dep) else Dep(str(value))
