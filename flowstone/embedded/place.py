"""Folders outside the home: short private ones for sockets, and one that `nobody` can reach."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

from flowstone.embedded.account import Account, can_reach, give_to, own_account
from flowstone.errors import ServerError

# Fixed, and not from TMPDIR: every process of a user must compute the same socket for a home.
SOCKETS = Path("/tmp")  # noqa: S108 - only a folder that is checked to be private is used below it
# Root alone uses it, for what `nobody` must reach. Data may lie here, so nothing may tidy it up.
CACHE = Path("/var/lib")


def fingerprint(home: Path) -> str:
    """Return 12 hexadecimal digits that stand for the absolute path of `home`."""
    return hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:12]


def socket_folder(home: Path, program: str) -> Path:
    """Return where `program` of `home` has its socket: under 60 bytes, as 100 is the limit."""
    return SOCKETS / f"flowstone-{os.geteuid()}" / f"{fingerprint(home)}.{program}"


def make_socket_folder(folder: Path, account: Account) -> None:
    """Create the result of `socket_folder` for a server that runs as `account`."""
    _make_own_folder(folder.parent)
    make_private(folder, account, 0o700)


def reachable_folder() -> Path:
    """Return a folder of ours that any account can reach but not list."""
    folder = CACHE / f"flowstone-{os.geteuid()}"
    _make_own_folder(folder)
    return folder


def _make_own_folder(folder: Path) -> None:
    # Root's has to let `nobody` pass; an ordinary user's server is that user.
    make_private(folder, own_account(), 0o711 if os.geteuid() == 0 else 0o700)


def make_private(folder: Path, account: Account, mode: int) -> None:
    """Create `folder` for `account`, or check that it is one; ServerError if someone else's.

    /tmp is everybody's: another user may have put a folder or a link there in our name.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=mode)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {os.geteuid(), account.uid}:
        raise ServerError(
            f"{folder} must be a folder of user id {account.uid}, but it is of user id "
            f"{found.st_uid} (mode {stat.filemode(found.st_mode)}); remove it"
        )
    if stat.S_IMODE(found.st_mode) != mode:
        folder.chmod(mode)
    if found.st_uid != account.uid:
        give_to(account, folder)


def folder_for(account: Account, home: Path) -> Path:
    """Return a folder of ours that `account` can reach: `home`, if that is one."""
    if can_reach(account, home):
        return home
    return reachable_folder()
