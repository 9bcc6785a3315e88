"""POST /signals/TOKEN: a signal from outside, signed by who sends it."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any, ClassVar, Final

from tornado.web import HTTPError, stream_request_body

from flowstone.errors import (
    BadSignal,
    BadToken,
    FlowStoneError,
    SignalReplayed,
    UnknownSignal,
)
from flowstone.payload import MAX_PAYLOAD
from flowstone.signals import signal
from flowstone.tokens import HEADER, UNSHARED, check_signature
from flowstone.web.handler import Handler

LATER_SECONDS: Final = 30
"""After how long to send a signal again that nobody waits for as yet."""

CHANNEL: Final = "http"


@stream_request_body
class SignalHandler(Handler):
    """Takes a signal: JSON, or nothing, with the header FlowStone-Signature."""

    what: ClassVar[str] = "signal"

    def prepare(self) -> None:
        """Refuse a body that is too large before it is read, where its length is told."""
        super().prepare()
        self._body = bytearray()
        told = self.request.headers.get("Content-Length", "0")
        if told.isdecimal() and int(told) > 16 * MAX_PAYLOAD:
            raise HTTPError(413, _TOO_LARGE)

    def data_received(self, chunk: bytes) -> None:
        """Keep what comes, but no more than shows that it is too much."""
        if len(self._body) <= MAX_PAYLOAD:
            self._body += chunk

    async def post(self, token: str) -> None:
        """Record the signal, and say what it does."""
        body = bytes(self._body)
        if len(body) > MAX_PAYLOAD:
            raise HTTPError(413, _TOO_LARGE)
        secrets = self.served.here.settings.shared_secrets
        if not secrets:
            raise HTTPError(503, UNSHARED)
        check_signature(secrets, self.request.headers.get(HEADER), time.time(), token, body)
        payload = self._payload(body)
        receipt = await self.served.do(partial(signal, token, payload, by=CHANNEL, channel=CHANNEL))
        self.tell(
            202,
            signal="kept" if receipt.is_early else "received",
            step=receipt.step,
            run_id=receipt.run_id,
        )

    def _payload(self, body: bytes) -> Any:  # noqa: ANN401 - any JSON value
        if not body:
            return None
        kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise HTTPError(415, "the payload is JSON; send it as Content-Type: application/json")
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise HTTPError(400, f"the payload is no JSON: {_line(error)}") from error

    def status_of(self, error: FlowStoneError) -> int:
        """Return the status that stands for an error; some need a header, too."""
        match error:
            case BadToken():
                self.set_header("WWW-Authenticate", HEADER)
                return 401
            case SignalReplayed():
                return 409
            case UnknownSignal():
                if error.retryable:
                    self.set_header("Retry-After", str(LATER_SECONDS))
                return 404
            case BadSignal():
                return 422
        return super().status_of(error)


_TOO_LARGE: Final = f"a payload has at most {MAX_PAYLOAD:,} bytes"


def _line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
