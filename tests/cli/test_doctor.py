"""`flowstone doctor` and `flowstone health` on real servers: what is wrong is found and told."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from pydantic import SecretStr
from redis import Redis
from sqlalchemy import text
from typer.testing import CliRunner

from flowstone import __version__, canvas, checkup, health, probe, runtime
from flowstone.cli import app, exit_code
from flowstone.doctor import CHECKS, Finding, Level, diagnose
from flowstone.embedded import ValkeyServer
from flowstone.embedded.place import socket_folder
from flowstone.errors import BadConfig, BrokerUnavailable
from flowstone.queues import QUEUES
from flowstone.runtime import Runtime
from flowstone.settings import Settings, load_settings
from flowstone.store import vitals, watch, workers
from flowstone.store.ledger import Ledger
from flowstone.store.workers import Work
from tests.cli.conftest import Cli
from tests.store.runs_by_hand import HandRun

Look = Callable[[], dict[str, Finding]]
Ask = Callable[..., tuple[int, str]]
HOST = socket.gethostname()


@pytest.fixture
def settings(database: str, valkey: ValkeyServer) -> Settings:
    return load_settings(database_url=database, broker_url=valkey.url, result_url=valkey.url)


@pytest.fixture
def redis(valkey: ValkeyServer) -> Iterator[Redis]:
    client = Redis(unix_socket_path=str(socket_folder(valkey.home, "valkey") / "valkey.sock"))
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def running(ledger: Ledger, redis: Redis) -> None:
    """An installation in which all is well, as far as the ledger can tell."""
    with ledger.begin() as conn:
        work = Work(__version__, processes=2, busy=0, taken=1, clock=time.time())
        workers.report(conn, "celery@a", list(QUEUES), up=1000, work=work)
        watch.look(conn, 60)
        vitals.tick(conn)


@pytest.fixture
def look(settings: Settings) -> Iterator[Callable[[], dict[str, Finding]]]:
    """Ask the doctor; return what is not in order."""
    here = Runtime(settings)

    def look() -> dict[str, Finding]:
        findings = diagnose(checkup.examine(here))
        assert [one.check for one in findings] == list(CHECKS)
        return {one.check: one for one in findings if one.level is not Level.OK}

    yield look
    here.close()


@pytest.fixture
def ask(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ask]:
    """Call the command line in this process; return its exit code and what it prints."""
    monkeypatch.setenv("FLOWSTONE_DATABASE_URL", settings.database)
    monkeypatch.setenv("FLOWSTONE_BROKER_URL", settings.broker)
    monkeypatch.setenv("FLOWSTONE_RESULT_URL", settings.results)
    monkeypatch.setenv("FLOWSTONE_ASSETS", "examples.flights.assets")
    monkeypatch.setenv("COLUMNS", "80")

    def ask(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, arguments)
        assert done.stderr == ""
        return done.exit_code, done.stdout

    yield ask
    runtime.close()


def test_where_all_is_well_each_check_says_so(ask: Ask, running: None) -> None:
    code, out = ask("doctor", "--strict")
    lines = out.splitlines()
    assert (code, lines[-1]) == (0, f"{len(CHECKS)} ok")
    assert [line.split("│")[1].strip() for line in lines if "│ ok" in line] == list(CHECKS)
    assert max(map(len, lines)) <= 80
    code, out = ask("doctor", "--json")
    told = json.loads(out)
    assert told["healthy"] is True
    assert [one["check"] for one in told["findings"]] == list(CHECKS)
    assert set(told["findings"][0]) == {"check", "level", "seen", "remedy"}


def test_servers_that_are_away_are_errors_and_no_password_is_shown(cli: Cli) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        away = {
            "database_url": f"postgresql://me:hunter2@{address}/x",
            "broker_url": f"redis://me:hunter2@{address}/0",
            "result_url": f"redis://me:hunter2@{address}/1",
        }
        shown = cli("doctor", "--json", **away)
        assert (shown.code, shown.err) == (1, "")
        told = json.loads(shown.out)
        assert told["healthy"] is False
        wrong = {one["check"]: one for one in told["findings"] if one["level"] == "error"}
        assert list(wrong) == ["ledger", "broker", "result backend"]
        for one in wrong.values():
            assert "127.0.0.1" in one["seen"]
            assert one["remedy"].startswith("start `flowstone dev`, or set FLOWSTONE_")
        assert "hunter2" not in shown.out


def test_servers_that_never_answer_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else this test would not end: what listens here says nothing for ever."""
    monkeypatch.setattr(checkup, "ANSWER_SECONDS", 0.3)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        settings = load_settings(
            database_url=f"postgresql://me@{address}/x",
            broker_url=f"redis://{address}/0",
            result_url=f"redis://{address}/1",
        )
        findings = diagnose(checkup.examine(Runtime(settings)))
        unknown = [one for one in findings if one.level is Level.ERROR]
        assert [one.check for one in unknown] == ["ledger", "broker", "result backend"]
        assert all("does not answer in time" in one.seen for one in unknown)
        assert health.of_worker(settings, "w@a").is_alive
        assert health.of_beat_service(settings).is_alive
        assert not health.of_ledger(settings).is_alive


def test_the_libraries_are_told_not_to_wait_for_long_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that no thread is left behind in a process that asks more than once."""
    monkeypatch.setattr(canvas, "ANSWER_SECONDS", 0.2)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"redis://127.0.0.1:{mute.getsockname()[1]}/0"
        settings = load_settings(broker_url=address, result_url=address)
        for ask in (probe.broker, probe.results, lambda s: probe.held(s, ["assets"])):
            with pytest.raises(BrokerUnavailable, match="cannot be reached: Timeout"):
                ask(settings)


def test_a_server_that_may_throw_messages_away_is_an_error(
    running: None, redis: Redis, look: Look
) -> None:
    assert look() == {}
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        found = look()
    finally:
        redis.config_set("maxmemory-policy", "noeviction")
    assert {check: one.level for check, one in found.items()} == {
        "broker memory": Level.ERROR, "result memory": Level.ERROR,
    }  # fmt: skip
    assert "allkeys-lru" in found["broker memory"].seen


def test_a_server_that_does_not_tell_is_a_warning(valkey: ValkeyServer, redis: Redis) -> None:
    """INFO is asked, as CONFIG is refused by some that are managed; this one refuses both."""
    path = str(socket_folder(valkey.home, "valkey") / "valkey.sock")
    redis.acl_setuser(
        "shy", enabled=True, passwords=["+x"], commands=["+@all", "-info", "-config"], keys=["*"]
    )
    try:
        client = Redis(unix_socket_path=path, username="shy", password="x")  # noqa: S106 - of this test
        assert probe.told_by(client) == (None, None)
        redis.acl_setuser("shy", commands=["+info"])
        assert probe.told_by(client) == ("noeviction", True)
        client.close()
    finally:
        redis.acl_deluser("shy")


def test_what_nobody_repairs_is_told(running: None, ledger: Ledger, look: Look) -> None:
    HandRun(ledger, {1: ()})
    with ledger.begin() as conn:
        # Its first message was lost, so that only the reconciler wakes it.
        conn.execute(
            text(
                "UPDATE flowstone.runs SET state = 'requested', created_at = now() - interval '1 h'"
            )
        )
        long_ago = "now() - interval '50 s'"
        conn.execute(
            text(f"UPDATE flowstone.watch SET passed_at = {long_ago}, ticked_at = {long_ago}")
        )
    found = look()
    assert {check: one.level for check, one in found.items()} == {
        "beat": Level.ERROR, "reconciler": Level.ERROR, "backlog": Level.WARNING,
    }  # fmt: skip
    assert "nobody repairs what is due: " in found["backlog"].seen
    with ledger.begin() as conn:
        watch.look(conn, 1000)
        vitals.tick(conn)
    assert look() == {}


def test_warnings_fail_only_where_that_is_asked_for(
    ask: Ask, ledger: Ledger, running: None
) -> None:
    with ledger.begin() as conn:
        work = Work("9.9", processes=2, busy=0, taken=1, clock=time.time())
        workers.report(conn, "celery@b", list(QUEUES), up=5, work=work)
    code, out = ask("doctor")
    assert (code, out.splitlines()[-1]) == (0, f"{len(CHECKS) - 1} ok, 1 warning")
    remedy = "let all processes run one version: stop, `flowstone db upgrade`, start"
    assert out.splitlines()[-2] == f"warning: versions: {remedy}"
    assert ask("doctor", "--strict")[0] == 1


@pytest.mark.parametrize(
    ("module", "seen"),
    [("tests.cli.cyclic_assets", "circle"), ("no_such_module", "'no_such_module'")],
)
def test_definitions_that_cannot_be_loaded_are_an_error(
    running: None, settings: Settings, module: str, seen: str
) -> None:
    here = Runtime(settings.model_copy(update={"assets": (module,)}))
    findings = diagnose(checkup.examine(here))
    here.close()
    (found,) = [one for one in findings if one.level is not Level.OK]
    assert (found.check, found.level) == ("definitions", Level.ERROR)
    assert seen in found.seen + found.remedy
    assert found.remedy


def test_a_queue_that_nobody_consumes_is_an_error_with_the_command(
    running: None, ledger: Ledger, look: Look
) -> None:
    HandRun(ledger, {1: (), 2: ()}, queue="gpu").dispatch()
    (found,) = look().values()
    assert (found.check, found.level) == ("queues", Level.ERROR)
    assert found.seen == "2 steps wait in the queue 'gpu', which no worker consumes"
    assert found.remedy == "start a worker: celery -A tasks worker -Q gpu"


@pytest.mark.parametrize(
    ("version", "remedy"),
    [("0001", "run `flowstone db upgrade`"), ("9999", "upgrade the package flowstone")],
)
def test_a_schema_of_another_version_is_an_error_with_the_remedy(
    ask: Ask, ledger: Ledger, look: Look, version: str, remedy: str
) -> None:
    with ledger.engine.begin() as conn:
        conn.execute(text("UPDATE flowstone.alembic_version SET version_num = :v"), {"v": version})
    found = look()
    assert [c for c, one in found.items() if one.level is not Level.SKIPPED] == ["schema"]
    assert version in found["schema"].seen
    assert found["schema"].remedy == remedy
    # A restart would cure neither.
    code, out = ask("health", "ledger")
    assert (code, len(out.splitlines())) == (1, 1)
    assert remedy in out
    for part in ("worker", "beat"):
        code, out = ask("health", part)
        assert (code, len(out.splitlines())) == (0, 1)
        assert "would not help" in out


def test_what_is_alive_is_told_in_one_line(ask: Ask, running: None) -> None:
    cases = {
        ("worker", "celery@a"): (0, "celery@a was seen "),
        ("worker",): (1, f"celery@{HOST} is silent"),
        ("beat",): (0, "the last tick has come "),
        ("ledger",): (0, "the ledger at "),
    }
    for part, (code, said) in cases.items():
        told = ask("health", *part)
        assert (told[0], len(told[1].splitlines())) == (code, 1)
        assert told[1].startswith(said)


def start(ledger: Ledger, *names: str) -> None:
    with ledger.begin() as conn:
        for name in names:
            workers.report(conn, name, list(QUEUES), up=5)


@pytest.mark.parametrize(
    ("option", "worker"),
    [
        ("w1", "celery@w1"),
        ("w1@%h", f"w1@{HOST}"),
        ("w1@host1", "w1@host1"),
        ("", f"celery@{HOST}"),
    ],
)
def test_a_worker_is_found_by_what_it_was_started_with(
    ask: Ask, ledger: Ledger, option: str, worker: str
) -> None:
    start(ledger, worker, "other@there")
    code, out = ask("health", "worker", option)
    assert (code, out.partition(" was seen")[0]) == (0, worker)


def test_without_a_name_it_is_about_the_only_worker_of_this_host(ask: Ask, ledger: Ledger) -> None:
    assert ask("health", "worker")[1].endswith("; nor has any other worker\n")
    # As `flowstone dev` does it.
    start(ledger, f"flowstone@{HOST}", "celery@there")
    code, out = ask("health", "worker")
    assert (code, out.partition(" was seen")[0]) == (0, f"flowstone@{HOST}")
    # Of two it could be either.
    start(ledger, f"other@{HOST}")
    code, out = ask("health", "worker")
    there = f"those that have: celery@there, flowstone@{HOST}, other@{HOST}"
    assert (code, out.startswith(f"celery@{HOST} is silent"), there in out) == (1, True, True)
    # That of Celery's own name comes first.
    start(ledger, f"celery@{HOST}")
    assert ask("health", "worker")[0] == 0
    assert ask("health", "worker", "gone@%h")[0] == 1


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"database_url": "mysql://me:hunter2@host/x"}, "FLOWSTONE_DATABASE_URL starts with mysql"),
        ({"broker_url": "foo://me:hunter2@host"}, "FLOWSTONE_BROKER_URL is no address"),
        ({"broker_url": "redis://:hun/ter2@host"}, "FLOWSTONE_BROKER_URL is no address"),
        ({"result_url": "redis://:hun/ter2@host"}, "FLOWSTONE_RESULT_URL is no address"),
    ],
)
@pytest.mark.parametrize("command", ["worker", "beat", "ledger"])
def test_wrong_settings_are_no_illness_and_have_an_exit_code_of_their_own(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str], part: str, command: str
) -> None:
    for name, value in wrong.items():
        monkeypatch.setenv(f"FLOWSTONE_{name.upper()}", value)
    with pytest.raises(BadConfig, match=part) as raised:
        CliRunner().invoke(app, ["health", command], catch_exceptions=False)
    assert exit_code(raised.value) == 2
    assert "hun" not in str(raised.value)


def test_the_doctor_tells_how_an_address_is_written() -> None:
    settings = load_settings(database_url="mysql://me:hunter2@host/x", broker_url="foo://x",
                             result_url="redis://host")  # fmt: skip
    found = {one.check: one for one in diagnose(checkup.examine(Runtime(settings)))}
    assert found["ledger"].remedy.endswith("postgresql://user:password@host:port/name")
    assert "amqp://user:password@host//" in found["broker"].remedy


def test_both_servers_are_shown_by_the_address_that_is_set(settings: Settings) -> None:
    settings = settings.model_copy(update={"result_url": SecretStr(settings.broker)})
    assert settings.broker.startswith("redis+socket:///")
    assert probe.broker(settings).address == probe.results(settings).address
    assert probe.broker(settings).address.startswith("redis+socket:///")


def test_a_worker_is_alive_while_the_broker_is_away(running: None, settings: Settings) -> None:
    away = SecretStr("redis://127.0.0.1:1/0")
    told = health.of_worker(settings.model_copy(update={"broker_url": away}), "celery@a")
    assert told.is_alive
    assert "whether it takes messages is not known: the broker at redis://" in told.said


def test_celerys_own_settings_are_looked_at(
    running: None, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has a celeryconfig.py of their own may have changed what FlowStone needs."""
    import celeryconfig  # noqa: PLC0415

    monkeypatch.setattr(celeryconfig, "broker_transport_options", {})
    monkeypatch.setattr(celeryconfig, "accept_content", ["json", "pickle"])
    monkeypatch.setattr(celeryconfig, "task_acks_late", False)
    found = look()
    assert set(found) == {"visibility timeout", "serializers", "acknowledgement"}
    assert "3600 s" in found["visibility timeout"].seen
