"""The IO managers, each with a place of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pyarrow.fs
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper

from flowstone.io import IOManager, Outputs
from flowstone.io.outputs import ROWS
from flowstone.store.ledger import Ledger

MANAGERS = ("local", "memory", "s3", "rows", "disk")


class Disk(ArrowFSWrapper):  # type: ignore[misc] # fsspec has no types
    """Files beyond a protocol that has folders, as HDFS and SFTP have."""

    protocol = "disk"
    root_marker = "/"

    def __init__(self, **options: Any) -> None:
        super().__init__(pyarrow.fs.LocalFileSystem(), **options)


fsspec.register_implementation("disk", Disk)


@pytest.fixture(params=MANAGERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def address(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an IO manager that keeps nothing yet."""
    match kind:
        case "s3":
            yield f"{request.getfixturevalue('bucket')}/some/folder"
        case "rows":
            yield ROWS
        case "memory":
            name = uuid4().hex
            yield f"memory://{name}"
            memory = fsspec.filesystem("memory")
            if memory.exists(f"/{name}"):
                memory.rm(f"/{name}", recursive=True)
        case "disk":
            (tmp_path / "disk").mkdir()
            yield f"disk://{tmp_path}/disk"
        case _:
            yield str(tmp_path / "outputs")


@pytest.fixture
def outputs(kind: str, address: str, request: pytest.FixtureRequest) -> Outputs:
    """All managers are one to whoever stores and loads values."""

    def ledger() -> Ledger:
        made: Ledger = request.getfixturevalue("ledger")
        return made

    return Outputs({"default": address}, ledger)


@pytest.fixture
def manager(outputs: Outputs) -> IOManager:
    return outputs.manager("default")
