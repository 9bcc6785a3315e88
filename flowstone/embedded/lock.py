"""One supervisor for each server of a home, held by a file lock that ends with its holder."""

from __future__ import annotations

import fcntl
import functools
import os
import time
from typing import TYPE_CHECKING

from flowstone.errors import ServerError

if TYPE_CHECKING:
    from pathlib import Path

LET_GO_S = 2.0

_held: set[int] = set()


class AlreadyRunningError(ServerError):
    """Another process, or another object of this one, runs the server of a home."""


def hold(path: Path, what: str) -> int:
    """Take the lock file `path` and return its descriptor; AlreadyRunningError if it is taken."""
    _let_go_in_children()
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LET_GO_S
    while not _take(lock):
        holder = os.pread(lock, 20, 0).strip().decode(errors="replace")
        if _may_live(holder) or time.monotonic() > deadline:
            os.close(lock)
            raise AlreadyRunningError(
                f"{what} is already run by process {holder or 'unknown'}; "
                "stop that one, or use its servers"
            )
        # Killed this moment; a child that it was just forking may still have to let go.
        time.sleep(0.01)
    _held.add(lock)
    os.truncate(lock, 0)
    os.write(lock, b"%d\n" % os.getpid())
    return lock


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _may_live(holder: str) -> bool:
    try:
        os.kill(int(holder), 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except (ValueError, PermissionError):
        return True
    return True


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
