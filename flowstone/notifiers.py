"""How somebody is told: by a webhook with a signature, or by any service that Apprise knows.

An address may hold a password or be one itself, so it is quoted nowhere: not in an error, and not
in what the libraries write to their logs meanwhile.
"""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from flowstone.announcement import Announcement
from flowstone.errors import is_celerys_limit
from flowstone.tokens import HEADER, sign

ID_HEADER: Final = "FlowStone-Id"
"""The header by which a webhook tells what it has got twice."""

TIMEOUT_SECONDS: Final = 10.0
"""How long a webhook may take to answer."""

_CHATTY: Final = ("apprise", "urllib3.connectionpool")
"""Loggers that write addresses, or parts of them."""


class NotTold(Exception):
    """Somebody could not be told; the text says why, without the address."""

    def __init__(self, why: str, *, is_silent: bool = False) -> None:
        super().__init__(why)
        self.is_silent = is_silent
        """Whether there was no answer at all, so that it takes its time to ask again."""


def tell(address: str, said: Announcement, secret: bytes | None) -> None:
    """Tell the one at an address; raise NotTold. A webhook gets a signature with the secret."""
    try:
        if address.startswith(("http://", "https://")):
            _post(address, said, secret)
        else:
            _hand_to_apprise(address, said)
    except NotTold:
        raise
    except Exception as error:
        if is_celerys_limit(error):
            raise
        # Its text may quote the address.
        raise NotTold(type(error).__name__) from None


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
    for logger in loggers:
        logger.addFilter(_nothing)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_nothing)


def _nothing(_: logging.LogRecord) -> bool:
    return False
