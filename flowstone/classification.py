"""Which errors are worth another try: one table of their classes, and the rules beside it.

The classes of other libraries stand there by name, so that none of them is imported. Of an
error, the nearest class that the table has decides: its own, then those that it is derived
from, in Python's order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from flowstone.errors import FlowStoneError, RetryAfter, is_celerys_limit


def _of(module: str, *, again: str = "", fails: str = "") -> dict[str, bool]:
    """Return the rows of one module: classes that are tried `again`, and those that fail."""
    rows = {f"{module}.{name}": True for name in again.split()}
    return rows | {f"{module}.{name}": False for name in fails.split()}


TABLE: Final[Mapping[str, bool]] = {
    # Python itself. An OSError is a fault of the world around, unless it names what is not there.
    **_of(
        "builtins",
        again="ConnectionError TimeoutError OSError",
        fails="FileNotFoundError FileExistsError IsADirectoryError NotADirectoryError "
        "PermissionError ArithmeticError AssertionError AttributeError ImportError LookupError "
        "MemoryError NameError NotImplementedError RecursionError SyntaxError TypeError ValueError",
    ),
    **_of("io", fails="UnsupportedOperation"),
    **_of("ssl", fails="SSLCertVerificationError"),
    **_of("http.client", again="BadStatusLine IncompleteRead"),
    **_of("ftplib", again="error_temp", fails="error_perm"),
    # Clients of HTTP. Where there was a response, its status decides: see http_status().
    **_of(
        "requests.exceptions",
        again="ConnectionError Timeout ChunkedEncodingError RetryError",
        fails="RequestException",
    ),
    **_of("httpx", again="TransportError", fails="UnsupportedProtocol LocalProtocolError"),
    **_of("urllib3.exceptions", again="TimeoutError ProtocolError ProxyError MaxRetryError"),
    **_of(
        "aiohttp.client_exceptions",
        again="ClientConnectionError ClientPayloadError",
        fails="ClientResponseError ClientConnectorCertificateError",
    ),
    # Databases. The errors of statements have other classes than those of the connection.
    **_of("psycopg", again="OperationalError", fails="Error"),
    **_of("psycopg2", again="OperationalError InterfaceError", fails="Error"),
    **_of(
        "asyncpg.exceptions",
        again="PostgresConnectionError CannotConnectNowError TooManyConnectionsError "
        "TransactionRollbackError",
    ),
    **_of("pymysql.err", again="OperationalError InterfaceError", fails="MySQLError"),
    **_of(
        "sqlalchemy.exc",
        again="OperationalError InterfaceError TimeoutError DisconnectionError",
        fails="SQLAlchemyError",
    ),
    **_of(
        "redis.exceptions",
        again="ConnectionError TimeoutError BusyLoadingError ClusterDownError TryAgainError",
        fails="RedisError AuthenticationError AuthorizationError",
    ),
    # Clouds.
    **_of(
        "botocore.exceptions",
        again="ConnectionError HTTPClientError IncompleteReadError",
        fails="ClientError NoCredentialsError PartialCredentialsError ParamValidationError",
    ),
    **_of("google.api_core.exceptions", again="ServerError TooManyRequests RetryError"),
    **_of("google.auth.exceptions", again="TransportError"),
}
"""Whether errors of a class are tried again, by the full name of the class."""

RETRYABLE_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""The HTTP statuses that may be another one the next time (RFC 9110, 6585, 8470)."""

_THROTTLED: Final = """
    Throttling ThrottlingException ThrottledException RequestThrottled RequestThrottledException
    TooManyRequestsException ProvisionedThroughputExceededException RequestLimitExceeded
    BandwidthLimitExceeded SlowDown PriorRequestNotComplete TransactionInProgressException
    EC2ThrottledException RequestTimeout RequestTimeoutException
"""
RETRYABLE_AWS: Final = frozenset(_THROTTLED.split())
"""What AWS says with status 400 and means as 429; the list is that of botocore's own retries."""

RETRYABLE_GRPC: Final = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"})
"""The codes of gRPC that may pass."""

_STATUS_IN_CODE: Final = frozenset(
    {"urllib.error.HTTPError", "google.api_core.exceptions.GoogleAPICallError"}
)
"""The classes whose `code` is a status; elsewhere it may be anything."""

MAX_RETRY_AFTER: Final = 86_400
"""Seconds; a server that names a later time in the header Retry-After is asked after a day."""


@dataclass(frozen=True)
class Classified:
    """What is to be known of an error, other than what it says."""

    type: str
    """The stable name under which the ledger stores it."""
    retryable: bool
    retry_after: float | None = None
    """The seconds after which it asks to be tried again, if it is retryable and says so."""


def classify(
    error: BaseException,
    *,
    on: Sequence[type[Exception]] = (),
    never: Sequence[type[Exception]] = (),
    unknown: bool = False,
    now: datetime | None = None,
) -> Classified:
    """Return what an error is.

    Errors of the classes `on` are retryable, those of the classes `never` are not; of an
    error, the nearest class counts, and `never` before `on`. Without any, the table decides,
    and `unknown` for what it does not have. Without `now`, a date when to try again is not
    heeded.
    """
    retryable = is_retryable(error, on=on, never=never, unknown=unknown)
    return Classified(error_type(error), retryable, retry_after(error, now) if retryable else None)


def is_retryable(
    error: BaseException,
    *,
    on: Sequence[type[Exception]] = (),
    never: Sequence[type[Exception]] = (),
    unknown: bool = False,
) -> bool:
    """Return whether another attempt may go better; see `classify`."""
    if not isinstance(error, Exception) or is_celerys_limit(error):
        # What ends a process is no error of the asset, whatever its policy says.
        return False
    for kind in type(error).__mro__:
        if kind in never or kind in on:
            return kind not in never
    said = _said(error)
    if said is None:
        said = _in_table(error)
    return unknown if said is None else said


def _said(error: Exception) -> bool | None:
    """Return what the error itself says, beyond its class."""
    if isinstance(error, FlowStoneError):
        return error.retryable
    if _aws_code(error) in RETRYABLE_AWS or _get(error, "connection_invalidated") is True:
        return True
    if "grpc.RpcError" in _names(error):
        return _grpc_code(error) in RETRYABLE_GRPC
    status = http_status(error)
    return None if status is None else status in RETRYABLE_STATUS


def _in_table(error: Exception) -> bool | None:
    return next((TABLE[name] for name in _names(error) if name in TABLE), None)


def _names(error: BaseException) -> list[str]:
    """Return the full names of the classes of an error, the nearest first."""
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__]


def http_status(error: BaseException) -> int | None:
    """Return the status of the HTTP error, 400 to 599, that an exception stands for."""
    response = _get(error, "response")
    has_code = not _STATUS_IN_CODE.isdisjoint(_names(error))
    found = (
        _get(response, "status_code"),  # requests, httpx
        _get(_get(response, "ResponseMetadata"), "HTTPStatusCode"),  # botocore
        _get(error, "status_code"),
        _get(error, "status"),  # aiohttp
        _get(error, "code") if has_code else None,
    )
    return next((int(s) for s in found if s is not None and _is_error_status(s)), None)


def _is_error_status(status: Any) -> bool:  # noqa: ANN401 - any value
    return isinstance(status, int) and 400 <= status <= 599  # noqa: PLR2004 - as RFC 9110 has it


def retry_after(error: BaseException, now: datetime | None) -> float | None:
    """Return the seconds, 0 or more, after which an error asks to be tried again, or None.

    That is what RetryAfter says, or the header Retry-After of an HTTP error (RFC 9110,
    10.2.3): seconds or a date, and at most MAX_RETRY_AFTER.
    """
    if isinstance(error, RetryAfter):
        return error.seconds
    if http_status(error) is None:
        return None
    response = _get(error, "response")
    for headers in (
        _get(response, "headers"),
        _get(_get(response, "ResponseMetadata"), "HTTPHeaders"),
        _get(error, "headers"),
    ):
        # Most mappings of headers ignore case; that of botocore has lower case only.
        for name in ("Retry-After", "retry-after"):
            if isinstance(value := _header(headers, name), str):
                return _seconds(value.strip(), now)
    return None


def _seconds(value: str, now: datetime | None) -> float | None:
    """Return the seconds of a Retry-After; None for one that cannot be read."""
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        return min(float(value), MAX_RETRY_AFTER)
    try:
        due = parsedate_to_datetime(value)
        zoned = due if due.tzinfo else due.replace(tzinfo=UTC)
        wait = math.nan if now is None else (zoned - now).total_seconds()
    except Exception:  # noqa: BLE001 - whatever a server writes there, and the parser stumbles over
        return None
    return None if math.isnan(wait) else min(max(wait, 0.0), MAX_RETRY_AFTER)


def _aws_code(error: Exception) -> object:
    code = _get(_get(_get(error, "response"), "Error"), "Code")
    return code if isinstance(code, str) else None


def _grpc_code(error: Exception) -> object:
    try:
        return error.code().name  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - a class of the user's may have no such method
        return None


def _get(thing: object, name: str) -> Any:  # noqa: ANN401 - any value
    """Return an item of a mapping or an attribute of anything else; None if there is none."""
    try:
        return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)
    except Exception:  # noqa: BLE001 - properties of errors raise, where there is no response
        return None


def _header(headers: Any, name: str) -> object:  # noqa: ANN401 - not all are a Mapping
    try:
        return headers.get(name)
    except Exception:  # noqa: BLE001 - None, or something that is no collection of headers
        return None


def error_type(error: BaseException) -> str:
    """Return the stable name under which the ledger stores an error."""
    return error.type if isinstance(error, FlowStoneError) else type(error).__name__


def error_text(error: BaseException) -> str:
    """Return what an error says."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - the user's own __str__ must not hide the failure
        return f"<str() of this {type(error).__name__} failed>"
