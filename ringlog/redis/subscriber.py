"""Reading a topic's frames from its pub/sub channel: the latest states, ten times a second, nothing kept for later."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import redis

from ringlog.redis.connection import AsyncConnection, Connection, translated
from ringlog.redis.events import Frame, frame_of
from ringlog.redis.keys import Topic


class _Frames:
    """Decodes frames and counts those that were missed (a slow reader, a lost connection) or were no frames."""

    def __init__(self) -> None:
        self.missed = self.broken = 0
        self._next_seq: dict[int, int] = {}

    def take(self, reply: dict[str, Any] | None) -> Frame | None:
        if reply is None or reply["type"] != "message":
            return None
        try:
            frame = frame_of(reply["data"])
        except msgspec.DecodeError:
            self.broken += 1
            return None
        self.missed += max(0, frame.seq - self._next_seq.get(frame.lane, frame.seq))
        self._next_seq[frame.lane] = frame.seq + 1
        return frame


class Subscriber:
    """Frames of one topic; `missed` counts those sent while this subscriber was away or too slow."""

    def __init__(self, connection: Connection, topic: Topic) -> None:
        self._server = f"channel {connection.keys.channel(topic)}"
        self._settings = connection.settings
        self._client = connection.client
        self._channel = connection.keys.channel(topic)
        self._frames = _Frames()
        self._pubsub: Any = None

    @property
    def missed(self) -> int:
        return self._frames.missed

    @property
    def broken(self) -> int:
        """What other programs published on the channel."""
        return self._frames.broken

    def read(self, wait_ms: int = 1_000) -> Frame | None:
        """The next frame, or None after `wait_ms`. Raises ServerUnavailable; the next call subscribes again."""
        deadline_s = time.monotonic() + wait_ms / 1_000
        try:
            if self._pubsub is None:
                self._pubsub = self._client.pubsub(ignore_subscribe_messages=True)
                self._pubsub.subscribe(self._channel)
            while (left_s := deadline_s - time.monotonic()) > 0:
                frame = self._frames.take(self._pubsub.get_message(timeout=left_s))
                if frame is not None:
                    return frame
        except redis.RedisError as error:
            self.close()
            failed = translated(self._server, error, self._settings)
        else:
            return None
        raise failed

    def close(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            pubsub.close()


class AsyncSubscriber:
    """`Subscriber` for asyncio: the same names, awaited."""

    def __init__(self, connection: AsyncConnection, topic: Topic) -> None:
        self._server = f"channel {connection.keys.channel(topic)}"
        self._settings = connection.settings
        self._connection = connection
        self._channel = connection.keys.channel(topic)
        self._frames = _Frames()
        self._pubsub: Any = None

    @property
    def missed(self) -> int:
        return self._frames.missed

    @property
    def broken(self) -> int:
        return self._frames.broken

    async def read(self, wait_ms: int = 1_000) -> Frame | None:
        deadline_s = time.monotonic() + wait_ms / 1_000
        try:
            if self._pubsub is None:
                self._pubsub = self._connection.client_here().pubsub(ignore_subscribe_messages=True)
                await self._pubsub.subscribe(self._channel)
            while (left_s := deadline_s - time.monotonic()) > 0:
                frame = self._frames.take(await self._pubsub.get_message(timeout=left_s))
                if frame is not None:
                    return frame
        except redis.RedisError as error:
            await self.close()
            failed = translated(self._server, error, self._settings)
        else:
            return None
        raise failed

    async def close(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            await pubsub.aclose()
