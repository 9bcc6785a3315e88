"""At its start, a worker or beat is refused where the schema is not the one of its version.

Else each task would find that out by itself, and fail. Where the ledger is away, the process
starts all the same: its tasks are tried again until it is back, and it may be back before
anything else would have started this process again.
"""

from __future__ import annotations

import sys
from typing import Final

from flowstone.errors import FlowStoneError, LedgerUnavailable, WrongMigration
from flowstone.log import get_logger
from flowstone.settings import load_settings
from flowstone.store.ledger import Ledger

log = get_logger("flowstone.worker")

PATIENCE_SECONDS: Final = 5.0
"""How long the ledger may take to answer; then it counts as away."""

BAD_INPUT: Final = 2
WRONG_MIGRATION: Final = 3
"""The exit codes are those of the command line."""


def check(**_: object) -> None:
    """End this process with one line that says what to do, unless the schema is right."""
    try:
        ledger = Ledger(load_settings().database, patience=PATIENCE_SECONDS)
        try:
            with ledger.begin():
                return
        finally:
            ledger.close()
    except LedgerUnavailable as error:
        log.warning("started without the ledger", error=error.message)
    except FlowStoneError as error:
        # Not sys.exit(text): its exit code would be that of a run which has failed.
        sys.stderr.write(f"error: {error.message}\n")
        sys.exit(WRONG_MIGRATION if isinstance(error, WrongMigration) else BAD_INPUT)
