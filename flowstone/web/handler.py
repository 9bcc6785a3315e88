"""What all answers have in common: blocking work in threads, plain errors, no token in the log."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, ClassVar, Final, TypeVar

from tornado.web import HTTPError, RequestHandler

from flowstone.errors import FlowStoneError, LedgerUnavailable, WrongMigration
from flowstone.log import get_logger
from flowstone.runtime import Runtime

log = get_logger("flowstone.web")

RETRY_SECONDS: Final = 5
"""After how long to try again what has failed because the ledger is away."""

T = TypeVar("T")


class Served:
    """What the handlers of one server share: where the work is done, and how much of it there is.

    Work is done in threads, as whatever asks the ledger blocks.
    """

    def __init__(self, here: Runtime, threads: int) -> None:
        self.here = here
        self.idle = asyncio.Event()
        """Set while nothing is being answered, and no thread is at work."""
        self.idle.set()
        self._open = set[RequestHandler]()
        self._work = set[asyncio.Future[Any]]()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="flowstone-web")
        # So that it answers while all others wait for a ledger that says nothing.
        self._pool_of_health = ThreadPoolExecutor(1, thread_name_prefix="flowstone-health")

    def begin(self, handler: RequestHandler) -> None:
        """Count a request as one that is being answered."""
        self._open.add(handler)
        self.idle.clear()

    def end(self, handler: RequestHandler) -> None:
        """Count it as answered, or as given up."""
        self._open.discard(handler)
        self._look()

    def _look(self) -> None:
        if not self._open and not self._work:
            self.idle.set()

    async def do(self, work: Callable[[], T]) -> T:
        """Do what blocks, and return its result."""
        return await self._do(self._pool, work)

    async def ask_for_health(self, work: Callable[[], T]) -> T:
        """Do what blocks, though nothing else may get on."""
        return await self._do(self._pool_of_health, work)

    async def _do(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        done = asyncio.get_running_loop().run_in_executor(pool, work)
        # It goes on where whoever has asked does not wait for the answer.
        self._work.add(done)
        done.add_done_callback(self._ended)
        return await done

    def _ended(self, done: asyncio.Future[Any]) -> None:
        self._work.discard(done)
        self._look()

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool_of_health.shutdown(wait=False, cancel_futures=True)


class Handler(RequestHandler):
    """Answers with JSON; a page overrides `tell_error`. Its headers let nobody keep an answer."""

    what: ClassVar[str] = "nothing"
    """What the log calls it: an address holds a token, and is not logged."""

    served: Served

    def initialize(self, served: Served) -> None:
        """Take what `Application` gives; tornado calls this for each request."""
        self.served = served

    def prepare(self) -> None:
        """Count the request as one that is being answered."""
        self.served.begin(self)

    def on_finish(self) -> None:
        """Count it as answered."""
        self.served.end(self)

    def on_connection_close(self) -> None:
        """Count it as given up: perhaps not even all of its body has come."""
        super().on_connection_close()
        self.served.end(self)

    def set_default_headers(self) -> None:
        """Set what all answers say."""
        self.set_header("Server", "FlowStone")
        self.set_header("Cache-Control", "no-store")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("X-Content-Type-Options", "nosniff")

    def tell(self, code: int, **values: Any) -> None:  # noqa: ANN401 - JSON values
        """Answer with an object."""
        self.set_status(code)
        self.finish({name: value for name, value in values.items() if value is not None})

    def tell_error(self, status: int, type: str, message: str) -> None:
        """Answer with an error."""
        self.tell(status, error=type, message=message)

    def status_of(self, error: FlowStoneError) -> int:
        """Return the status that stands for an error."""
        if isinstance(error, LedgerUnavailable | WrongMigration):
            return 503
        return 500

    def write_error(self, status_code: int, **kwargs: Any) -> None:  # noqa: ANN401 - tornado's
        """Answer with what went wrong, in one line; tornado calls this for each exception."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if not isinstance(error, FlowStoneError):
            # Tornado doubles each % of a message without arguments.
            is_ours = isinstance(error, HTTPError) and error.log_message
            said = error.log_message % error.args if is_ours else None
            self.tell_error(status_code, f"http_{status_code}", said or self._reason)
            return
        status = self.status_of(error)
        if status == 503:  # noqa: PLR2004
            self.set_header("Retry-After", str(RETRY_SECONDS))
            # What is away is nobody's business outside, and it names the server.
            self.tell_error(status, error.type, "the ledger is away; try again later")
        elif status == 500:  # noqa: PLR2004
            self.tell_error(status, "server_error", "this could not be answered; see the log")
        else:
            self.tell_error(status, error.type, error.message)

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Log what is not the fault of who asks; never the address, as tornado would."""
        if isinstance(value, HTTPError):
            return
        if not isinstance(value, FlowStoneError):
            log.error("failed", what=self.what, trace="".join(traceback.format_tb(tb)), error=typ)
        elif self.status_of(value) >= 500:  # noqa: PLR2004
            log.error("failed", what=self.what, error=value.message)


class Nothing(Handler):
    """Any address that there is not."""

    def prepare(self) -> None:
        """Say so, whatever the method."""
        super().prepare()
        raise HTTPError(404, "there is nothing at this address")


def log_request(handler: RequestHandler) -> None:
    """Log what was answered, without the address: whoever has a token may use it."""
    log.info(
        "answered",
        method=handler.request.method,
        what=getattr(handler, "what", ""),
        status=handler.get_status(),
        ms=round(1000 * handler.request.request_time()),
    )
