"""Outputs as files, in a folder or below any fsspec URL."""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem

from flowstone.errors import BadConfig, OutputError
from flowstone.io.formats import decode, encode
from flowstone.outcome import StoredOutput
from flowstone.partition_key import label

_LONGEST = 100
"""Bytes of a folder's name; file systems allow 255."""


class FileOutputs:
    """Stores each value in a file of its own, which never changes.

    A location is `asset/partition/step-attempt-random.suffix`, so an attempt that
    was fenced off leaves a file that nobody refers to, and harms nothing.
    """

    def __init__(self, root: str) -> None:
        try:
            self._fs, self._root = fsspec.core.url_to_fs(root)
        except (ImportError, ValueError) as error:
            raise BadConfig(f"FLOWSTONE_OUTPUT_URL cannot be used: {error}") from error

    def store(
        self,
        value: Any,  # noqa: ANN401 - any value of a user
        *,
        asset: str,
        partition: str,
        step_id: int,
        attempt: int,
    ) -> StoredOutput:
        """Write a value and return where it lies; no reader sees it before its commit.

        Raises OutputError for a value that has no format, and OSError where the
        storage fails.
        """
        encoded = encode(value)
        folder = "/".join(part for part in (quote(asset), _folder(partition)) if part)
        location = f"{folder}/{step_id}-{attempt}-{uuid4().hex[:8]}{encoded.suffix}"
        self._write(f"{self._root}/{location}", encoded.data)
        return StoredOutput(
            location=location,
            format=encoded.format,
            size=len(encoded.data),
            sha256=hashlib.sha256(encoded.data).hexdigest(),
            rows=encoded.rows,
        )

    def load(self, output: StoredOutput) -> Any:  # noqa: ANN401 - any value of a user
        """Read a value back; raise OutputError if it is not what was recorded."""
        path = self.path(output)
        try:
            data = self._fs.cat_file(path)
        except FileNotFoundError as error:
            raise OutputError(
                f"the output {path} is in the ledger but not in storage; it was deleted by hand, "
                "or FLOWSTONE_OUTPUT_URL differs between processes: materialize it again"
            ) from error
        if hashlib.sha256(data).hexdigest() != output.sha256:
            raise OutputError(f"the output {path} has been changed; materialize it again")
        return decode(output.format, data)

    def path(self, output: StoredOutput) -> str:
        """Return where the output lies, for people."""
        return f"{self._root}/{output.location}"

    def _write(self, path: str, data: bytes) -> None:
        if isinstance(self._fs, LocalFileSystem):
            # A rename is atomic, so not even a crash leaves a partial file under this name.
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            staged = f"{path}.part"
            with self._fs.open(staged, "wb") as file:
                file.write(data)
            self._fs.mv(staged, path)
        else:
            # Object stores publish an object when its upload is complete.
            self._fs.pipe_file(path, data)


def _folder(partition: str) -> str:
    """Return a partition key as a folder's name: readable, and short enough for any disk."""
    name = quote(label(partition), safe=" =|+,@")
    if name.strip(".") == "" and name:
        name = name.replace(".", "%2E")
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 17]}-{hashlib.sha256(partition.encode()).hexdigest()[:16]}"
