"""`flowstone.prune`: delete from the ledger what the settings let go; sent by beat once a day."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowstone import prune as retention
from flowstone import runtime
from flowstone.messages import PRUNE, Message, parse
from tasks.app import app


@app.task(name=PRUNE)
def prune(*args: Any, **kwargs: Any) -> Mapping[str, int]:  # noqa: ANN401 - parsed below
    """Prune for a while; what is left is left to the next day."""
    parse(PRUNE, Message, args, kwargs)
    here = runtime.current()
    # The task must end by itself before it is asked to.
    seconds = min(retention.PRUNE_SECONDS, here.settings.soft_time_limit / 2)
    return retention.prune(here, actor="beat", seconds=seconds).rows
