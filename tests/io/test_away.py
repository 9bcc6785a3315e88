"""A storage that is away is not a storage without the value."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import psycopg
import pytest
from celery.exceptions import SoftTimeLimitExceeded
from fsspec.implementations.local import LocalFileSystem

from flowstone import Retry, asset, materialize_sync
from flowstone.errors import MissingOutput, RunFailed, StorageUnavailable
from flowstone.io import IOManager
from flowstone.io.files import FileOutputs
from flowstone.io.rows import RowOutputs
from flowstone.registry import build_registry
from flowstone.store.ledger import Ledger
from tests.conftest import RuntimeFactory
from tests.s3 import S3Service, forget_clients

LOCATION = "made/7-1-0123abcd.json"

OPERATIONS: dict[str, Callable[[IOManager], object]] = {
    "store": lambda manager: manager.store(LOCATION, b"new"),
    "load": lambda manager: manager.load(LOCATION),
    "delete": lambda manager: manager.delete(LOCATION),
    "exists": lambda manager: manager.exists(LOCATION),
    "describe": lambda manager: manager.describe(LOCATION),
}


def assert_away(manager: IOManager, *names: str) -> None:
    """Nothing is said of the value by any operation, but that its storage is away."""
    for name in names or OPERATIONS:
        with pytest.raises(StorageUnavailable) as caught:
            OPERATIONS[name](manager)
        assert caught.value.retryable, name
        assert caught.value.original is not None, name


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is taken, and answers nobody."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def own_service(monkeypatch: pytest.MonkeyPatch, s3: S3Service) -> Iterator[S3Service]:
    """An S3 service that the test may stop."""
    service = S3Service()
    monkeypatch.setenv("AWS_ENDPOINT_URL", service.url)
    forget_clients()
    yield service
    service.stop()
    forget_clients()


def test_an_s3_that_has_stopped(own_service: S3Service) -> None:
    manager = FileOutputs(own_service.bucket())
    manager.store(LOCATION, b"1")
    own_service.stop()
    assert_away(manager)
    with pytest.raises(StorageUnavailable, match="cannot be reached: EndpointConnectionError"):
        list(manager.stored())


def test_an_s3_that_was_never_there(
    monkeypatch: pytest.MonkeyPatch, s3: S3Service, closed_port: int
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
    forget_clients()
    try:
        assert_away(FileOutputs("s3://lake"))
    finally:
        forget_clients()


def test_a_bucket_that_is_missing(s3: S3Service) -> None:
    manager = FileOutputs(f"{s3.bucket()}-missing/folder")
    assert_away(manager)
    with pytest.raises(StorageUnavailable, match=r"there is no lake-\w+-missing; create it"):
        manager.load(LOCATION)
    with pytest.raises(StorageUnavailable):
        list(manager.stored())


@pytest.fixture
def local(tmp_path: Path) -> FileOutputs:
    manager = FileOutputs(str(tmp_path / "outputs"))
    manager.store(LOCATION, b"1")
    return manager


def test_a_folder_that_was_removed(local: FileOutputs, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "outputs")
    assert_away(local)
    assert not (tmp_path / "outputs").exists()
    with pytest.raises(StorageUnavailable, match=r"there is no \S*outputs; create it, or mount it"):
        local.load(LOCATION)
    # A process that begins later may not read from it, but makes it, as the first one did.
    other = FileOutputs(str(tmp_path / "outputs"))
    assert_away(other, "load", "exists", "describe", "delete")
    other.store(LOCATION, b"2")
    assert local.load(LOCATION) == b"2"


def test_a_folder_that_is_a_file(local: FileOutputs, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "outputs")
    (tmp_path / "outputs").write_text("")
    assert_away(local)


def test_a_remote_folder_that_was_removed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    manager = FileOutputs(f"disk://{tmp_path}/disk")
    manager.store(LOCATION, b"1")
    shutil.rmtree(tmp_path / "disk")
    assert_away(manager, "load", "exists", "describe", "delete")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read and write everywhere")
def test_a_folder_that_may_not_be_entered(local: FileOutputs, tmp_path: Path) -> None:
    (tmp_path / "outputs").chmod(0)
    try:
        assert_away(local)
    finally:
        (tmp_path / "outputs").chmod(0o755)


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), OSError(5, "Input/output error")])
def test_a_folder_that_fails(
    local: FileOutputs, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise error

    for name in ("cat_file", "info", "rm_file", "find"):
        monkeypatch.setattr(LocalFileSystem, name, fail)
    monkeypatch.setattr(Path, "open", fail)
    assert_away(local)
    with pytest.raises(StorageUnavailable, match=str(error.strerror)):
        list(local.stored())


def test_a_database_that_is_not_there(closed_port: int) -> None:
    ledger = Ledger(f"postgresql+psycopg://nobody@127.0.0.1:{closed_port}/nothing")
    assert_away(RowOutputs(ledger))
    ledger.close()


def test_a_database_that_goes_away(ledger: Ledger, database: str) -> None:
    manager = RowOutputs(ledger)
    manager.store(LOCATION, b"1")
    with psycopg.connect(database.replace("+psycopg", ""), autocommit=True) as conn:
        conn.execute("ALTER TABLE flowstone.stored_values RENAME TO away")
        assert_away(manager)
        with pytest.raises(StorageUnavailable):
            list(manager.stored())
        conn.execute("ALTER TABLE flowstone.away RENAME TO stored_values")
    assert manager.load(LOCATION) == b"1"


def test_a_time_limit_is_no_fault_of_the_storage(
    local: FileOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> bytes:
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(LocalFileSystem, "cat_file", interrupted)
    with pytest.raises(SoftTimeLimitExceeded):
        local.load(LOCATION)


def test_a_memory_that_was_emptied_has_lost_the_value() -> None:
    manager = FileOutputs("memory://emptied")
    manager.store(LOCATION, b"1")
    fsspec.filesystem("memory").rm("/emptied", recursive=True)
    assert not manager.exists(LOCATION)
    with pytest.raises(MissingOutput):
        manager.load(LOCATION)


def test_a_step_whose_storage_is_away_is_tried_again(
    make_runtime: RuntimeFactory, s3: S3Service, database: str
) -> None:
    # In the end it fails with what storage said, and not as an output that is missing.
    tries = []

    @asset(io="lake", retry=Retry(max_attempts=2, base=0))
    def number() -> int:
        tries.append(1)
        return 1

    make_runtime(build_registry([number]), io={"lake": f"{s3.bucket()}-missing"})
    with pytest.raises(RunFailed, match="there is no lake-"):
        materialize_sync(number)
    assert len(tries) == 2
