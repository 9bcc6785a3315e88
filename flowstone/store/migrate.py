"""Migrations: bring a database to the schema that this version needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from flowstone.errors import WrongMigration
from flowstone.store.ledger import HEAD, Ledger, first_line, revision, translated
from flowstone.store.tables import SCHEMA

# To import alembic takes a fifth of the time in which a command starts, and few migrate anything.
if TYPE_CHECKING:
    from alembic.config import Config


def config() -> Config:
    """Return the configuration of alembic, wherever the package lies."""
    from alembic.config import Config  # noqa: PLC0415 - see above

    package = Path(__file__).resolve().parents[1]
    installed, checkout = package / "migrations", package.parent / "migrations"
    made = Config()
    made.set_main_option(
        "script_location", str(installed if installed.exists() else checkout).replace("%", "%%")
    )
    return made


def upgrade(ledger: Ledger) -> str | None:
    """Upgrade the schema to HEAD and return the revision it had; None for an empty database.

    Several processes may try at once: an advisory lock lets one of them do it.
    Raises WrongMigration for a database that is newer than this version.
    """
    settings = config()
    with translated(ledger.engine), ledger.engine.begin() as conn:
        # Another process that migrates, or a long transaction on a table, must not be waited
        # for without end: every query of the application would queue up behind the lock.
        conn.execute(text("SET LOCAL lock_timeout = '30s'"))
        conn.execute(text("SELECT pg_advisory_xact_lock(hashtext('flowstone.migrate'))"))
        before = revision(conn)
        if before is not None and before > HEAD:
            raise WrongMigration(
                f"the ledger is at revision {before}, newer than {HEAD} of this version; "
                "upgrade the package flowstone"
            )
        settings.attributes["connection"] = conn
        _run(settings)
    return before


def _run(settings: Config) -> None:
    from alembic import command  # noqa: PLC0415 - see above

    try:
        command.upgrade(settings, "head")
    except ProgrammingError as error:
        raise WrongMigration(
            f"the ledger cannot be migrated: {first_line(error)}; the role of "
            f"FLOWSTONE_DATABASE_URL needs the right to create the schema {SCHEMA}"
        ) from error
