"""How often a step is tried, after which errors, and how long it waits in between."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from flowstone.errors import DefinitionError


@dataclass(frozen=True)
class Retry:
    """The retry policy of an asset: at most `max_attempts`, with growing delays in seconds.

    The delay after the nth failure is `base * factor**n`, at most `max_delay`: 30, 90
    and 270 s by default. Full jitter draws it evenly from zero to that (Brooker,
    "Exponential Backoff And Jitter", 2015). An attempt that was lost with its process is no
    failure: `max_lost` limits those.

    Errors of the classes `on` are tried again, those of the classes `never` are not. Of an
    error, the nearest class counts, its own before those that it is derived from, and `never`
    before `on`; the table in `flowstone.classification` decides on what is in neither.
    """

    max_attempts: int = 3
    base: float = 10
    factor: float = 3
    max_delay: float = 3600
    jitter: Literal["none", "full"] = "none"
    max_lost: int = 3
    """How often the process that runs a step may die before the step fails."""
    on: tuple[type[Exception], ...] = ()
    never: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        """Raise DefinitionError where a value makes no sense."""
        finite = all(map(math.isfinite, (self.base, self.factor, self.max_delay)))
        counts = min(self.max_attempts, self.max_lost)
        if counts < 1 or not finite or self.base < 0 or self.factor < 1 or self.max_delay < 0:
            raise DefinitionError(
                f"{self}: needs max_attempts >= 1, base >= 0, factor >= 1, max_delay >= 0, "
                "max_lost >= 1"
            )
        if self.jitter not in ("none", "full"):
            raise DefinitionError(f"{self}: jitter is 'none' or 'full'")
        for name in ("on", "never"):
            object.__setattr__(self, name, _classes(name, getattr(self, name)))

    def delay(self, failures: int, draw: Callable[[], float] = random.random) -> float:
        """Return the seconds to wait after the step has failed for the nth time (1, 2, ...)."""
        try:
            delay = min(self.base * float(self.factor) ** failures, self.max_delay)
        except OverflowError:
            delay = self.max_delay if self.base else 0
        return delay * draw() if self.jitter == "full" else delay


def _classes(name: str, given: Any) -> tuple[type[Exception], ...]:  # noqa: ANN401 - to be checked
    """Return classes of exceptions as a tuple, and a single one, too; raise DefinitionError."""
    classes = given if isinstance(given, tuple | list | set | frozenset) else (given,)
    for kind in classes:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise DefinitionError(
                f"Retry({name}=...) holds {kind!r}; it takes classes of exceptions, such as "
                f"{name}=(TimeoutError,)"
            )
    return tuple(classes)
