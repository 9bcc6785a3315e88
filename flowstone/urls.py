"""The addresses of servers hold passwords: of one that cannot be read, nothing is quoted."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from flowstone.errors import BadConfig

_ENCODED: Final = "with / # ? and @ of a password as %2F %23 %3F and %40"

NO_BROKER: Final = (
    "FLOWSTONE_BROKER_URL is no address of a broker; write redis://host:port/0 or "
    f"amqp://user:password@host//, {_ENCODED}"
)
NO_RESULTS: Final = (
    "FLOWSTONE_RESULT_URL is no address of a result backend; write redis://host:port/1 or "
    f"db+postgresql+psycopg://user:password@host/name, {_ENCODED}"
)


def readable(url: str, otherwise: str) -> str:
    """Return an address, or several with ';' between them; raise BadConfig that says `otherwise`.

    What has to be encoded in a password, and is not, would make a part of it the port, the path,
    or the host, which libraries quote in their errors.
    """
    if not all(map(_is_readable, url.split(";"))):
        raise BadConfig(otherwise)
    return url


def _is_readable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    # A path to a socket may hold any character; where there is a host, it stands after the last @.
    is_path = "://" in url and not parts.netloc
    return is_path or "@" not in url.replace(parts.netloc, "", 1)
