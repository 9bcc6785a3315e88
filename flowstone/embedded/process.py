"""Start, watch and stop one server program as a child of this process."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from flowstone.embedded import lock
from flowstone.embedded.account import Account, own_account
from flowstone.embedded.place import make_socket_folder, socket_folder
from flowstone.errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

LAUNCHER = Path(__file__).with_name("launch.py")
GUARD = Path(__file__).with_name("guard.py")
POLL_S = 0.02
START_S = 30.0
KILL_S = 10.0
LOG_BYTES = 16_000_000
LOG_LINES = 20


def launch(
    command: Sequence[str | Path],
    *,
    account: Account,
    death_signal: int,
    log: Path,
    env: Mapping[str, str],
    cwd: Path = Path("/"),
    umask: int = -1,
) -> subprocess.Popen[bytes]:
    """Run `command` as `account`, in a session of its own; `death_signal` if this process dies."""
    prefix = [os.getpid(), int(death_signal), account.uid, account.gid]
    # A log may quote data, so it is for its owner alone.
    with open(log, "ab", opener=_private) as output:
        return subprocess.Popen(  # noqa: S603 - our own Python, and a program from a wheel
            [sys.executable, "-I", "-S", str(LAUNCHER), *map(str, (*prefix, *command))],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=env,
            start_new_session=True,
            umask=umask,
        )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class Server(ABC):
    """A server of a home folder: start, stop, and the file lock that keeps it the only one."""

    title: ClassVar[str]
    program: ClassVar[str]
    socket_name: ClassVar[str]
    death_signal: ClassVar[signal.Signals]
    # How to stop it: signals, each with the seconds to wait before the next; SIGKILL is last.
    stop_signals: ClassVar[tuple[tuple[signal.Signals, float], ...]]
    # Seconds during which a start that fails is tried again.
    retry_s: ClassVar[float] = 0.0

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()
        self.log_path = self.home / "logs" / f"{self.program}.log"
        self.sockets = socket_folder(self.home, self.program)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._owner = os.getpid()
        self._log_start = 0

    @property
    @abstractmethod
    def url(self) -> str:
        """The address of this server."""

    @property
    def pid(self) -> int | None:
        """The process id of the server, or None if it does not run."""
        return self._process.pid if self._process is not None and self.is_running() else None

    def is_running(self) -> bool:
        """Return whether the server runs as a child of this process."""
        return self._is_ours() and self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and return when it answers; ServerError if it does not.

        Call it in the main thread: the kernel ends the server together with the
        *thread* that started it.
        """
        assert threading.current_thread() is threading.main_thread(), (
            f"start {self.title} in the main thread: it would end with any other"
        )
        self._adopt()
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            self._hold_and_start()
        except OSError as error:
            raise ServerError(
                f"{self.title} of {self.home} cannot start: {error}", original=error
            ) from error

    def stop(self) -> None:
        """Stop the server and wait until it has ended; nothing happens if it does not run."""
        if not self._is_ours():
            return
        if self._process is not None:
            end(self._process, self.stop_signals, self.title)
            self._process = None
            # While the lock is held: the next server may be about to make the folder anew.
            shutil.rmtree(self.sockets, ignore_errors=True)
        self._let_go()

    def kill(self) -> None:
        """End the server at once, without letting it write anything: the power cut of a test."""
        if self._is_ours() and self._process is not None:
            end(self._process, (), self.title)
            self._process = None
            self._let_go()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @abstractmethod
    def _prepare(self) -> list[str | Path]:
        """Make the data folder ready and return the command of the server."""

    @abstractmethod
    def _answers(self) -> bool:
        """Return whether the server accepts work."""

    def _account(self) -> Account:
        return own_account()

    def _is_ours(self) -> bool:
        # A forked child has a copy of this object, but the server is its parent's.
        return self._owner == os.getpid()

    def _adopt(self) -> None:
        """Begin anew in a forked child, or after the server ended by itself."""
        if not self._is_ours():
            self._owner, self._process, self._lock = os.getpid(), None, None
        elif self._process is not None and not self.is_running():
            self.stop()

    def _hold_and_start(self) -> None:
        self._lock = lock.hold(self.home / f"{self.program}.lock", f"{self.title} of {self.home}")
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        self._open_log()
        self._wait_for_predecessor()
        command = self._prepare()
        make_socket_folder(self.sockets, self._account())
        began = time.monotonic()
        while not self._attempt(command, began + START_S):
            if time.monotonic() > began + self.retry_s:
                raise self._failure(f"ended with exit status {self._exit_status()}")
            time.sleep(10 * POLL_S)

    def _open_log(self) -> None:
        """Make the log, which may quote data, ours alone; begin a new one if it is long."""
        self.log_path.parent.mkdir(mode=0o700, exist_ok=True)
        self.log_path.touch(mode=0o600)
        self._log_start = self.log_path.stat().st_size
        if self._log_start > LOG_BYTES:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
            self.log_path.touch(mode=0o600)
            self._log_start = 0

    def _attempt(self, command: Sequence[str | Path], deadline: float) -> bool:
        """Start the program; True when it answers, False if it ends before."""
        self._process = self._launch(command)
        while self._process.poll() is None:
            if self._answers():
                return True
            if time.monotonic() > deadline:
                raise self._failure(f"did not answer within {START_S:.0f} s")
            time.sleep(POLL_S)
        return False

    def _launch(self, command: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        return launch(
            command,
            account=self._account(),
            death_signal=self.death_signal,
            log=self.log_path,
            # What steers the caller's own PostgreSQL clients must not steer our server.
            env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
            umask=0o077,
        )

    def _wait_for_predecessor(self) -> None:
        """Wait for a server whose supervisor was killed: it is ending, but still has the socket."""
        deadline = time.monotonic() + KILL_S
        while _listens(self.sockets / self.socket_name):
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{self.title} of {self.home} was left behind by a process that was killed, "
                    f"and still listens in {self.sockets}; stop it with SIGINT"
                )
            time.sleep(POLL_S)

    def _let_go(self) -> None:
        if self._lock is not None:
            lock.release(self._lock)
            self._lock = None

    def _exit_status(self) -> int | None:
        return None if self._process is None else self._process.returncode

    def _failure(self, what: str) -> ServerError:
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
        return ServerError(
            f"{self.title} of {self.home} {what}; the last lines of {self.log_path}:\n"
            + "\n".join(lines),
            context={"log": str(self.log_path)},
        )


def end(
    process: subprocess.Popen[bytes],
    signals: Sequence[tuple[signal.Signals, float]],
    title: str,
) -> None:
    """Send `signals` in turn, at last SIGKILL, until our child `process` has ended."""
    for number, seconds in (*signals, (signal.SIGKILL, KILL_S)):
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return
    raise ServerError(f"{title} (process {process.pid}) does not end, not even by SIGKILL")


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(os.fspath(path))
        except TimeoutError:
            return True
        except OSError:
            return False
        return True
