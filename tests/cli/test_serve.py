"""`flowstone serve` and `flowstone signal` as a user calls them."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from flowstone.cli import app
from flowstone.errors import BadConfig, BadSignal, ServerError, SignalReplayed, WrongMigration
from flowstone.registry import build_registry
from flowstone.signalling import SignalAsk
from flowstone.store import gates
from flowstone.store.ledger import Ledger
from flowstone.tokens import HEADER, sign
from flowstone.web import server
from tests.cli.conftest import DEADLINE, ROOT, Cli, wait_until
from tests.conftest import RuntimeFactory
from tests.store.gates_by_hand import ask_for, row
from tests.store.runs_by_hand import query

SECRET = "s" * 32
SHARED = "h" * 32
TOKEN = "token-of-mine"  # noqa: S105 - of no use to anybody


def test_without_a_secret_it_does_not_start(cli: Cli, database: str) -> None:
    said = cli("serve", database_url=database).refused(2)
    assert "FLOWSTONE_SECRET is not set" in said
    assert "secrets.token_urlsafe(32)" in said


def test_it_does_not_start_on_a_wrong_schema_or_where_another_listens(
    make_runtime: RuntimeFactory, empty_database: str
) -> None:
    secret = {"secret": SecretStr(SECRET)}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        here = make_runtime(build_registry([]), **secret)
        with pytest.raises(ServerError, match=rf"127.0.0.1:{port}: .* choose another --port"):
            server.run(here, "127.0.0.1", port, print)
    empty = SecretStr(empty_database.replace("postgresql+psycopg", "postgresql"))
    here = make_runtime(build_registry([]), database_url=empty, **secret)
    with pytest.raises(WrongMigration, match="flowstone db upgrade"):
        server.run(here, "127.0.0.1", 0, print)
    here.close()


def test_without_tornado_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("flowstone.web.server")
    monkeypatch.setitem(sys.modules, "flowstone.web.server", None)
    result = CliRunner().invoke(app, ["serve"])
    assert isinstance(result.exception, BadConfig)
    assert "pip install 'flowstone[web]'" in result.exception.message


def test_a_request_that_is_on_its_way_is_answered_before_it_stops(
    cli: Cli, database: str, ledger: Ledger, tmp_path: Path
) -> None:
    gate = ask_for(ledger, SignalAsk(name="done", token=TOKEN), driver="inline")
    log = tmp_path / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flowstone.cli", "serve", "--port", "0"],
            cwd=ROOT,
            env=cli.environment(database_url=database, secret=SECRET, shared_secret=SHARED),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: "ready at" in log.read_text() or process.poll() is not None, "a start")
        (port,) = re.findall(r"ready at http://127\.0\.0\.1:(\d+);", log.read_text())
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=DEADLINE)
        body = b'{"rows": 1}'
        connection.putrequest("POST", f"/signals/{TOKEN}")
        connection.putheader(HEADER, sign(SHARED.encode(), time.time(), TOKEN, body))
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[:4])
        with closing(http.client.HTTPConnection("127.0.0.1", int(port))) as health:
            health.request("GET", "/health")
            assert health.getresponse().status == 200
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not accepts(int(port)), "nobody else to be let in")
        connection.send(body[4:])
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["signal"]) == (202, "received")
        connection.close()
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.wait()
    said = log.read_text()
    assert said.endswith("stopped\n")
    assert "what=signal status=202" in said
    assert TOKEN not in said
    assert "Traceback" not in said
    assert row(ledger, gate).state == "received"


def test_it_ends_though_a_thread_hangs(
    cli: Cli, database: str, ledger: Ledger, tmp_path: Path
) -> None:
    gate = ask_for(ledger, SignalAsk(name="done", token=TOKEN), driver="inline")
    log = tmp_path / "serve.log"
    script = (
        "from flowstone.web import server; server.STOP_SECONDS = 0.2\n"
        "from flowstone.cli import main; main()"
    )
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", script, "serve", "--port", "0"],
            cwd=ROOT,
            env=cli.environment(database_url=database, secret=SECRET, shared_secret=SHARED),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: "ready at" in log.read_text() or process.poll() is not None, "a start")
        (port,) = re.findall(r"ready at http://127\.0\.0\.1:(\d+);", log.read_text())
        client = http.client.HTTPConnection("127.0.0.1", int(port))
        with ledger.begin() as conn, closing(client):
            gates.lock(conn, gate)
            signed = {HEADER: sign(SHARED.encode(), time.time(), TOKEN, b"")}
            client.request("POST", f"/signals/{TOKEN}", headers=signed)
            waits = "SELECT 1 FROM pg_locks WHERE NOT granted"
            wait_until(lambda: query(ledger, waits), "the signal to wait for the gate")
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.wait()
    assert log.read_text().endswith("stopped\n")
    assert row(ledger, gate).state == "open"


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def test_a_signal_is_sent_from_the_command_line_once(
    make_runtime: RuntimeFactory, ledger: Ledger, tmp_path: Path
) -> None:
    make_runtime(build_registry([]))
    gate = ask_for(ledger, SignalAsk(name="done", token=TOKEN), driver="inline")
    file = tmp_path / "payload.json"
    for wrong, said in (("{", "is no JSON"), (f"@{file}", "cannot be read: No such file")):
        result = CliRunner().invoke(app, ["signal", TOKEN, wrong])
        assert isinstance(result.exception, BadSignal)
        assert said in result.exception.message
    file.write_text('["é"]')
    result = CliRunner().invoke(app, ["signal", "-", f"@{file}"], input=f"{TOKEN}\n")
    assert result.exit_code == 0, result.exception
    assert re.fullmatch(r"asset\w+ of run [0-9a-f-]{36} goes on\n", result.output)
    found = row(ledger, gate)
    assert (found.payload, found.channel) == ({"value": ["é"]}, "cli")
    result = CliRunner().invoke(app, ["signal", TOKEN])
    assert isinstance(result.exception, SignalReplayed)


@pytest.mark.parametrize("command", ["serve", "signal"])
def test_each_has_help_with_an_example(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert f"Example: flowstone {command}" in shown.output
