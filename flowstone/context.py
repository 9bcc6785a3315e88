"""What an asset's function is told about the step that it computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from flowstone.errors import (
    BadConfig,
    Cancelled,
    DefinitionError,
    StepTimeout,
    UnknownResource,
    did_you_mean,
)
from flowstone.names import NAME
from flowstone.partition import PartitionSet, ProductPartitions, Window
from flowstone.tokens import UNSIGNED


class Logger(Protocol):
    """A logger bound to run, asset, partition and attempt; takes an event and its values."""

    def debug(self, event: str, **values: Any) -> Any: ...  # noqa: ANN401, D102
    def info(self, event: str, **values: Any) -> Any: ...  # noqa: ANN401, D102
    def warning(self, event: str, **values: Any) -> Any: ...  # noqa: ANN401, D102
    def error(self, event: str, **values: Any) -> Any: ...  # noqa: ANN401, D102


class Resources(Mapping[str, Any]):
    """The resources that an asset has declared, and no others; each is made when first used."""

    def __init__(self, makers: Mapping[str, Callable[[], Any]]) -> None:
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - the user's own types
        """Return the resource; raise UnknownResource, ResourceUnavailable or BadConfig."""
        if name not in self._makers:
            raise UnknownResource(
                f"resource {name!r} is not declared by this asset; add it to requires="
                + did_you_mean(name, self._makers)
            )
        return self._makers[name]()

    def __iter__(self) -> Any:  # noqa: ANN401 - the signature of Mapping
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _never() -> bool:
    return False


def _in_time() -> None:
    """Say that there is still time."""


def _unsigned(name: str) -> str:
    raise BadConfig(f"there is no token for the signal {name!r}: {UNSIGNED}")


@dataclass(frozen=True)
class Context:
    """The step that an asset's function is called for.

    `partition` is the key: a date for a day or a week, a Month, a datetime for an hour, a tuple for
    a product, whatever a list of keys was given, or UNPARTITIONED. `attempt` counts from 1.
    `config` is an instance of the asset's config model, or None if it declares none.
    """

    run_id: str
    asset: str
    partition: Any
    partitions: PartitionSet
    attempt: int
    config: Any
    resources: Resources
    logger: Logger
    is_cancelled: Callable[[], bool] = field(default=_never, repr=False, compare=False)
    overtime: Callable[[], StepTimeout | None] = field(default=_in_time, repr=False, compare=False)
    token_of: Callable[[str], str] = field(default=_unsigned, repr=False, compare=False)

    @property
    def cancelled(self) -> bool:
        """Whether the step should stop.

        That is so where its run is cancelled, where another attempt has the step, and where
        its time is over.

        Costs nothing, so a loop may ask as often as it likes. The worker learns of a cancellation
        when it next renews its leases, within a third of FLOWSTONE_LEASE_SECONDS.
        """
        return self.is_cancelled() or self.overtime() is not None

    def raise_if_cancelled(self) -> None:
        """End the attempt if it should stop, by raising Cancelled, or StepTimeout at its end."""
        if self.is_cancelled():
            raise Cancelled(f"{self.asset!r} was asked to stop")
        if (error := self.overtime()) is not None:
            raise error

    def signal_token(self, name: str = "signal") -> str:
        """Return the token of a signal to this step, for `wait_for_signal` and for its sender.

        It is the same in each attempt, so that a job which was started by one that was lost still
        reaches the next. Raises BadConfig without FLOWSTONE_SECRET, and DefinitionError for what
        is no name.
        """
        if not NAME.fullmatch(name):
            raise DefinitionError(
                f"signal_token: {name!r} is not a name; use letters, digits, '_', '.' and '-'"
            )
        return self.token_of(name)

    @property
    def window(self) -> Window | None:
        """The stretch of time that the partition stands for, or None if it is not of time.

        Of a product that is the window of its one dimension of time; None if it has several.
        """
        return self.partitions.window_of(self.partition)

    @property
    def dimensions(self) -> dict[str, Any]:
        """The keys of the dimensions of a product by their names; empty for all other sets."""
        if isinstance(self.partitions, ProductPartitions):
            return dict(self.partitions.named(self.partition))
        return {}
