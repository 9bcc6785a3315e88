"""Waiting for what another process does: poll a condition, and say what did not come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.02


def wait_until(condition: Callable[[], T], what: str, deadline: float = 30) -> T:
    """Return the first true value of `condition`; fail after `deadline` seconds."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {deadline:g} s in vain: {what}"
        time.sleep(POLL_SECONDS)
    return value
