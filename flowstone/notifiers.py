"""How somebody is told: by a webhook with a signature, or by any service that Apprise knows.

An address may hold a password or be one itself, so it is quoted nowhere: not in an error, and not
in what the libraries write to their logs meanwhile.
"""

from __future__ import annotations

import base64
import json
import logging
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import InvalidURL
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from flowstone.announcement import Announcement
from flowstone.tokens import HEADER, sign

ID_HEADER: Final = "FlowStone-Id"
"""The header by which a webhook tells what it has got twice."""

TIMEOUT_SECONDS = 10.0
"""How long a webhook, or a service, may take to answer: all of it, and not each part."""

_CHATTY: Final = ("apprise", "urllib3.connectionpool")
"""Loggers that write addresses, or parts of them."""


class NotTold(Exception):
    """Somebody could not be told; the text says why, without the address."""

    def __init__(self, why: str, *, is_silent: bool = False) -> None:
        super().__init__(why)
        self.is_silent = is_silent
        """Whether there was no answer at all, so that it takes its time to ask again."""


class _Telling(threading.Thread):
    """Tells one, in a thread: no timeout of a library bounds all that it does."""

    def __init__(self, address: str, said: Announcement, secret: bytes | None) -> None:
        super().__init__(name="flowstone-tell", daemon=True)
        self._task = (address, said, secret)
        self.error: NotTold | None = None

    def run(self) -> None:
        """Tell, and keep why that was not possible."""
        address, said, secret = self._task
        try:
            if address.lower().startswith(("http://", "https://")):
                _post(address, said, secret)
            else:
                _hand_to_apprise(address, said)
        except NotTold as error:
            self.error = error
        except (InvalidURL, ValueError):
            self.error = NotTold("its address makes no sense")
        except Exception as error:  # noqa: BLE001 - its text may quote the address
            self.error = NotTold(type(error).__name__)


_left: Final[dict[str, _Telling]] = {}
"""The thread that was left behind last for an address: of each address there is one at most."""


def tell(address: str, said: Announcement, secret: bytes | None) -> None:
    """Tell the one at an address; raise NotTold. A webhook gets a signature with the secret.

    Who takes longer than the timeout, such as one that answers byte by byte, is left behind.
    """
    before = _left.get(address)
    if before is not None and before.is_alive():
        raise NotTold("it has still not answered what it was told before", is_silent=True)
    _left.pop(address, None)
    telling = _Telling(address, said, secret)
    telling.start()
    # A moment longer, so that the thread of one who says nothing has ended by then.
    telling.join(1.1 * TIMEOUT_SECONDS)
    if telling.is_alive():
        _left[address] = telling
        raise NotTold(_why(TimeoutError()), is_silent=True)
    if telling.error is not None:
        raise telling.error


class _NoRedirect(HTTPRedirectHandler):
    """Where a webhook leads elsewhere, what is signed for it does not go there."""

    def redirect_request(self, *_: Any, **__: Any) -> None:  # noqa: ANN401 - as it is called
        return None


def _post(address: str, said: Announcement, secret: bytes | None) -> None:
    body = json.dumps(said.payload).encode()
    headers = {"Content-Type": "application/json", ID_HEADER: str(said.id)}
    if secret is not None:
        headers[HEADER] = sign(secret, time.time(), body)
    url, login = _without_login(address)
    if not urlsplit(url).hostname:
        raise NotTold("its address makes no sense")
    if login is not None:
        headers["Authorization"] = f"Basic {login}"
    request = Request(url, body, headers, method="POST")  # noqa: S310 - it is http or https
    try:
        with build_opener(_NoRedirect).open(request, timeout=TIMEOUT_SECONDS):
            return
    except HTTPError as error:
        error.close()
        raise NotTold(f"it answers HTTP {error.code}") from None
    except URLError as error:
        raise NotTold(_why(error.reason), is_silent=True) from None
    except OSError as error:
        raise NotTold(_why(error), is_silent=True) from None


def _without_login(address: str) -> tuple[str, str | None]:
    """Return an address as urllib takes it, and what it says of user and password, in base64."""
    parts = urlsplit(address)
    user, found, host = parts.netloc.rpartition("@")
    if not found:
        return address, None
    login = base64.b64encode(unquote(user).encode()).decode()
    return parts._replace(netloc=host).geturl(), login


def _why(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"it has not answered within {TIMEOUT_SECONDS:g} s"
    # What these say may quote the address.
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate is not accepted"
    if isinstance(error, ssl.SSLError):
        return "it does not speak TLS as it should; is it http://?"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


def _hand_to_apprise(address: str, said: Announcement) -> None:
    try:
        from apprise import Apprise, NotifyFormat  # noqa: PLC0415 - an extra, and slow to import
    except ImportError:
        raise NotTold("it needs Apprise: pip install 'flowstone[notify]'") from None
    with _unheard():
        service = Apprise()
        if not service.add(address):
            raise NotTold("its address is none that Apprise knows")
        # As text, so that no service takes what an asset says for its own markup.
        if not service.notify(said.text, title=said.title, body_format=NotifyFormat.TEXT):
            raise NotTold("Apprise could not reach it, or was refused", is_silent=True)


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep what libraries say of an address from all logs."""
    loggers = [logging.getLogger(name) for name in _CHATTY]

    # One for each time, so that to take it away leaves that of a thread that was left behind.
    def nothing(_: logging.LogRecord) -> bool:
        return False

    for logger in loggers:
        logger.addFilter(nothing)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(nothing)
