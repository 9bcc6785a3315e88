"""The account that PostgreSQL runs under, and what that account can reach."""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowstone.errors import ServerError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Account:
    """A user and its group, by number."""

    uid: int
    gid: int


def own_account() -> Account:
    """Return the account of this process."""
    return Account(os.geteuid(), os.getegid())


def postgres_account() -> Account:
    """Return the account for PostgreSQL: our own, but `nobody` for root, whom initdb refuses."""
    if os.geteuid() != 0:
        return own_account()
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError as error:
        raise ServerError(
            "PostgreSQL does not run as root, and this machine has no user 'nobody' to run it as; "
            "work as an ordinary user, or set FLOWSTONE_DATABASE_URL",
            original=error,
        ) from error
    return Account(nobody.pw_uid, nobody.pw_gid)


def check_named(account: Account) -> None:
    """Raise ServerError if `account` has no passwd entry: initdb looks its name up."""
    try:
        pwd.getpwuid(account.uid)
    except KeyError as error:
        raise ServerError(
            f"PostgreSQL cannot create a database for user id {account.uid}, which has no entry in "
            "/etc/passwd; add one, or set FLOWSTONE_DATABASE_URL",
            original=error,
        ) from error


def can_reach(account: Account, folder: Path) -> bool:
    """Return whether `account` may pass into `folder` and through every folder above it."""
    if account.uid == os.geteuid():
        return True
    folder = folder.resolve()
    return all(_may_enter(account, place.stat()) for place in (folder, *folder.parents))


def _may_enter(account: Account, place: os.stat_result) -> bool:
    if place.st_uid == account.uid:
        return bool(place.st_mode & stat.S_IXUSR)
    if place.st_gid == account.gid:
        return bool(place.st_mode & stat.S_IXGRP)
    return bool(place.st_mode & stat.S_IXOTH)


def give_to(account: Account, path: Path) -> None:
    """Make `account` the owner of `path`, which is ours."""
    try:
        os.chown(path, account.uid, account.gid, follow_symlinks=False)
    except OSError as error:
        raise ServerError(
            f"root may not give {path} to user id {account.uid} here, and PostgreSQL does not run "
            "as root; work as an ordinary user, or set FLOWSTONE_DATABASE_URL",
            original=error,
        ) from error
