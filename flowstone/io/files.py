"""Outputs as files, in a folder or below any fsspec URL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from flowstone.errors import (
    BadConfig,
    FlowStoneError,
    MissingOutput,
    StorageUnavailable,
    is_time_limit,
)
from flowstone.io.manager import Description

_PART = ".part"


class FileOutputs:
    """Keeps each value in a file of its own. Is an IOManager.

    `root` is a folder, which the first `store` makes, or an fsspec URL, whose bucket must
    exist. Raises BadConfig for one that cannot be used here.
    """

    def __init__(self, root: str) -> None:
        if not root:
            raise BadConfig("an address of outputs is empty; name a folder or an fsspec URL")
        try:
            # A listing that is remembered would say what was there a while ago.
            self._fs, found = fsspec.core.url_to_fs(root, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise BadConfig(f"outputs cannot be stored at {root}: {error}") from error
        self._root = found.rstrip("/")
        self._is_local = isinstance(self._fs, LocalFileSystem)
        self._is_memory = isinstance(self._fs, MemoryFileSystem)
        if not self._root and not self._is_memory:
            raise BadConfig(f"outputs cannot be stored at {root}: it names no folder or bucket")
        self._had_root = self._is_local and Path(self._root).is_dir()

    def store(self, location: str, data: bytes) -> None:
        """Write a file that is there as a whole or not at all; raise StorageUnavailable."""
        path = self._path(location)
        try:
            with self._translated(path):
                self._write(path, data)
        except MissingOutput as error:
            raise StorageUnavailable(
                f"{path} cannot be written, for its folder is gone", original=error
            ) from error

    def _write(self, path: str, data: bytes) -> None:
        if self._is_local:
            if self._had_root and not Path(self._root).is_dir():
                # To make it anew might be to write where a disk is to be mounted again.
                raise FileNotFoundError(self._root)
            _write_durably(path, data)
            self._had_root = True
        elif self._is_memory or isinstance(self._fs, AsyncFileSystem):
            # Object stores publish an object when its upload is complete.
            self._fs.pipe_file(path, data)
        else:
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(f"{path}{_PART}", data)
            self._fs.mv(f"{path}{_PART}", path)

    def load(self, location: str) -> bytes:
        """Return the file's content; raise MissingOutput or StorageUnavailable."""
        path = self._path(location)
        with self._translated(path):
            data: bytes = self._fs.cat_file(path)
            return data

    def delete(self, location: str) -> None:
        """Delete the file, if there is one; raise StorageUnavailable."""
        path = self._path(location)
        try:
            with self._translated(path):
                self._fs.rm_file(path)
        except MissingOutput:
            return

    def exists(self, location: str) -> bool:
        """Return whether there is a file; raise StorageUnavailable where nobody can tell."""
        return self._info(self._path(location)) is not None

    def describe(self, location: str) -> Description:
        """Return where the file lies, its size and age; raise StorageUnavailable."""
        path = self._path(location)
        shown = self._fs.unstrip_protocol(path) if not self._is_local else path
        info = self._info(path)
        if info is None:
            return Description(shown, exists=False, size=None, modified_at=None)
        return Description(shown, exists=True, size=info["size"], modified_at=_modified(info))

    def stored(self) -> Iterator[str]:
        """Yield the locations of all files; raise StorageUnavailable."""
        with self._translated(self._root):
            found = self._fs.find(self._root)
        # In one order each time, so that a sweep can go on where the last one has ended.
        for path in sorted(found):
            yield path.removeprefix(f"{self._root}/")

    def _path(self, location: str) -> str:
        return f"{self._root}/{location}"

    def _info(self, path: str) -> Any:  # noqa: ANN401 - a dict, or None
        try:
            with self._translated(path):
                # Not fs.exists(), which takes any error for an absence.
                return self._fs.info(path)
        except MissingOutput:
            return None

    @contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            self._refuse_without_root(path, error)
            raise MissingOutput(
                f"the output {path} is in the ledger but not in storage; it was deleted by hand, "
                "or the address of the outputs differs between processes: invalidate it, and "
                "materialize it again"
            ) from error
        except Exception as error:
            # The storage's own libraries raise all sorts; Celery's time limit is none of theirs.
            if is_time_limit(error) or isinstance(error, FlowStoneError):
                raise
            raise StorageUnavailable(
                f"{path} cannot be reached: {type(error).__name__}: {error}", original=error
            ) from error

    def _refuse_without_root(self, path: str, error: FileNotFoundError) -> None:
        """Raise StorageUnavailable where not the file is missing, but all that it would lie in."""
        is_folder = self._root.startswith("/")
        root = self._root if is_folder else self._root.partition("/")[0]
        if self._is_memory:
            return
        try:
            there = self._fs.exists(root)
        except Exception as fault:
            if is_time_limit(fault):
                raise
            there = False
        if not there:
            raise StorageUnavailable(
                f"{path} cannot be reached, for there is no {root}; create it, or mount it",
                original=error,
            ) from error


def _write_durably(path: str, data: bytes) -> None:
    """Write a file that survives a power cut, and appears under its name as a whole only.

    One fsync, after the rename: on file systems with a journal (ext4, XFS, btrfs) that of a new
    file takes its name and the folders above with it. Elsewhere a power cut could cost a value
    just stored, which its hash would tell, and the next run compute again.
    """
    name = Path(path)
    part = Path(f"{path}{_PART}")
    name.parent.mkdir(parents=True, exist_ok=True)
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        part.replace(name)
        os.fsync(file.fileno())


def _modified(info: dict[str, Any]) -> datetime | None:
    # As local files, S3, Azure and memory call it.
    names = ("mtime", "LastModified", "last_modified", "created")
    found = next((info[name] for name in names if info.get(name)), None)
    if isinstance(found, int | float):
        return datetime.fromtimestamp(found, UTC)
    return found if isinstance(found, datetime) else None
