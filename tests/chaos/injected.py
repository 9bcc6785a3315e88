"""Faults inside the processes of FlowStone, which files in a folder order.

The functions between which they lie are wrapped from outside: FlowStone itself knows nothing of
them. A file `kill-POINT` kills the first process that comes to the point; each `drop-...` lets one
message vanish; while there is `twice`, each message is sent twice.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from copy import deepcopy
from functools import wraps
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from kombu.transport.redis import Channel

import flowstone.canvas
from flowstone import behind, coordinator
from flowstone.store import dispatch, plans, steps
from flowstone.work import Work

CLAIM: Final = "claim"
BEFORE_COMMIT: Final = "before-commit"
AFTER_COMMIT: Final = "after-commit"
PLANNING: Final = "planning"
DISPATCHING: Final = "dispatching"
PUBLISHING: Final = "publishing"

TWICE: Final = "twice"

_installed: list[Path] = []


def order(folder: Path, what: str) -> None:
    """Order a fault."""
    (folder / what).touch()


def busy(folder: Path, pid: int) -> Path:
    """Return the file that is there while a process runs the function of an asset."""
    return folder / f"busy-{pid}"


def is_busy(folder: Path, pid: int) -> bool:
    """Return whether a process runs the function of an asset."""
    return busy(folder, pid).exists()


def withdraw(folder: Path) -> None:
    """Withdraw all faults that have been ordered and have not come."""
    for file in folder.iterdir():
        file.unlink(missing_ok=True)


def install(folder: str) -> None:
    """Wrap what the faults lie between, once in a process."""
    if _installed:
        return
    install_for_messages(Path(folder))
    _around(steps, "claim", after=CLAIM)
    _around(Work, "stage", after=BEFORE_COMMIT)
    # What was approved is committed without having been staged anew.
    _around(behind, "go_on", after=BEFORE_COMMIT)
    _around(steps, "commit", after=AFTER_COMMIT)
    _around(plans, "write", after=PLANNING)
    _around(dispatch, "mark", after=DISPATCHING)
    _around(coordinator, "take_ready", after=DISPATCHING)
    _around(flowstone.canvas.Publisher, "publish", after=PUBLISHING)


def install_for_messages(folder: Path) -> None:
    """Wrap what sends messages: all that a process needs which only sends."""
    _installed.append(folder)
    _put_as_ordered(Channel)


def _around(module: Any, name: str, *, after: str) -> None:
    inner = getattr(module, name)
    main = os.getpid()

    @wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        answer = inner(*args, **kwargs)
        # The main process claims, too, on behalf of a process that has died; it is not meant.
        if os.getpid() != main and _taken(f"kill-{after}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(module, name, outer)


def _taken(order: str) -> bool:
    """Return whether a fault was ordered that comes once, and is this process's to suffer."""
    try:
        (_installed[0] / order).unlink()
    except FileNotFoundError:
        return False
    return True


def _put_as_ordered(channel: type[Channel]) -> None:
    put: Callable[..., None] = channel._put

    @wraps(put)
    def outer(self: Channel, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        if any(_taken(file.name) for file in _installed[0].glob("drop-*")):
            return
        put(self, queue, message, **kwargs)
        if (_installed[0] / TWICE).exists():
            again = deepcopy(message)
            again["properties"]["delivery_tag"] = str(uuid4())
            put(self, queue, again, **kwargs)

    setattr(channel, "_put", outer)  # noqa: B010 - mypy takes it for a method of ours
