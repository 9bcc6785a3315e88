"""GET /health: whether this server can do its work, for orchestrators."""

from __future__ import annotations

from typing import ClassVar, Final

from flowstone.errors import FlowStoneError
from flowstone.store.ledger import Ledger
from flowstone.web.handler import Handler

PATIENCE_SECONDS: Final = 3.0
"""How long the ledger may take to answer."""


class HealthHandler(Handler):
    """Says 200 where the ledger answers, and has the right schema; else 503."""

    what: ClassVar[str] = "health"

    async def get(self) -> None:
        """Ask the ledger."""
        said = await self.served.ask_for_health(self._ask)
        self.tell(200 if said is None else 503, status="ok" if said is None else said)

    head = get

    def _ask(self) -> str | None:
        ledger = Ledger(self.served.here.settings.database, patience=PATIENCE_SECONDS)
        try:
            with ledger.begin():
                return None
        except FlowStoneError as error:
            return error.type
        finally:
            ledger.close()
