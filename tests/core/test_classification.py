"""Which errors are worth another try: the table, HTTP statuses, and what servers ask for."""

from __future__ import annotations

import email.message
import io
import json
import socket
import sqlite3
import ssl
import subprocess
import sys
import urllib.error
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import aiohttp
import botocore.exceptions
import psycopg
import pytest
import redis
import requests
import sqlalchemy.exc
import urllib3
from billiard.exceptions import SoftTimeLimitExceeded
from hypothesis import assume, given
from hypothesis import strategies as st

from flowstone.classification import (
    MAX_RETRY_AFTER,
    RETRYABLE_STATUS,
    TABLE,
    classify,
    error_type,
    http_status,
    is_retryable,
    retry_after,
)
from flowstone.errors import (
    BadPartition,
    Cancelled,
    DefinitionError,
    FlowStoneError,
    LedgerUnavailable,
    OutputError,
    ResourceUnavailable,
    RetryAfter,
    UnknownAsset,
)

NOW = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)


def foreign(name: str, *parents: type[Exception], **values: Any) -> Exception:
    """Return an error of a library that is not installed here, by the full name of its class."""
    module, _, short = name.rpartition(".")
    kind = type(short, parents or (Exception,), {"__module__": module, **values})
    error: Exception = kind("it says so")
    return error


def google(status: int) -> Exception:
    parent = type(foreign("google.api_core.exceptions.GoogleAPICallError"))
    return foreign("google.api_core.exceptions.Any", parent, code=status)


def grpc(code: str) -> Exception:
    parent = type(foreign("grpc.RpcError"))
    return foreign("grpc._channel._X", parent, code=lambda _: SimpleNamespace(name=code))


def aws(status: int, code: str = "Any", headers: dict[str, str] | None = None) -> Exception:
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": headers or {}}
    said = {"Error": {"Code": code}, "ResponseMetadata": metadata}
    error: Exception = botocore.exceptions.ClientError(said, "GetObject")
    return error


def lost_connection() -> Exception:
    error = sqlalchemy.exc.DBAPIError("select 1", {}, Exception("gone"))
    error.connection_invalidated = True
    return error


def because(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def sqlite(name: str) -> Exception:
    error = sqlite3.OperationalError("it says so")
    error.sqlite_errorname = name
    return error


def refused_by_sqlite(sql: str) -> Exception:
    """What SQLAlchemy makes of an error of SQLite, whatever that is about."""
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as conn, pytest.raises(sqlalchemy.exc.OperationalError) as caught:
        conn.execute(sqlalchemy.text(sql))
    return caught.value


def mysql(code: int) -> Exception:
    error = foreign("pymysql.err.OperationalError", type(foreign("pymysql.err.MySQLError")))
    error.args = (code, "it says so")
    return error


def wrapped(error: Exception) -> Exception:
    return sqlalchemy.exc.OperationalError("select 1", {}, error)


CERTIFICATE = ssl.SSLCertVerificationError(1, "self-signed certificate")
POOL = urllib3.HTTPConnectionPool("h")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError(),
        ConnectionResetError(),
        BrokenPipeError(),
        TimeoutError(),
        socket.gaierror(),
        OSError(28, "no space left"),
        ssl.SSLEOFError(),
        urllib.error.URLError("unreachable"),
        LedgerUnavailable("away"),
        ResourceUnavailable("away"),
        FlowStoneError("mine", retryable=True),
        RetryAfter(1),
        requests.ConnectionError(),
        requests.ReadTimeout(),
        requests.exceptions.ChunkedEncodingError(),
        urllib3.exceptions.ReadTimeoutError(urllib3.HTTPConnectionPool("h"), "/", "slow"),
        urllib3.exceptions.ProtocolError(),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError(),
        psycopg.OperationalError(),
        psycopg.errors.DeadlockDetected(),
        sqlalchemy.exc.OperationalError("select 1", {}, Exception("gone")),
        sqlalchemy.exc.InterfaceError("select 1", {}, Exception("gone")),
        sqlalchemy.exc.TimeoutError("the pool is empty"),
        lost_connection(),
        redis.ConnectionError(),
        redis.TimeoutError(),
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://h"),
        botocore.exceptions.ConnectTimeoutError(endpoint_url="http://h"),
        botocore.exceptions.ReadTimeoutError(endpoint_url="http://h"),
        aws(503),
        aws(400, "ThrottlingException"),
        foreign("httpx.ConnectError", type(foreign("httpx.TransportError"))),
        foreign("pymysql.err.OperationalError"),
        foreign("asyncpg.exceptions.PostgresConnectionError"),
        google(503),
        google(429),
        grpc("UNAVAILABLE"),
        urllib3.exceptions.MaxRetryError(POOL, "/", urllib3.exceptions.ProtocolError()),
        because(ConnectionError(), TimeoutError()),
        sqlite("SQLITE_BUSY"),
        sqlite("SQLITE_BUSY_SNAPSHOT"),
        wrapped(sqlite("SQLITE_LOCKED_SHAREDCACHE")),
        wrapped(psycopg.errors.DeadlockDetected()),
        mysql(2006),
        mysql(1213),
        wrapped(mysql(1205)),
    ],
    ids=repr,
)
def test_faults_of_the_world_around_are_tried_again(error: Exception) -> None:
    # Whatever is said of errors that nobody knows.
    assert is_retryable(error)
    assert is_retryable(error, unknown=True)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(),
        PermissionError(),
        IsADirectoryError(),
        NotADirectoryError(),
        FileExistsError(),
        ValueError(),
        TypeError(),
        KeyError("a"),
        IndexError(),
        AttributeError(),
        ZeroDivisionError(),
        AssertionError(),
        ModuleNotFoundError(),
        MemoryError(),
        NotImplementedError(),
        UnicodeDecodeError("utf-8", b"", 0, 1, "bad"),
        json.JSONDecodeError("bad", "", 0),
        io.UnsupportedOperation(),
        ssl.SSLCertVerificationError(),
        CERTIFICATE,
        urllib.error.URLError(CERTIFICATE),
        requests.exceptions.SSLError(),
        urllib3.exceptions.SSLError(),
        urllib3.exceptions.MaxRetryError(POOL, "/", urllib3.exceptions.SSLError(CERTIFICATE)),
        aiohttp.ClientConnectorCertificateError(None, CERTIFICATE),  # type: ignore[arg-type]
        botocore.exceptions.SSLError(endpoint_url="https://h", error=CERTIFICATE),
        because(
            foreign("httpx.ConnectError", type(foreign("httpx.TransportError"))),
            because(foreign("httpcore.ConnectError"), CERTIFICATE),
        ),
        sqlite("SQLITE_ERROR"),
        sqlite3.IntegrityError(),
        refused_by_sqlite("SELECT * FROM none_such"),
        refused_by_sqlite("SELCT 1"),
        wrapped(sqlite3.OperationalError()),
        mysql(1054),
        wrapped(mysql(1045)),
        SystemExit(1),
        KeyboardInterrupt(),
        SoftTimeLimitExceeded(),
        UnknownAsset("a"),
        BadPartition("a"),
        OutputError("a"),
        Cancelled("a"),
        LedgerUnavailable("away", retryable=False),
        requests.exceptions.InvalidURL(),
        requests.TooManyRedirects(),
        urllib3.exceptions.LocationParseError("x"),
        aiohttp.InvalidURL("x"),
        psycopg.errors.UniqueViolation(),
        sqlalchemy.exc.IntegrityError("insert", {}, Exception("twice")),
        sqlalchemy.exc.ProgrammingError("selct 1", {}, Exception("syntax")),
        redis.ResponseError(),
        redis.AuthenticationError(),
        botocore.exceptions.NoCredentialsError(),
        aws(403),
        aws(400, "ValidationException"),
        google(404),
        grpc("INVALID_ARGUMENT"),
        foreign("httpx.UnsupportedProtocol", type(foreign("httpx.TransportError"))),
        foreign("asyncpg.exceptions.UniqueViolationError", ValueError),
    ],
    ids=repr,
)
def test_what_says_the_same_each_time_is_not_tried_again(error: BaseException) -> None:
    # Whatever is said of errors that nobody knows.
    assert not is_retryable(error)
    assert not is_retryable(error, unknown=True)


@pytest.mark.parametrize(
    "error", [RuntimeError(), Exception(), EOFError(), foreign("my.Own")], ids=repr
)
def test_of_what_nobody_knows_the_setting_decides(error: Exception) -> None:
    assert not is_retryable(error)
    assert is_retryable(error, unknown=True)


def test_the_table_imports_no_library() -> None:
    libraries = {name.partition(".")[0] for name in TABLE} - sys.stdlib_module_names
    script = f"import sys, flowstone.classification; print({libraries} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_each_row_of_a_library_that_is_installed_names_a_class_of_it() -> None:
    here = {"aiohttp", "botocore", "psycopg", "redis", "requests", "sqlalchemy", "urllib3"}
    for name in TABLE:
        module, _, kind = name.rpartition(".")
        if module.partition(".")[0] in here | sys.stdlib_module_names:
            found = getattr(__import__(module, fromlist=[kind]), kind)
            assert f"{found.__module__}.{found.__qualname__}" == name
            assert issubclass(found, Exception)


# HTTP: each library has the status and the headers of a response in another place.


def of_requests(status: int, headers: dict[str, str]) -> Exception:
    response = requests.Response()
    response.status_code = status
    response.headers.update(headers)
    return requests.HTTPError(response=response)


def of_urllib(status: int, headers: dict[str, str]) -> Exception:
    message = email.message.Message()
    for name, value in headers.items():
        message[name] = value
    return urllib.error.HTTPError("http://h", status, "said", message, None)


def of_aiohttp(status: int, headers: dict[str, str]) -> Exception:
    from multidict import CIMultiDict  # noqa: PLC0415

    info: Any = SimpleNamespace(real_url="http://h")
    return aiohttp.ClientResponseError(info, (), status=status, headers=CIMultiDict(headers))


def of_botocore(status: int, headers: dict[str, str]) -> Exception:
    return aws(status, headers={name.lower(): value for name, value in headers.items()})


def of_httpx(status: int, headers: dict[str, str]) -> Exception:
    error = foreign("httpx.HTTPStatusError")
    error.response = SimpleNamespace(status_code=status, headers=headers)  # type: ignore[attr-defined]
    return error


Make = Callable[[int, dict[str, str]], Exception]
LIBRARIES: list[Make] = [of_requests, of_urllib, of_aiohttp, of_botocore, of_httpx]


@pytest.mark.parametrize("make", LIBRARIES)
@given(status=st.integers(400, 599), unknown=st.booleans())
def test_the_status_of_an_http_error_decides(make: Make, status: int, unknown: bool) -> None:
    error = make(status, {})
    assert http_status(error) == status
    assert is_retryable(error, unknown=unknown) == (status in RETRYABLE_STATUS)
    assert retry_after(error, NOW) is None


def test_the_statuses_that_may_pass_are_these() -> None:
    assert set(RETRYABLE_STATUS) == {408, 425, 429, 500, 502, 503, 504}


@pytest.mark.parametrize("status", [None, True, 200, 302, 600, "503", 503.0])
def test_what_is_no_status_of_an_error_says_nothing(status: Any) -> None:
    error = foreign("my.Own")
    error.status = status  # type: ignore[attr-defined]
    assert http_status(error) is None
    error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    assert http_status(error) is None
    # The code of SystemExit and of many others is none.
    assert http_status(foreign("my.Own", code=503)) is None


@pytest.mark.parametrize("make", LIBRARIES)
@given(seconds=st.integers(0, 200_000), at=st.datetimes(datetime(2025, 1, 1), datetime(2027, 1, 1)))  # noqa: DTZ001
def test_retry_after_is_heeded_in_both_its_forms(make: Make, seconds: int, at: datetime) -> None:
    said = retry_after(make(429, {"Retry-After": str(seconds)}), NOW)
    assert said == min(seconds, MAX_RETRY_AFTER)
    due = at.replace(microsecond=0, tzinfo=UTC)
    waits = retry_after(make(503, {"Retry-After": format_datetime(due, usegmt=True)}), NOW)
    assert waits == min(max((due - NOW).total_seconds(), 0), MAX_RETRY_AFTER)


@pytest.mark.parametrize(
    "value",
    [
        "Tue, 03 Feb 2026 04:05:36 GMT",
        "Tuesday, 03-Feb-26 04:05:36 GMT",
        "Tue Feb  3 04:05:36 2026",
        " 30 ",
        "30.0",
    ],
)
def test_all_forms_of_rfc_9110_are_read(value: str) -> None:
    assert retry_after(of_httpx(503, {"retry-after": value}), NOW) == 30


@given(st.text(max_size=40) | st.from_regex(r"-?[0-9]{1,400}(\.[0-9]+)?", fullmatch=True))
def test_whatever_a_server_says_the_wait_is_sane(value: str) -> None:
    said = retry_after(of_httpx(503, {"Retry-After": value}), NOW)
    assert said is None or 0 <= said <= MAX_RETRY_AFTER


def test_a_header_is_heeded_only_of_an_error_that_is_tried_again() -> None:
    gone = of_requests(404, {"Retry-After": "30"})
    assert classify(gone, now=NOW).retry_after is None
    assert classify(gone, on=(requests.HTTPError,), now=NOW).retry_after == 30
    assert classify(of_requests(503, {"Retry-After": "30"}), now=NOW).retry_after == 30
    # A date says nothing to whoever does not know the time.
    dated = of_requests(503, {"Retry-After": "Tue, 03 Feb 2026 04:05:36 GMT"})
    assert (classify(dated).retry_after, classify(dated, now=NOW).retry_after) == (None, 30)


class Torn(Exception):
    """An error whose properties raise, as those of clients do where there was no response."""

    @property
    def response(self) -> Any:
        raise RuntimeError("there is no response")

    status = status_code = headers = connection_invalidated = response


def test_an_error_that_cannot_be_looked_at_is_unknown() -> None:
    assert not is_retryable(Torn())
    assert is_retryable(Torn(), unknown=True)


# The rules of an asset, which come before the table.

BUILTINS = [
    Exception, OSError, ConnectionError, ConnectionResetError, TimeoutError, FileNotFoundError,
    ValueError, UnicodeError, LookupError, KeyError, RuntimeError, NotImplementedError,
]  # fmt: skip
KINDS = st.lists(st.sampled_from(BUILTINS), max_size=4).map(tuple)


@given(st.sampled_from(BUILTINS), KINDS, KINDS, st.booleans())
def test_the_nearest_class_decides_and_never_wins_over_on(
    kind: type[Exception],
    on: tuple[type[Exception], ...],
    never: tuple[type[Exception], ...],
    unknown: bool,
) -> None:
    error = kind("x")
    said = is_retryable(error, on=on, never=never, unknown=unknown)
    named = [one for one in kind.__mro__ if one in on + never]
    if not named:
        assert said == is_retryable(error, unknown=unknown)
    else:
        assert said == (named[0] not in never)


@given(st.sampled_from(BUILTINS), KINDS, KINDS)
def test_what_ends_a_process_is_not_changed_by_any_rule(
    kind: type[Exception], on: tuple[type[Exception], ...], never: tuple[type[Exception], ...]
) -> None:
    for error in (SystemExit(1), KeyboardInterrupt(), SoftTimeLimitExceeded()):
        assert not is_retryable(error, on=(*on, kind, Exception), never=never, unknown=True)


def test_rules_hold_for_http_errors_and_for_those_of_flowstone() -> None:
    assert is_retryable(of_requests(404, {}), on=(requests.HTTPError,))
    assert not is_retryable(of_requests(503, {}), never=(requests.HTTPError,))
    assert not is_retryable(ResourceUnavailable("away"), never=(ResourceUnavailable,))


# RetryAfter.


@given(st.floats(0, 365 * 86_400) | st.integers(0, 365 * 86_400))
def test_an_asset_can_say_when_it_is_to_be_tried_again(seconds: float) -> None:
    kind = classify(RetryAfter(seconds))
    assert (kind.type, kind.retryable, kind.retry_after) == ("retry_after", True, seconds)


@pytest.mark.parametrize(
    "seconds", [-1, float("nan"), float("inf"), 1e9, "30", None, True, timedelta(seconds=3)]
)
def test_a_bad_number_is_refused(seconds: Any) -> None:
    with pytest.raises(DefinitionError, match=r"RetryAfter\(.*\): needs a number of seconds"):
        RetryAfter(seconds)


def test_retry_after_says_why_and_survives_the_way_between_two_processes() -> None:
    import pickle  # noqa: PLC0415

    error = RetryAfter(2.5, "the report is not ready", original=ValueError("x"))
    back = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (str(back), back.seconds, type(back.original)) == (
        "the report is not ready", 2.5, ValueError,
    )  # fmt: skip
    assert str(RetryAfter(30)) == "asks to be tried again after 30 s"


def test_the_ledger_names_errors_stably() -> None:
    assert error_type(UnknownAsset("a")) == "unknown_asset"
    assert error_type(ValueError("a")) == "ValueError"


@given(st.sampled_from(BUILTINS), st.booleans())
def test_an_error_of_the_users_own_is_what_it_is_derived_from(
    kind: type[Exception], unknown: bool
) -> None:
    assume(kind is not UnicodeError)
    own = type("Own", (kind,), {})
    assert is_retryable(own(), unknown=unknown) == is_retryable(kind(), unknown=unknown)
