"""What a step says of itself whose process has died too often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from flowstone.texts import MAX_MESSAGE

SHOWN: Final = 10
"""The most deaths that are told one by one, the last ones."""


@dataclass(frozen=True)
class Death:
    """A process that has died while it ran an attempt."""

    attempt: int
    worker: str
    began: datetime
    seconds: float
    """How long it ran, as far as is known."""
    end: str
    """What is known of its end, such as "signal 9 (SIGKILL)"."""


def poisoned(step: str, deaths: Sequence[Death]) -> str:
    """Return the message of a step that is not tried again after these deaths, the last one last.

    Its first line is enough to act on, as lists show no more of it; a line for each death
    follows.
    """
    times = Counter(death.end for death in deaths)
    ends = ", ".join(end if n == 1 else f"{n} times {end}" for end, n in times.most_common(3))
    last = deaths[-1]
    often = "once" if len(deaths) == 1 else f"{len(deaths)} times"
    first = (
        f"the process that ran {step} has died {often} ({ends}; the last one after "
        f"{last.seconds:.1f} s on {last.worker}); look for what kills it, such as the memory "
        "that it takes"
    )
    return "\n".join([first, *map(_line, deaths[-SHOWN:])])[:MAX_MESSAGE]


def _line(death: Death) -> str:
    began = death.began.astimezone(UTC)
    return (
        f"attempt {death.attempt} began {began:%Y-%m-%d %H:%M:%S} UTC on {death.worker}, and ran "
        f"{death.seconds:.1f} s: {death.end}"
    )
