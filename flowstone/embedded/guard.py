"""Run a program, and end it with all its children: `python -I -S guard.py SECONDS PROGRAM ...`.

Asked by SIGTERM to end, also by the kernel when the parent has died, it passes
the signal on, and kills the whole process group after SECONDS. A pool of
processes needs that: one that computes survives its killed master. It imports
nothing but the standard library.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import FrameType


def guard(seconds: int, command: list[str]) -> int:
    """Return the exit status of `command`, which ends within `seconds` of a SIGTERM."""
    started: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature
        if not started:
            sys.exit(0)
        signal.alarm(seconds)
        started[0].send_signal(signal.SIGTERM)

    def kill(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature
        os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGALRM, kill)
    signal.signal(signal.SIGTERM, pass_on)
    started.append(subprocess.Popen(command))  # noqa: S603 - the caller's own program
    return started[0].wait()


if __name__ == "__main__":
    sys.exit(guard(int(sys.argv[1]), sys.argv[2:]))
