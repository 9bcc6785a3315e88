"""Interrupting what takes too long: an error that is raised in the middle of it."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, Self

_AT_ONCE: Final = 1e-4
"""Seconds; a timer of none would be no timer."""


class Alarm:
    """The timer of this process, taken over for a block, in which `ringing` may interrupt.

    Only the main thread can be interrupted. Elsewhere the block changes nothing, and whoever
    asks `is_over` is told.

    An alarm within the block of another one holds that back until its own block has ended: so
    nothing that the inner block does besides its `ringing` is interrupted by either. A timer
    that others have set goes on, and their handler is called when it is due.
    """

    def __init__(self) -> None:
        self._taken = False
        self._end = math.inf
        self._rings_at = math.inf
        self._error: Callable[[], BaseException] = KeyboardInterrupt
        self._outer: Any = None
        self._outer_at = math.inf
        self._outer_interval = 0.0

    @property
    def is_over(self) -> bool:
        """Whether the time that was given last is over."""
        return time.monotonic() >= self._end

    @contextmanager
    def ringing(self, seconds: float, error: Callable[[], BaseException]) -> Iterator[None]:
        """Raise `error`, once, if the block takes more than these seconds.

        It may come as late as at the very end of the block, but never after it.
        """
        self._error = error
        self._end = self._rings_at = time.monotonic() + seconds
        self._schedule()
        try:
            yield
        finally:
            # Not reached where the alarm rings at the very end of the block; but it rings once.
            self._rings_at = math.inf

    def __enter__(self) -> Self:
        """Take the timer over."""
        if threading.current_thread() is not threading.main_thread():
            return self
        left, self._outer_interval = signal.setitimer(signal.ITIMER_REAL, 0)
        self._outer_at = time.monotonic() + left if left else math.inf
        self._outer = signal.signal(signal.SIGALRM, self._handle)
        self._taken = True
        self._schedule()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the timer back; what should have rung meanwhile does so now."""
        if not self._taken:
            return
        self._taken = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        # None is that of a library which is not written in Python; it cannot be put back.
        signal.signal(signal.SIGALRM, signal.SIG_DFL if self._outer is None else self._outer)
        if self._outer_at < math.inf:
            left = max(_AT_ONCE, self._outer_at - time.monotonic())
            signal.setitimer(signal.ITIMER_REAL, left, self._outer_interval)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now >= self._rings_at:
            self._rings_at = math.inf
            self._schedule()
            raise self._error()
        if now >= self._outer_at and not self._is_held_back:
            interval = self._outer_interval
            self._outer_at = now + interval if interval else math.inf
            self._schedule()
            self._outer(number, frame)
            return
        # A timer may be a little early.
        self._schedule()

    @property
    def _is_held_back(self) -> bool:
        # What is no function is the end of the process, which can wait, or nothing at all.
        return isinstance(getattr(self._outer, "__self__", None), Alarm) or not callable(
            self._outer
        )

    def _schedule(self) -> None:
        if not self._taken:
            return
        at = min(self._rings_at, math.inf if self._is_held_back else self._outer_at)
        left = 0 if at == math.inf else max(_AT_ONCE, at - time.monotonic())
        signal.setitimer(signal.ITIMER_REAL, left)
