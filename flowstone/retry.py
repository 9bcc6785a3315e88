"""Which errors are worth another try, and how long to wait before it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from flowstone.errors import DefinitionError, FlowStoneError

RETRYABLE: Final[tuple[type[BaseException], ...]] = (ConnectionError, TimeoutError, OSError)
"""Faults of the world around: the next attempt may find it mended."""

NOT_RETRYABLE: Final[tuple[type[BaseException], ...]] = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
"""OSErrors that say the same at every attempt."""


@dataclass(frozen=True)
class Retry:
    """The retry policy of an asset: at most `max_attempts`, with growing delays in seconds.

    The delay after attempt n is `base * factor**n`, at most `max_delay`: 30, 90
    and 270 s by default. Full jitter draws it evenly from zero to that (Brooker,
    "Exponential Backoff And Jitter", 2015).
    """

    max_attempts: int = 3
    base: float = 10
    factor: float = 3
    max_delay: float = 3600
    jitter: Literal["none", "full"] = "none"
    max_lost: int = 3
    """How often the process that runs a step may die before the step fails."""

    def __post_init__(self) -> None:
        """Raise DefinitionError where a number makes no sense."""
        counts = min(self.max_attempts, self.max_lost)
        if counts < 1 or self.base < 0 or self.factor < 1 or self.max_delay < 0:
            raise DefinitionError(
                f"{self}: needs max_attempts >= 1, base >= 0, factor >= 1, max_delay >= 0, "
                "max_lost >= 1"
            )

    def delay(self, attempt: int, draw: Callable[[], float] = random.random) -> float:
        """Return the seconds to wait after `attempt` (1, 2, ...) has failed."""
        try:
            delay = min(self.base * float(self.factor) ** attempt, self.max_delay)
        except OverflowError:
            delay = self.max_delay if self.base else 0
        return delay * draw() if self.jitter == "full" else delay


def is_retryable(error: BaseException) -> bool:
    """Return whether another attempt may go better than the one that raised `error`."""
    if isinstance(error, FlowStoneError):
        return error.retryable
    return isinstance(error, RETRYABLE) and not isinstance(error, NOT_RETRYABLE)


def error_type(error: BaseException) -> str:
    """Return the stable name under which the ledger stores an error."""
    return error.type if isinstance(error, FlowStoneError) else type(error).__name__


def error_text(error: BaseException) -> str:
    """Return what an error says."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - the user's own __str__ must not hide the failure
        return f"<str() of this {type(error).__name__} failed>"
