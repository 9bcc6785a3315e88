"""Outputs as rows of the ledger's own database, for small values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from flowstone.errors import (
    LedgerRefused,
    LedgerUnavailable,
    MissingOutput,
    OutputError,
    StorageUnavailable,
)
from flowstone.io.manager import Description
from flowstone.store import stored_values
from flowstone.store.ledger import Connection, Ledger

MAX_BYTES: Final = 16 * 2**20
"""Beyond this, a value belongs into files: PostgreSQL reads a row as a whole."""

_BATCH: Final = 1000


class RowOutputs:
    """Keeps each value in a row of its own. Is an IOManager."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def store(self, location: str, data: bytes) -> None:
        """Insert a row; raise OutputError for one that is too large, or StorageUnavailable."""
        if len(data) > MAX_BYTES:
            raise OutputError(
                f"a value of {len(data):,} bytes is too large for a row, the limit is "
                f"{MAX_BYTES:,}; keep it as a file, with another io= of the asset"
            )
        with self._connection() as conn:
            stored_values.put(conn, location, data)

    def load(self, location: str) -> bytes:
        """Return the row's value; raise MissingOutput or StorageUnavailable."""
        with self._connection() as conn:
            data = stored_values.get(conn, location)
        if data is None:
            raise MissingOutput(
                f"the output {location} is in the ledger but its row is gone; it was deleted by "
                "hand: invalidate it, and materialize it again"
            )
        return data

    def delete(self, location: str) -> None:
        """Delete the row, if there is one; raise StorageUnavailable."""
        with self._connection() as conn:
            stored_values.remove(conn, location)

    def exists(self, location: str) -> bool:
        """Return whether there is a row; raise StorageUnavailable."""
        return self.describe(location).exists

    def describe(self, location: str) -> Description:
        """Return the size and age of the row; raise StorageUnavailable."""
        path = f"postgresql:{location}"
        with self._connection() as conn:
            info = stored_values.info(conn, location)
        if info is None:
            return Description(path, exists=False, size=None, modified_at=None)
        return Description(path, exists=True, size=info.size, modified_at=info.stored_at)

    def stored(self) -> Iterator[str]:
        """Yield the locations of all rows; raise StorageUnavailable."""
        last = ""
        while True:
            with self._connection() as conn:
                found = stored_values.after(conn, last, _BATCH)
            if not found:
                return
            yield from found
            last = found[-1]

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        try:
            with self._ledger.begin() as conn:
                yield conn
        except (LedgerUnavailable, LedgerRefused) as error:
            # To the step it is a storage like any other: it may be tried again.
            raise StorageUnavailable(error.message, original=error) from error
