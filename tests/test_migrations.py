"""The migrations end exactly at the tables that the code declares."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from flowstone.embedded.account import postgres_account
from flowstone.embedded.binaries import postgres_programs
from flowstone.store import migrate
from flowstone.store.ledger import HEAD, Ledger, revision
from flowstone.store.tables import FUNCTIONS_AND_TRIGGERS, SCHEMA, metadata


@pytest.fixture
def empty(empty_database: str) -> Iterator[Ledger]:
    made = Ledger(empty_database)
    yield made
    made.close()


def dump(url: str) -> list[str]:
    """Return the lines of the schema as pg_dump writes them, without comments and random keys."""
    program = postgres_programs(postgres_account()) / "pg_dump"
    written = subprocess.run(
        [program, "--schema-only", f"--schema={SCHEMA}", url.replace("+psycopg", "")],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        env={**os.environ, "PGTZ": "UTC"},
    ).stdout
    statements = re.sub(r"^(--.*|\\(un)?restrict .*|)\n", "", written, flags=re.MULTILINE)
    assert "CREATE TABLE flowstone.steps" in statements
    return statements.splitlines()


def create_declared(conn: Connection) -> None:
    conn.execute(text(f"CREATE SCHEMA {SCHEMA}"))
    metadata.create_all(conn)
    for statement in FUNCTIONS_AND_TRIGGERS:
        conn.execute(text(statement))
    conn.execute(
        text(
            f"CREATE TABLE {SCHEMA}.alembic_version (version_num varchar(32) NOT NULL "
            "CONSTRAINT alembic_version_pkc PRIMARY KEY)"
        )
    )


def test_alembic_finds_no_difference(ledger: Ledger) -> None:
    def only_ours(name: str | None, kind: str, _: object) -> bool:
        return name == SCHEMA if kind == "schema" else name != "alembic_version"

    with ledger.begin() as conn:
        context = MigrationContext.configure(
            conn,
            opts={
                "include_schemas": True,
                "include_name": only_ours,
                "compare_type": True,
                "compare_server_default": True,
            },
        )
        assert compare_metadata(context, metadata) == []


def test_the_catalogue_of_the_database_is_the_same_to_the_letter(
    database: str, empty: Ledger, empty_database: str
) -> None:
    with empty.engine.begin() as conn:
        create_declared(conn)
    assert dump(database) == dump(empty_database)


OTHER_FUNCTION = """
CREATE OR REPLACE FUNCTION flowstone.refuse_change() RETURNS trigger LANGUAGE plpgsql
AS $$BEGIN RETURN NULL; END$$
"""
OTHER_INDEX = """
DROP INDEX flowstone.ix_steps_ready;
CREATE INDEX ix_steps_ready ON flowstone.steps (run_id, id) WHERE state = 'pending'
"""


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE flowstone.steps DROP CONSTRAINT ck_steps_lease",
        "ALTER TABLE flowstone.steps ALTER COLUMN attempt SET DEFAULT 1",
        "COMMENT ON COLUMN flowstone.steps.feeds IS 'other'",
        "DROP TRIGGER audit_append_only ON flowstone.audit",
        OTHER_FUNCTION,
        OTHER_INDEX,
    ],
)
def test_the_comparison_sees_what_alembic_overlooks(
    ledger: Ledger, database: str, change: str
) -> None:
    before = dump(database)
    with ledger.engine.begin() as conn:
        conn.execute(text(change))
    assert dump(database) != before


def test_the_code_names_the_last_revision() -> None:
    script = ScriptDirectory.from_config(migrate.config())
    assert script.get_heads() == [HEAD]
    names = [path.name for path in Path(script.versions).glob("*.py")]
    assert all(re.match(r"\d{4}_", name) for name in names)


def test_an_upgrade_says_what_was_there_before(empty: Ledger) -> None:
    assert migrate.upgrade(empty) is None
    assert migrate.upgrade(empty) == HEAD
    with empty.begin() as conn:
        assert revision(conn) == HEAD


def test_a_downgrade_leaves_nothing_and_an_upgrade_makes_it_all_again(
    empty: Ledger, empty_database: str
) -> None:
    migrate.upgrade(empty)
    first = dump(empty_database)
    settings = migrate.config()
    with empty.engine.begin() as conn:
        settings.attributes["connection"] = conn
        command.downgrade(settings, "base")
    with empty.engine.begin() as conn:
        left = conn.execute(
            text(
                "SELECT relname FROM pg_class WHERE relnamespace = 'flowstone'::regnamespace "
                "AND relname NOT LIKE 'alembic_version%' "
                "UNION SELECT proname FROM pg_proc WHERE pronamespace = 'flowstone'::regnamespace"
            )
        ).all()
        assert left == []
        assert revision(conn) is None
    assert migrate.upgrade(empty) is None
    assert dump(empty_database) == first


def test_an_upgrade_lets_one_of_several_steps_of_an_asset_go_on_and_runs_the_others_again(
    empty: Ledger,
) -> None:
    settings = migrate.config()
    with empty.engine.begin() as conn:
        settings.attributes["connection"] = conn
        command.upgrade(settings, "0001")
    with empty.engine.begin() as conn:
        conn.execute(
            text(
                """
                INSERT INTO flowstone.runs (id, driver, request, config, max_in_flight, actor)
                SELECT gen_random_uuid(), 'celery', '{}', '{}', 9, 'test'
                FROM generate_series(1, 3);
                INSERT INTO flowstone.steps (run_id, asset, partition, reason, queue, open_deps,
                    state, attempt, token, lease_until, canvas)
                SELECT id, 'a', '-', 'requested', 'assets', 0,
                    'running', 1, gen_random_uuid(), now(), gen_random_uuid()
                FROM flowstone.runs;
                INSERT INTO flowstone.attempts (step_id, number, token, worker)
                SELECT id, 1, token, 'w' FROM flowstone.steps
                """
            )
        )
    migrate.upgrade(empty)
    with empty.begin() as conn:
        found = conn.execute(
            text(
                "SELECT s.state, a.outcome FROM flowstone.steps s "
                "JOIN flowstone.attempts a ON a.step_id = s.id ORDER BY s.id"
            )
        ).all()
    assert found == [("running", None), ("pending", "lost"), ("pending", "lost")]


def test_processes_that_upgrade_at_once_all_succeed(empty_database: str) -> None:
    ledgers = [Ledger(empty_database) for _ in range(4)]
    with ThreadPoolExecutor(len(ledgers)) as pool:
        before = list(pool.map(migrate.upgrade, ledgers))
    assert sorted(before, key=str) == [HEAD, HEAD, HEAD, None]
    with ledgers[0].begin() as conn:
        assert revision(conn) == HEAD
    for ledger in ledgers:
        ledger.close()


def test_every_moment_in_the_ledger_has_a_zone(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        types = conn.execute(
            text(
                "SELECT DISTINCT data_type FROM information_schema.columns "
                "WHERE table_schema = 'flowstone' "
                "AND (data_type LIKE 'timestamp%' OR data_type IN ('date', 'time'))"
            )
        ).all()
    assert types == [("timestamp with time zone",)]


def test_a_downgrade_that_would_lose_values_is_refused(ledger: Ledger) -> None:
    with ledger.engine.begin() as conn:
        conn.execute(text("INSERT INTO flowstone.stored_values (location, data) VALUES ('a', '1')"))
    settings = migrate.config()
    conn = ledger.engine.connect()
    settings.attributes["connection"] = conn
    with pytest.raises(RuntimeError, match="values lie in rows or with other IO managers"):
        command.downgrade(settings, "0002")
    conn.close()
    with ledger.begin() as after:
        assert revision(after) == HEAD
