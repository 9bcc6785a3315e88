"""What is wrong is told in one line with the remedy, by exit code, and leaves nothing half-made."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from flowstone.embedded import ValkeyServer
from tests.cli.conftest import Cli

ASSETS = "tests.cli.small_assets"
NOWHERE = "127.0.0.1:1"


def count_runs(database: str) -> int:
    engine = create_engine(database)
    with engine.connect() as conn:
        count = conn.scalar(text("SELECT count(*) FROM flowstone.runs"))
    engine.dispose()
    assert isinstance(count, int)
    return count


def test_a_database_that_is_away(cli: Cli, valkey: ValkeyServer) -> None:
    error = cli(
        "run", "total", database_url=f"postgresql://u:secret@{NOWHERE}/x", broker_url=valkey.url
    ).refused(3)
    assert "PostgreSQL at 127.0.0.1/x cannot be used" in error
    assert "start `flowstone dev`, or set FLOWSTONE_DATABASE_URL" in error
    assert "secret" not in error


def test_no_server_at_all(cli: Cli) -> None:
    error = cli("run", "total").refused(3)
    assert "start `flowstone dev`" in error
    assert not cli.home.exists()


def test_a_broker_that_is_away_is_told_in_a_line_and_the_run_is_recorded(
    cli: Cli, database: str
) -> None:
    urls = {"database_url": database, "broker_url": f"redis://:secret@{NOWHERE}/0"}
    done = cli("run", "total", "--detach", **urls)
    assert done.code == 0
    (line,) = done.err.splitlines()
    assert "the run is recorded, and starts as soon as the broker is back" in line
    assert "the broker at redis://:**@127.0.0.1:1/0 cannot be reached" in line
    assert "set FLOWSTONE_BROKER_URL" in line
    assert "secret" not in line
    told = cli("status", done.out.strip(), **urls)
    assert (told.code, told.err) == (0, "")
    assert "run " + done.out[:8] + " requested" in told.out
    assert "1 run waits in the queue 'control'" in told.out
    assert count_runs(database) == 1


def test_no_part_of_a_password_that_is_not_encoded_is_printed(
    cli: Cli, database: str, valkey: ValkeyServer
) -> None:
    """As a port or a path it would stand in the errors of the libraries that read it."""
    bad, urls = f"redis://:hun/ter@{NOWHERE}", {"database_url": database, "assets": ASSETS}
    for command, wrong in (
        (("run", "total"), {"broker_url": bad, "result_url": valkey.url}),
        (("run", "total"), {"broker_url": valkey.url, "result_url": bad}),
        (("reconcile",), {"broker_url": bad, "result_url": valkey.url}),
    ):
        done = cli(*command, **urls, **wrong)
        assert "is no address of a" in done.refused(2)
        assert "hun" not in done.out + done.err
    assert count_runs(database) == 0


def test_a_database_without_a_ledger(cli: Cli, empty_database: str, valkey: ValkeyServer) -> None:
    urls = {"database_url": empty_database, "broker_url": valkey.url, "result_url": valkey.url}
    assert "run `flowstone db upgrade`" in cli("run", "total", **urls).refused(3)
    assert "run `flowstone db upgrade`" in cli("dev", assets=ASSETS, **urls).refused(3)
    upgraded = cli("db", "upgrade", **urls)
    assert upgraded.code == 0
    assert "is now at" in upgraded.out
    assert "already" in cli("db", "upgrade", **urls).out


@pytest.mark.parametrize(
    ("revision", "remedy"), [("0000", "flowstone db upgrade"), ("9999", "upgrade the package")]
)
def test_a_ledger_of_another_version(
    cli: Cli, database: str, valkey: ValkeyServer, revision: str, remedy: str
) -> None:
    engine = create_engine(database)
    with engine.begin() as conn:
        conn.execute(text("UPDATE flowstone.alembic_version SET version_num = :r"), {"r": revision})
    engine.dispose()
    error = cli("run", "total", database_url=database, broker_url=valkey.url).refused(3)
    assert f"the ledger is at revision {revision}" in error
    assert remedy in error
    assert count_runs(database) == 0


def test_a_database_of_another_kind(cli: Cli) -> None:
    error = cli("runs", database_url="mysql://localhost/x").refused(2)
    assert "the ledger needs PostgreSQL" in error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"asets": "x"}, "FLOWSTONE_ASETS is not a setting of FlowStone; did you mean"),
        ({"max_in_flight": "0"}, "FLOWSTONE_MAX_IN_FLIGHT: Input should be greater than"),
        ({"assets": "no.such.module"}, "module 'no.such.module' of FLOWSTONE_ASSETS was not found"),
        ({"assets": "tests.cli.cyclic_assets"}, "circle: a -> b -> a"),
    ],
)
def test_bad_settings_and_definitions(cli: Cli, settings: dict[str, str], message: str) -> None:
    assert message in cli("show", **settings).refused(2)


def test_an_unknown_asset_has_a_neighbour(cli: Cli) -> None:
    error = cli("show", "totl", assets=ASSETS).refused(2)
    assert "asset 'totl' is not defined; did you mean 'total'?" in error


def test_what_is_defined_is_shown_without_a_database(cli: Cli) -> None:
    shown = cli("show", "total", assets=ASSETS)
    assert shown.code == 0
    assert "numbers (unpartitioned)" in shown.out
    assert "outputs are not shown" in shown.out


def test_a_run_that_no_worker_takes_is_explained_and_stays(
    cli: Cli, database: str, valkey: ValkeyServer
) -> None:
    urls = {"database_url": database, "broker_url": valkey.url, "result_url": valkey.url}
    waited = cli("run", "total", "--timeout", "0.5", **urls)
    assert "1 run waits in the queue 'control', which no worker consumes; start one" in waited.out
    assert "is still requested after 0.5 s" in waited.refused(4)
    assert count_runs(database) == 1


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("database_url", "user:hidden@host/db", "FLOWSTONE_DATABASE_URL has no scheme"),
        ("database_url", "postgresql://u:hidden@host:port/db", "FLOWSTONE_DATABASE_URL is no"),
        ("broker_url", "amqp://u:hidden@host//", "FLOWSTONE_RESULT_URL is not"),
    ],
)
def test_an_address_that_is_none(cli: Cli, variable: str, value: str, message: str) -> None:
    error = cli("run", "total", **{variable: value}).refused(2)
    assert message in error
    assert "hidden" not in error


def test_a_broker_of_an_unknown_kind(cli: Cli, database: str) -> None:
    urls = {"database_url": database, "broker_url": "foo://x", "result_url": "redis://x"}
    assert "FLOWSTONE_BROKER_URL is no address" in cli("run", "total", **urls).refused(2)
    assert count_runs(database) == 0


def test_a_result_backend_that_is_away(cli: Cli, database: str, valkey: ValkeyServer) -> None:
    urls = {"database_url": database, "broker_url": valkey.url}
    error = cli("dev", assets=ASSETS, result_url=f"redis://{NOWHERE}/0", **urls).refused(3)
    assert "set FLOWSTONE_RESULT_URL" in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_in_fligth = 5", "flowstone.toml, key 'max_in_fligth'; did you mean 'max_in_flight'?"),
        ("max_in_flight = 0", "flowstone.toml, key 'max_in_flight': Input should be greater"),
        ("max_in_flight = ", "flowstone.toml: "),
        ("time_limit = 5", "FLOWSTONE_TIME_LIMIT must not be below"),
    ],
)
def test_a_fault_in_the_file_of_settings(cli: Cli, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "flowstone.toml").write_text(text)
    assert message in cli.inside(tmp_path)("show").refused(2)


def test_the_file_of_settings_is_read(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "flowstone.toml").write_text('assets = ["tests.cli.small_assets"]')
    assert "numbers" in cli.inside(tmp_path)("show").out


def test_names_from_outside_are_no_markup(cli: Cli, database: str) -> None:
    engine = create_engine(database)
    with engine.begin() as conn:
        conn.execute(
            text(
                "INSERT INTO flowstone.runs (id, driver, request, config, max_in_flight, actor) "
                "VALUES (gen_random_uuid(), 'celery', CAST(:r AS jsonb), '{}', 1, 'test')"
            ),
            {"r": '{"assets": ["a"], "partition": "s:%5B/red%5D", "upstream": false}'},
        )
    engine.dispose()
    assert "[/red]" in cli("runs", database_url=database).out


def test_a_run_is_named_by_something(cli: Cli, database: str) -> None:
    assert "no run is named" in cli("status", "", database_url=database).refused(2)
