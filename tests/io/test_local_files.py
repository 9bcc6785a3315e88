"""Files in a folder: whole or not there, and there after a power cut."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import pytest

from flowstone.errors import StorageUnavailable
from flowstone.io.files import FileOutputs

LOCATION = "made/2013-01-15/7-1-0123abcd.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture
def files(root: Path) -> FileOutputs:
    return FileOutputs(str(root))


class FullDisk:
    """A file whose disk is full after the first bytes."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._file.write(data[:1])
        raise OSError(28, "No space left on device")


def test_a_write_that_fails_half_way_leaves_no_value(
    files: FileOutputs, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.open

    def open_full(path: Path, mode: str = "r") -> Any:
        monkeypatch.setattr(Path, "open", original)
        return FullDisk(path)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(StorageUnavailable, match="No space left"):
        files.store(LOCATION, b"a long value")
    assert not files.exists(LOCATION)
    # The collector finds what is left of it.
    assert list(files.stored()) == [f"{LOCATION}.part"]
    files.store(LOCATION, b"again")
    assert list(files.stored()) == [LOCATION]


def test_a_process_that_is_killed_before_the_value_has_its_name_leaves_no_value(
    root: Path,
) -> None:
    script = f"""
import os, pathlib, signal
from flowstone.io.files import FileOutputs
files = FileOutputs({str(root)!r})
files.store("made/2013-01-15/1-1-00000000.json", b"makes the folders")
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.replace = die
files.store({LOCATION!r}, b"value")
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert done.returncode == -9
    files = FileOutputs(str(root))
    assert not files.exists(LOCATION)
    assert sorted(files.stored()) == ["made/2013-01-15/1-1-00000000.json", f"{LOCATION}.part"]


def test_a_value_is_on_disk_under_its_name_before_it_counts_as_stored(
    files: FileOutputs, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync = os.fsync

    def note_sync(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        assert path.read_bytes() == b"value", "all of it is with the system"
        synced.append(str(path.relative_to(root)))
        sync(handle)

    monkeypatch.setattr(os, "fsync", note_sync)
    files.store(LOCATION, b"value")
    assert synced == [LOCATION]


@pytest.mark.parametrize("url", ["{root}", "file://{root}", "{root}/"])
def test_a_folder_may_be_written_as_a_path_or_a_url(root: Path, url: str) -> None:
    FileOutputs(url.format(root=root)).store(LOCATION, b"1")
    assert (root / LOCATION).read_bytes() == b"1"


def test_beyond_other_protocols_a_value_gets_its_name_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    files = FileOutputs(f"disk://{tmp_path}/disk")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files._fs, "mv", fail)
    with pytest.raises(StorageUnavailable):
        files.store(LOCATION, b"value")
    assert not files.exists(LOCATION)
    assert list(files.stored()) == [f"{LOCATION}.part"]
