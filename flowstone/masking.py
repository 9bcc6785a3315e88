"""Secrets that a process has looked up, and texts and errors without them."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote, quote_plus, unquote, urlsplit

from flowstone.classification import error_text, error_type, is_retryable
from flowstone.errors import Cancelled, FlowStoneError, StepTimeout

MASK: Final = "***"

SHORTEST: Final = 4
"""Characters of the shortest text that is masked: what is shorter is found in any text."""


class Hidden(Exception):
    """An error whose text held a secret: this is what it and its causes said, without."""


class Secrets:
    """The secrets of this process. They are only ever added to, so threads share it unlocked."""

    def __init__(self) -> None:
        self._forms: set[str] = set()

    def add(self, secret: str) -> None:
        """Let `secret` be told to nobody from now on, however it is written."""
        self._forms.update(form for form in _forms(secret) if len(form) >= SHORTEST)

    def mask(self, text: str) -> str:
        """Return a text without the secrets."""
        # The longest come first, as they may hold shorter ones. A copy, as others may add some.
        for form in sorted(self._forms.copy(), key=len, reverse=True):
            text = text.replace(form, MASK)
        return text

    def without(self, error: BaseException) -> BaseException:
        """Return an error that says the same without the secrets, in its causes too.

        That is the error itself where it holds none.
        """
        message, trace = error_text(error), "".join(traceback.format_exception(error))
        if self.mask(message) == message and self.mask(trace) == trace:
            return error
        told = _like(error, self.mask(message))
        told.__cause__ = Hidden(f"\n{self.mask(trace)}")
        return told


def _like(error: BaseException, message: str) -> BaseException:
    """Return an error that leads to the same outcome of an attempt."""
    if isinstance(error, KeyboardInterrupt):
        return KeyboardInterrupt(message)
    kind = next((k for k in (Cancelled, StepTimeout) if isinstance(error, k)), FlowStoneError)
    told = kind(message, retryable=is_retryable(error))
    told.type = error_type(error)
    return told


def _forms(secret: str) -> Iterator[str]:
    """Yield what a secret may look like in the text of an error."""
    yield secret
    yield repr(secret)[1:-1]
    yield json.dumps(secret)[1:-1]
    yield quote(secret, safe="")
    yield quote_plus(secret)
    try:
        password = urlsplit(secret).password
    except ValueError:
        password = None
    if password:
        yield password
        yield unquote(password)
