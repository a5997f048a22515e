"""The spool: records that QuestDB cannot take now, on local disk, durable and in order."""

from ringlog.spool.damage import Damage, DamageKind
from ringlog.spool.reader import Replay
from ringlog.spool.spool import Spool

__all__ = ["Damage", "DamageKind", "Replay", "Spool"]
