"""Redis for what must be now: a price and pool cache, event streams, 10 Hz publishing, and the writer's Redis sink."""

from ringlog.redis.cache import AsyncCache, Cache
from ringlog.redis.connection import AsyncConnection, Connection
from ringlog.redis.consumer import AsyncStreamConsumer, Delivery, Gap, StreamConsumer
from ringlog.redis.events import Event, Frame, Outgoing, PriceUpdate, UiEvent
from ringlog.redis.keys import Keys, Topic
from ringlog.redis.publisher import AsyncPublisher, Publisher, PublisherStats
from ringlog.redis.sink import RedisSink, RedisSinkStats
from ringlog.redis.streams import AsyncStreamProducer, StreamProducer
from ringlog.redis.subscriber import AsyncSubscriber, Subscriber
from ringlog.redis.values import Cached, Freshness, PoolState

__all__ = [
    "AsyncCache",
    "AsyncConnection",
    "AsyncPublisher",
    "AsyncStreamConsumer",
    "AsyncStreamProducer",
    "AsyncSubscriber",
    "Cache",
    "Cached",
    "Connection",
    "Delivery",
    "Event",
    "Frame",
    "Freshness",
    "Gap",
    "Keys",
    "Outgoing",
    "PoolState",
    "PriceUpdate",
    "Publisher",
    "PublisherStats",
    "RedisSink",
    "RedisSinkStats",
    "StreamConsumer",
    "StreamProducer",
    "Subscriber",
    "Topic",
    "UiEvent",
]
