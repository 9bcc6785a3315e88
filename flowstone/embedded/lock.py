"""One supervisor for each server of a home, held by a file lock that ends with its holder."""

from __future__ import annotations

import fcntl
import functools
import os
from typing import TYPE_CHECKING

from flowstone.errors import ServerError

if TYPE_CHECKING:
    from pathlib import Path

_held: set[int] = set()


class AlreadyRunningError(ServerError):
    """Another process, or another object of this one, runs the server of a home."""


def hold(path: Path, what: str) -> int:
    """Take the lock file `path` and return its descriptor; AlreadyRunningError if it is taken."""
    _let_go_in_children()
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(lock, 20).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise AlreadyRunningError(
            f"{what} is already run by process {holder}; stop that one, or use its servers",
            original=error,
        ) from error
    _held.add(lock)
    os.truncate(lock, 0)
    os.write(lock, b"%d\n" % os.getpid())
    return lock


def release(lock: int) -> None:
    """Give back what `hold` returned."""
    _held.discard(lock)
    os.close(lock)


@functools.cache
def _let_go_in_children() -> None:
    # A child that was forked but runs no other program, as a Celery pool process, would
    # keep the lock of its dead parent.
    os.register_at_fork(after_in_child=_close_all)


def _close_all() -> None:
    for lock in _held:
        os.close(lock)
    _held.clear()
