"""Outputs as files: what is stored comes back, or says why it does not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import fsspec
import polars as pl
import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from flowstone.errors import BadPartition, OutputError
from flowstone.io import FileOutputs
from flowstone.outcome import StoredOutput
from flowstone.partition_key import encode_key
from tests.strategies import TRAPS, keys


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture
def files(root: Path) -> FileOutputs:
    return FileOutputs(str(root))


def store(files: FileOutputs, value: Any, partition: str = "-", attempt: int = 1) -> StoredOutput:
    return files.store(value, asset="made", partition=partition, step_id=7, attempt=attempt)


def types(value: Any) -> Any:
    """A value with the types of all that is in it."""
    if isinstance(value, dict):
        return {key: types(part) for key, part in value.items()}
    return [types(part) for part in value] if isinstance(value, list) else (type(value), value)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda v: st.lists(v) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), v),
    max_leaves=8,
)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(json_values)
def test_json_values_come_back_with_their_types(files: FileOutputs, value: Any) -> None:
    assert types(files.load(store(files, value))) == types(value)


@pytest.mark.parametrize("value", [None, True, 1, 1.0, "", [], {}, [True, 1, 1.0], {"": None}])
def test_small_values_are_values(files: FileOutputs, value: Any) -> None:
    assert types(files.load(store(files, value))) == types(value)


class Thing:
    pass


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ((1, 2), "tuple"),
        ({"a": (1,)}, "dict"),
        ({1, 2}, "set"),
        ({1: "a"}, "dict"),
        ({None: "a"}, "dict"),
        ({"1": "a", 1: "b"}, "dict"),
        (float("nan"), "float"),
        ([float("inf")], "list"),
        (Thing(), "Thing"),
        (b"bytes", "bytes"),
        (Text("a"), "Text"),
        ("\ud800", "str"),
        ([10**5000], "list"),
        (pl.LazyFrame({"a": [1]}), "LazyFrame"),
    ],
)
def test_what_would_not_come_back_is_refused_with_its_type_and_the_remedy(
    files: FileOutputs, root: Path, value: Any, named: str
) -> None:
    with pytest.raises(OutputError, match=rf"\b{named}\b") as caught:
        store(files, value)
    assert "return JSON values" in caught.value.message
    assert not caught.value.retryable
    assert not root.exists()


def test_a_list_that_holds_itself_is_refused(files: FileOutputs) -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(OutputError, match="a list cannot be stored"):
        store(files, circle)


def test_a_polars_frame_comes_back_as_it_was(files: FileOutputs) -> None:
    frame = pl.DataFrame(
        {"a": [1, None, 3], "b": ["x", "y", None], "c": [[1.0], [], None]},
        schema_overrides={"a": pl.Int8},
    )
    stored = store(files, frame)
    assert (stored.format, stored.rows) == ("polars.parquet", 3)
    assert stored.location.endswith(".parquet")
    assert_frame_equal(files.load(stored), frame)
    assert store(files, frame.clear()).rows == 0


def test_an_arrow_table_comes_back_as_it_was(files: FileOutputs) -> None:
    table = pa.table({"a": pa.array([1, None], pa.int16()), "b": [{"x": 1}, None]})
    stored = store(files, table)
    assert (stored.format, stored.rows) == ("arrow.parquet", 2)
    assert files.load(stored).equals(table)


def test_hash_and_size_are_those_of_the_file(files: FileOutputs, root: Path) -> None:
    stored = store(files, {"a": "ü"})
    data = (root / stored.location).read_bytes()
    assert data.decode() == '{"a": "ü"}'
    assert (stored.size, stored.rows, stored.format) == (len(data), None, "json")
    assert stored.sha256 == hashlib.sha256(data).hexdigest()
    assert files.path(stored) == str(root / stored.location)


def test_each_attempt_has_a_file_of_its_own(files: FileOutputs, root: Path) -> None:
    stored = [store(files, n, attempt=1) for n in range(3)] + [store(files, 3, attempt=2)]
    assert len({s.location for s in stored}) == 4
    assert [files.load(s) for s in stored] == [0, 1, 2, 3]
    assert not list(root.rglob("*.part"))


def test_a_changed_file_is_not_read(files: FileOutputs, root: Path) -> None:
    stored = store(files, 1)
    (root / stored.location).write_text("2")
    with pytest.raises(OutputError, match="has been changed; materialize it again"):
        files.load(stored)


def test_a_deleted_file_says_what_may_have_happened(files: FileOutputs, root: Path) -> None:
    stored = store(files, 1)
    (root / stored.location).unlink()
    with pytest.raises(OutputError, match="in the ledger but not in storage") as caught:
        files.load(stored)
    assert str(root / stored.location) in caught.value.message


def test_a_format_of_another_version_is_refused(files: FileOutputs) -> None:
    stored = store(files, 1)
    with pytest.raises(OutputError, match="format 'pickle' cannot be read by this version"):
        files.load(replace(stored, format="pickle"))


def test_storage_that_fails_is_not_storage_without_the_file(
    files: FileOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = store(files, 1)

    def fails(*_: object, **__: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(LocalFileSystem, "cat_file", fails)
    with pytest.raises(OSError, match="Input/output error"):
        files.load(stored)


class HalfWritten:
    """A file whose disk is full after the first bytes."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, data: bytes) -> None:
        self._path.write_bytes(data[:1])
        raise OSError(28, "No space left on device")


def test_a_write_that_fails_half_way_leaves_no_output(
    files: FileOutputs, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def fails(_: object, path: str, *__: object, **___: object) -> HalfWritten:
        opened.append(path)
        return HalfWritten(path)

    monkeypatch.setattr(LocalFileSystem, "open", fails)
    with pytest.raises(OSError, match="No space left"):
        store(files, "a long value")
    assert opened
    assert not list(root.rglob("*.json"))


def test_a_process_that_dies_before_the_rename_leaves_no_output(
    files: FileOutputs, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalFileSystem, "mv", dies)
    with pytest.raises(KeyboardInterrupt):
        store(files, 1)
    assert not list(root.rglob("*.json"))


def stays_inside(files: FileOutputs, root: Path, partition: str) -> StoredOutput:
    stored = store(files, "value", partition)
    path = (root / stored.location).resolve()
    assert path.is_file()
    assert (root / "made").resolve() in path.parents
    assert len(path.relative_to(root.resolve()).parts) <= 3
    assert all(len(part.encode()) <= 255 for part in path.parts)
    assert files.load(stored) == "value"
    return stored


def test_no_partition_key_leads_out_of_its_folder(files: FileOutputs, root: Path) -> None:
    odd = [*TRAPS, ".", "...", "~", "/etc/passwd", "C:\\x", "a" * 500, "ü" * 80, "a//b", "*", "::"]
    locations = [stays_inside(files, root, encode_key(key)).location for key in odd]
    assert len(set(locations)) == len(odd)
    folders = {key: location.split("/")[1:-1] for key, location in zip(odd, locations, strict=True)}
    assert folders[""] == []
    assert folders[".."] == ["%2E%2E"]
    assert folders["2013-01-15"] == ["2013-01-15"]
    assert folders["a/b"] == ["a%2Fb"]


def test_long_keys_that_begin_alike_have_folders_of_their_own(
    files: FileOutputs, root: Path
) -> None:
    one, other = (
        stays_inside(files, root, encode_key("a" * 300 + end)).location.split("/")[1]
        for end in ("b", "c")
    )
    assert one != other
    assert len(one) == len(other) == 100


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(keys())
def test_every_key_has_a_place_inside(files: FileOutputs, root: Path, key: Any) -> None:
    try:
        partition = encode_key(key)
    except BadPartition:
        return
    stays_inside(files, root, partition)


@pytest.fixture
def memory() -> Iterator[FileOutputs]:
    yield FileOutputs("memory://flowstone-outputs")
    fsspec.filesystem("memory").rm("/flowstone-outputs", recursive=True)


def test_any_fsspec_url_will_do(memory: FileOutputs) -> None:
    stored = store(memory, {"a": 1}, encode_key("eu"))
    assert memory.load(stored) == {"a": 1}
    assert FileOutputs("memory://flowstone-outputs").load(stored) == {"a": 1}
    fsspec.filesystem("memory").pipe_file(memory.path(stored), b"2")
    with pytest.raises(OutputError, match="has been changed"):
        memory.load(stored)
    fsspec.filesystem("memory").rm(memory.path(stored))
    with pytest.raises(OutputError, match="not in storage"):
        memory.load(stored)
    store(memory, 1)
