from __future__ import annotations

import os
import signal
import socket
import stat
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from flowstone.embedded import ValkeyServer, place, process
from flowstone.embedded.account import own_account
from flowstone.errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def client(server: ValkeyServer) -> Redis:
    return Redis(unix_socket_path=str(server.sockets / "valkey.sock"), decode_responses=True)


def test_it_keeps_its_data_across_a_restart(home: Path) -> None:
    server = ValkeyServer(home)
    for number in (1, 2):
        with server, client(server) as redis:
            assert redis.incr("starts") == number
    assert not server.is_running()
    assert server.pid is None


def test_it_keeps_its_data_when_killed(home: Path) -> None:
    server = ValkeyServer(home)
    server.start()
    with client(server) as redis:
        redis.set("key", "value")
    server.kill()
    assert not server.is_running()
    with server, client(server) as redis:
        assert redis.get("key") == "value"


def test_it_starts_again_after_it_ended_by_itself(
    home: Path, wait_until: Callable[[Callable[[], object], str], None]
) -> None:
    server = ValkeyServer(home)
    server.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGTERM)
    wait_until(lambda: not server.is_running(), "the server has ended")
    server.start()
    assert server.is_running()
    server.stop()


def test_it_listens_on_a_private_socket_only(home: Path) -> None:
    with ValkeyServer(home) as server, client(server) as redis:
        assert redis.config_get("port") == {"port": "0"}
        assert redis.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert stat.S_IMODE(server.sockets.stat().st_mode) == 0o700
        assert stat.S_IMODE((server.sockets / "valkey.sock").stat().st_mode) == 0o700
    assert not server.sockets.exists()


def test_a_second_server_of_a_home_is_refused(home: Path) -> None:
    with ValkeyServer(home) as server:
        with pytest.raises(ServerError, match=f"Valkey of {home} is already run by process"):
            ValkeyServer(home).start()
        with pytest.raises(ServerError, match="already run"):
            server.start()
        assert server.is_running()


def test_stopping_twice_or_before_the_start_is_harmless(home: Path) -> None:
    server = ValkeyServer(home)
    server.stop()
    server.start()
    server.stop()
    server.stop()


def test_the_name_of_a_home_may_hold_spaces_and_any_letters(yard: Path) -> None:
    with ValkeyServer(yard / "Flüge 'und' \"mehr\"") as server, client(server) as redis:
        assert redis.ping()


def test_an_unknown_locale_does_not_matter(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "xx_YY.UTF-8")
    with ValkeyServer(home) as server:
        assert server.is_running()


def test_a_server_that_was_left_behind_is_neither_joined_nor_cut_off(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "KILL_S", 0.1)
    server = ValkeyServer(home)
    place.make_socket_folder(server.sockets, own_account())
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(server.sockets / "valkey.sock"))
        left_behind.listen()
        for _ in range(2):
            with pytest.raises(ServerError, match="was left behind by a process that was killed"):
                server.start()
    with server:
        assert server.is_running()


def test_a_long_log_is_put_aside(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOG_BYTES", 10)
    server = ValkeyServer(home)
    for _ in range(2):
        with server:
            pass
    assert sorted(path.name for path in (home / "logs").iterdir()) == ["valkey.log", "valkey.log.1"]
    assert stat.S_IMODE(server.log_path.stat().st_mode) == 0o600


def test_the_log_tells_why_it_did_not_start(home: Path) -> None:
    files = home / "valkey" / "appendonlydir"
    files.mkdir(parents=True)
    (files / "appendonly.aof.manifest").write_text("nonsense\n")
    server = ValkeyServer(home)
    with pytest.raises(ServerError, match=r"(?s)ended with exit status 1.*AOF manifest"):
        server.start()
    assert not server.is_running()
