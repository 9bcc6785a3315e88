"""Let a worker outlive a broker that was away.

When Celery 5.7 has lost its connection it takes the old one apart. Whatever is still to be done
over that, such as to acknowledge a task which ends later, makes kombu look for the address that
is gone; and Celery takes the AttributeError for the end of the worker. With the error of a closed
connection it goes on: it knows that one, and what was not acknowledged is delivered again, which
the claim in the ledger refuses.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from kombu.transport.redis import Channel
from redis.exceptions import ConnectionError as Disconnected


def install() -> None:
    """Have the channels of this process say that they are closed; `app` does so once."""
    # The one place at which all paths meet.
    look_up = Channel._connparams  # noqa: SLF001

    @wraps(look_up)
    def look_up_or_say(self: Channel, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if self.connection.client is None:
            raise Disconnected("the connection to the broker is closed")
        return look_up(self, *args, **kwargs)

    setattr(Channel, "_connparams", look_up_or_say)  # noqa: B010 - mypy knows it as a method
