"""Become a server program: `python -I -S launch.py PARENT SIGNAL UID GID PROGRAM ARGUMENT...`.

A program of its own, and not a `preexec_fn`, because that runs between fork and
exec, where a lock held by another thread of the parent can never be taken. It
imports nothing but the standard library: `-S` hides everything else.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def become(parent: int, death_signal: int, uid: int, gid: int, command: list[str]) -> None:
    """Replace this process by `command`, which `death_signal` ends when process `parent` ends."""
    if uid != os.geteuid():
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        # After the change of user: the kernel forgets the signal when credentials change.
        end_with_parent(death_signal)
    if os.getppid() != parent:
        sys.exit(f"process {parent}, which asked for {command[0]}, has ended")
    # Python ignores SIGPIPE, and what is ignored or blocked stays so across exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.execv(command[0], command)  # noqa: S606 - the absolute path of a program from a wheel


def end_with_parent(death_signal: int) -> None:
    """Have the kernel send `death_signal` to this process when the thread that forked it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    nought = ctypes.c_ulong(0)
    if libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(death_signal), nought, nought, nought):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


if __name__ == "__main__":
    parent, death_signal, uid, gid = (int(number) for number in sys.argv[1:5])
    become(parent, death_signal, uid, gid, sys.argv[5:])
