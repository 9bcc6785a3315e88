"""How an attempt can end: a closed set of values, decided in one place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flowstone.approval import Ask
from flowstone.check import Checked
from flowstone.classification import classify, error_text
from flowstone.errors import Cancelled
from flowstone.freshness import Fingerprint
from flowstone.names import DEFAULT_IO
from flowstone.retry import Retry
from flowstone.signalling import SignalAsk
from flowstone.states import StepState
from flowstone.texts import MAX_MESSAGE, storable

_S = StepState


@dataclass(frozen=True)
class StoredOutput:
    """A value that lies at its immutable location, not yet known to any reader.

    `size` is in bytes, `sha256` the hexadecimal digest of those bytes, `rows` the
    height of a frame, or None for a value that has no rows.
    """

    location: str
    format: str
    size: int
    sha256: str
    rows: int | None
    io: str = DEFAULT_IO
    """The name of the IO manager that keeps it."""


@dataclass(frozen=True)
class RefusedValue:
    """A staged value that a blocking check has refused, and what all checks said of it."""

    output: StoredOutput
    checks: tuple[Checked, ...]


@dataclass(frozen=True)
class Failure:
    """What the ledger keeps of an exception."""

    type: str
    message: str
    traceback: str
    retryable: bool
    retry_after: float | None = None
    """The seconds after which the error asked to be tried again: a server may have set them."""

    def as_json(self) -> dict[str, Any]:
        """Return the summary that steps and runs carry; the traceback stays with the attempt."""
        return {"type": self.type, "message": self.message, "retryable": self.retryable}


@dataclass(frozen=True)
class Succeeded:
    """The asset's value is staged; `fingerprint` tells what it was made of."""

    output: StoredOutput
    fingerprint: Fingerprint
    version: str | None = None
    """What the definition of the asset calls its code."""
    checks: tuple[Checked, ...] = ()
    """What the checks of the asset have said; none of them refuses it."""
    cut: str | None = None
    """How the partitions are cut of which it is one."""


@dataclass(frozen=True)
class Waiting:
    """The step waits outside of all workers until what it asks for was decided, or has come.

    `value` is what was staged to be approved, if anything was; `fingerprint` is of all that it
    was made of.
    """

    ask: Ask | SignalAsk
    fingerprint: Fingerprint
    value: Succeeded | None = None

    @property
    def state(self) -> StepState:
        """That of the step, meanwhile."""
        return _S.WAITING_APPROVAL if isinstance(self.ask, Ask) else _S.WAITING_SIGNAL


@dataclass(frozen=True)
class Void:
    """What was approved counts no longer, for a `reason`; the step begins anew."""

    reason: str


@dataclass(frozen=True)
class Skipped:
    """The step need not run: what the step `reuses` has made would come out the same."""

    reuses: int


@dataclass(frozen=True)
class Failed:
    """The step has failed for good; what a check has `refused` goes to quarantine."""

    failure: Failure
    refused: RefusedValue | None = None


@dataclass(frozen=True)
class Retrying:
    """The step is tried again after `delay` seconds.

    `parked` is set where it waits for that in the ledger, outside its canvas; else its
    worker keeps the message, and the canvas goes on after it.
    """

    failure: Failure
    delay: float
    parked: bool = False


@dataclass(frozen=True)
class Stopped:
    """The step has ended before it was done, because its run is cancelled."""

    failure: Failure


Outcome = Succeeded | Waiting | Void | Skipped | Failed | Retrying | Stopped


def decide(
    error: BaseException,
    trace: str,
    failures: int,
    policy: Retry,
    *,
    cancelled: bool = False,
    park_after: float = math.inf,
    unknown: bool = False,
    now: datetime | None = None,
    mask: Callable[[str], str] = str,
) -> Failed | Retrying | Stopped:
    """Return what follows from an error, by which the step has failed for the nth time.

    `failures` (1, 2, ...) counts this one; attempts that ended otherwise, lost with their
    process perhaps, do not count. `cancelled` says whether the step has been asked to stop:
    without that, an asset that raises Cancelled has failed. A delay of more than `park_after`
    seconds is parked. `unknown` and `now` are those of `classify`. `mask` takes the secrets
    out of the error's text; `trace` is without.
    """
    kind = classify(error, on=policy.on, never=policy.never, unknown=unknown, now=now)
    failure = Failure(
        kind.type,
        storable(mask(error_text(error)))[:MAX_MESSAGE],
        storable(trace),
        kind.retryable,
        kind.retry_after,
    )
    if cancelled and isinstance(error, Cancelled):
        return Stopped(failure)
    if kind.retryable and failures < policy.max_attempts:
        asked = kind.retry_after
        delay = policy.delay(failures) if asked is None else asked
        return Retrying(failure, delay, parked=delay > park_after)
    return Failed(failure)
