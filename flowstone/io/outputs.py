"""The IO managers of a process by name, and values in and out of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from flowstone.errors import BadConfig, ChangedOutput, OutputError, did_you_mean
from flowstone.io.files import FileOutputs
from flowstone.io.formats import decode, encode
from flowstone.io.manager import Description, IOManager, Place
from flowstone.io.rows import RowOutputs
from flowstone.names import DEFAULT_IO
from flowstone.outcome import StoredOutput
from flowstone.store.ledger import Ledger

ROWS: Final = "postgresql:"
"""The address of the rows of the ledger's own database."""


class Outputs:
    """Stores and loads values. `addresses` has the URL of each IO manager, by its name."""

    def __init__(self, addresses: Mapping[str, str], ledger: Callable[[], Ledger]) -> None:
        self._addresses = addresses
        self._ledger = ledger
        self._managers: dict[str, IOManager] = {}

    @property
    def names(self) -> list[str]:
        """The names of all IO managers."""
        return sorted(self._addresses)

    def manager(self, name: str) -> IOManager:
        """Return an IO manager, which is made when it is first needed; raise BadConfig."""
        if name not in self._addresses:
            raise BadConfig(
                f"there is no IO manager {name!r}{did_you_mean(name, self._addresses)} (known: "
                f"{', '.join(self.names)}); FLOWSTONE_IO says which there are"
            )
        if name not in self._managers:
            try:
                self._managers[name] = self._made(self._addresses[name])
            except BadConfig as error:
                raise BadConfig(f"IO manager {name!r}: {error.message}") from error
        return self._managers[name]

    def _made(self, address: str) -> IOManager:
        if address == ROWS:
            return RowOutputs(self._ledger())
        if address.startswith("postgres"):
            raise BadConfig(
                f"rows are kept in the ledger's own database; write {ROWS!r} as the address"
            )
        return FileOutputs(address)

    def store(
        self,
        value: Any,  # noqa: ANN401 - any value of a user
        place: Place,
        *,
        io: str = DEFAULT_IO,
        as_type: Any = None,  # noqa: ANN401 - any annotation
        pickle: bool = False,
    ) -> StoredOutput:
        """Write a value and return where it lies; no reader sees it before its commit.

        `as_type` and `pickle` are those of `encode`. Raises OutputError for a value that has
        no format, StorageUnavailable, or BadConfig for an IO manager that there is not.
        """
        manager = self.manager(io)
        encoded = encode(value, as_type, pickle=pickle)
        location = place.location(encoded.suffix)
        manager.store(location, encoded.data)
        return StoredOutput(
            location=location,
            format=encoded.format,
            size=len(encoded.data),
            sha256=hashlib.sha256(encoded.data).hexdigest(),
            rows=encoded.rows,
            io=io,
        )

    def load(self, output: StoredOutput, as_type: Any = None, *, pickle: bool = False) -> Any:  # noqa: ANN401
        """Read a value back, for a reader that wants `as_type`.

        Raises MissingOutput, StorageUnavailable, or OutputError if it is not what was
        recorded, or not what the reader wants.
        """
        data = self._data(output)
        try:
            return decode(output.format, data, as_type, pickle=pickle)
        except OutputError as error:
            raise OutputError(
                f"the output {output.location}: {error.message}", original=error
            ) from error

    def verify(self, output: StoredOutput) -> None:
        """Raise MissingOutput unless what was recorded is what lies there, to the byte.

        Raises StorageUnavailable where nobody can tell.
        """
        self._data(output)

    def _data(self, output: StoredOutput) -> bytes:
        data = self.manager(output.io).load(output.location)
        if hashlib.sha256(data).hexdigest() != output.sha256:
            raise ChangedOutput(
                f"the output {output.location} has been changed in storage; invalidate it, and "
                "materialize it again"
            )
        return data

    def exists(self, output: StoredOutput) -> bool:
        """Return whether the value is there, without reading it; raise StorageUnavailable."""
        return self.manager(output.io).exists(output.location)

    def describe(self, output: StoredOutput) -> Description:
        """Return where the value lies, and since when; raise StorageUnavailable."""
        return self.manager(output.io).describe(output.location)
