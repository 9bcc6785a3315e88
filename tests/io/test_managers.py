"""What holds for every IO manager: files in a folder, in memory, in S3, and rows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from flowstone.errors import MissingOutput, OutputError
from flowstone.io import IOManager, Outputs
from flowstone.io.files import FileOutputs
from flowstone.io.rows import MAX_BYTES, RowOutputs
from flowstone.partition_key import encode_key
from tests.io.places import place
from tests.strategies import TRAPS

LOCATION = "made/2013-01-15/7-1-0123abcd.json"
OTHER = "made/2013-01-15/7-2-0123abcd.json"

METADATA = ("head_object", "list_objects_v2", "head_bucket")
"""What S3 answers without the content of an object."""

AWKWARD = [*TRAPS, ".", "...", "~", "/etc/passwd", "C:\\x", "a" * 500, "ü" * 80, "a//b", "*",
           "::", "?versionId=1", "a b", "a+b&c=d", "#", "{x}", "\u202e", "-" * 3]  # fmt: skip


@pytest.fixture(autouse=True)
def _used(manager: IOManager) -> None:
    """Whether nothing is there can be told only of a place that is."""
    manager.store("other/1-1-00000000.json", b"")
    manager.delete("other/1-1-00000000.json")


def test_what_is_stored_is_loaded(manager: IOManager) -> None:
    manager.store(LOCATION, b"\0\xff some bytes\r\n")
    assert manager.load(LOCATION) == b"\0\xff some bytes\r\n"
    assert manager.exists(LOCATION)
    assert list(manager.stored()) == [LOCATION]


def test_a_value_may_be_empty(manager: IOManager) -> None:
    manager.store(LOCATION, b"")
    assert manager.load(LOCATION) == b""
    assert manager.exists(LOCATION)
    assert manager.describe(LOCATION).size == 0


def test_a_value_may_be_large(manager: IOManager) -> None:
    data = bytes(range(256)) * (6 * 2**20 // 256 + 1)
    manager.store(LOCATION, data)
    assert manager.load(LOCATION) == data
    assert manager.describe(LOCATION).size == len(data)


def test_a_second_store_of_the_same_attempt_replaces_the_first(manager: IOManager) -> None:
    manager.store(LOCATION, b"first, and longer")
    manager.store(LOCATION, b"second")
    assert manager.load(LOCATION) == b"second"
    assert list(manager.stored()) == [LOCATION]


@pytest.mark.parametrize("near", [False, True])
def test_what_is_not_there_is_missing_and_nothing_else(manager: IOManager, near: bool) -> None:
    if near:
        manager.store(LOCATION, b"near")
    with pytest.raises(MissingOutput, match="it was deleted by hand") as caught:
        manager.load(OTHER)
    assert "\n" not in caught.value.message
    assert not caught.value.retryable
    assert manager.exists(OTHER) is False
    described = manager.describe(OTHER)
    assert (described.exists, described.size, described.modified_at) == (False, None, None)
    manager.delete(OTHER)


def test_what_is_deleted_is_not_there(manager: IOManager) -> None:
    manager.store(LOCATION, b"1")
    manager.store(OTHER, b"2")
    manager.delete(LOCATION)
    manager.delete(LOCATION)
    assert not manager.exists(LOCATION)
    with pytest.raises(MissingOutput):
        manager.load(LOCATION)
    assert list(manager.stored()) == [OTHER]


def test_a_description_says_where_since_when_and_how_much(
    manager: IOManager, address: str, kind: str
) -> None:
    before = datetime.now(UTC) - timedelta(seconds=5)
    manager.store(LOCATION, b"12345")
    described = manager.describe(LOCATION)
    assert (described.exists, described.size) == (True, 5)
    root = address if kind == "rows" else f"{address}/"
    assert described.path.replace(":///", "://") == f"{root}{LOCATION}".replace(":///", "://")
    assert described.modified_at is not None
    assert before <= described.modified_at <= datetime.now(UTC) + timedelta(seconds=5)


def test_exists_and_describe_never_read_the_value(
    manager: IOManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.store(LOCATION, b"value")
    read = watched(manager, monkeypatch)
    assert manager.exists(LOCATION)
    assert manager.describe(LOCATION).size == 5
    assert manager.describe(OTHER).exists is False
    assert read == []
    # The watch sees what it is to see.
    manager.load(LOCATION)
    assert read


def watched(manager: IOManager, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note each time that the content of a file, or of a row, is asked for."""
    read: list[str] = []
    if isinstance(manager, RowOutputs):

        def note(_: Any, __: Any, statement: str, *___: Any) -> None:
            if "data" in statement.replace("octet_length(flowstone.stored_values.data)", ""):
                read.append(statement)

        event.listen(manager._ledger.engine, "before_cursor_execute", note)
        return read
    assert isinstance(manager, FileOutputs)

    def noted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            # The first argument of S3's is what is asked of it.
            if name != "_call_s3" or args[0] not in METADATA:
                read.append(name)
            return original(*args, **kwargs)

        return call

    for name in ("open", "_open", "cat_file", "get_file", "_call_s3"):
        if hasattr(manager._fs, name):
            monkeypatch.setattr(manager._fs, name, noted(name, getattr(manager._fs, name)))
    return read


def test_awkward_partitions_have_places_of_their_own(manager: IOManager) -> None:
    locations = [place(encode_key(key)).location(".json") for key in AWKWARD]
    assert len(set(locations)) == len(AWKWARD)
    for number, location in enumerate(locations):
        manager.store(location, str(number).encode())
    assert sorted(manager.stored()) == sorted(locations)
    for number, location in enumerate(locations):
        assert manager.load(location) == str(number).encode()
        assert manager.exists(location)
        manager.delete(location)
    assert list(manager.stored()) == []


def test_many_may_be_listed(manager: IOManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowstone.io.rows._BATCH", 3)
    locations = [f"made/{n}-1-00000000.json" for n in range(10)]
    for location in locations:
        manager.store(location, b"")
    assert sorted(manager.stored()) == sorted(locations)


def test_no_part_of_a_value_is_ever_seen(manager: IOManager) -> None:
    values = [bytes([n]) * 300_000 for n in range(4)]
    manager.store(LOCATION, values[0])
    seen: list[bytes] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(manager.load(LOCATION))

    thread = threading.Thread(target=read)
    thread.start()
    for value in values:
        manager.store(LOCATION, value)
    done.set()
    thread.join()
    assert seen
    assert all(value in values for value in seen)


def test_two_managers_of_one_address_keep_the_same(
    manager: IOManager, outputs: Outputs, address: str
) -> None:
    manager.store(LOCATION, b"1")
    other = Outputs({"default": address}, outputs._ledger).manager("default")
    assert other is not manager
    assert other.load(LOCATION) == b"1"
    other.delete(LOCATION)
    assert not manager.exists(LOCATION)


@pytest.mark.parametrize("kind", ["rows"])
def test_a_row_has_a_limit_and_says_what_to_do(manager: IOManager) -> None:
    with pytest.raises(OutputError, match="too large for a row, the limit is 16,777,216; keep it"):
        manager.store(LOCATION, bytes(MAX_BYTES + 1))
    assert not manager.exists(LOCATION)


@pytest.mark.parametrize("kind", ["local"])
def test_a_file_stays_inside_its_folder(manager: IOManager, address: str) -> None:
    for key in AWKWARD:
        location = place(encode_key(key)).location(".json")
        manager.store(location, b"")
        path = (Path(address) / location).resolve()
        assert path.is_file()
        assert (Path(address) / "made").resolve() in path.parents
        assert len(path.relative_to(Path(address).resolve()).parts) <= 3
        assert all(len(part.encode()) <= 255 for part in path.parts)
