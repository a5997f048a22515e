"""Trader configurations: limits, MEV protection and settings, versioned, with every version kept."""

from __future__ import annotations

import datetime
import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec

from ringlog.errors import PostgresValueError, VersionConflict
from ringlog.postgres.pools import AsyncPool, Pool, Rows, Statement, Steps, operation, transaction
from ringlog.postgres.values import checked_decimal, checked_text, fitted, json_text

TRADER_ID_BYTES_MAX = 32  # as in the trades table
CHANGED_BY_BYTES_MAX = 64
CHANNEL = "ringlog_trader_configs"

BasisPoints = Annotated[int, msgspec.Meta(ge=0, le=10_000)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Probability = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a trader may risk; amounts in quote units."""

    position_max: Decimal
    trade_max: Decimal
    daily_loss_max: Decimal
    open_positions_max: Count = 10
    slippage_max_bps: BasisPoints = 100


class MevProtection(msgspec.Struct, frozen=True, kw_only=True):
    """How a trader's transactions are kept from sandwiches; tips in lamports."""

    enabled: bool = True
    route: Literal["jito_bundle", "private_rpc", "public"] = "jito_bundle"
    tip_max_lamports: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 100_000
    sandwich_probability_max: Probability = 0.5


class TraderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One trader's configuration. `version` 0 was never saved; `settings` is any JSON object up to 64 KiB."""

    trader_id: str
    limits: Limits
    mev_protection: MevProtection = MevProtection()
    mode: Literal["paper", "live"] = "paper"
    enabled: bool = True
    settings: dict[str, Any] = {}
    version: int = 0
    changed_by: str = ""
    changed_at: datetime.datetime | None = None


def checked_config(config: TraderConfig) -> TraderConfig:
    """`config`, if every part of it can be kept; raises PostgresValueError that names the part."""
    config = fitted("config", config, TraderConfig)
    checked_text("config.trader_id", config.trader_id, TRADER_ID_BYTES_MAX)
    limits = config.limits
    for name in ("position_max", "trade_max", "daily_loss_max"):
        checked_decimal(f"config.limits.{name}", getattr(limits, name))
    if limits.trade_max > limits.position_max:
        raise PostgresValueError(
            f"config.limits.trade_max: got {limits.trade_max}, wanted at most position_max ({limits.position_max})"
        )
    return config


COLUMNS = "trader_id, version, mode, enabled, limits, mev_protection, settings, changed_by, changed_at"
_INSERT = f"""insert into trader_configs
    (trader_id, version, mode, enabled, limits, mev_protection, settings, changed_by, change_id)
    values (%s, 1, %s, %s, %s::jsonb, %s::jsonb, %s::jsonb, %s, %s)
    on conflict (trader_id) do nothing returning {COLUMNS}"""
_UPDATE = f"""update trader_configs set mode = %s, enabled = %s, limits = %s::jsonb, mev_protection = %s::jsonb,
    settings = %s::jsonb, changed_by = %s, change_id = %s where trader_id = %s and version = %s returning {COLUMNS}"""


@transaction
def save(config: TraderConfig, changed_by: str, change_id: uuid.UUID) -> Steps[TraderConfig]:
    config = checked_config(config)
    checked_text("changed_by", changed_by, CHANGED_BY_BYTES_MAX)
    values = (
        config.mode,
        config.enabled,
        json_text("config.limits", config.limits),
        json_text("config.mev_protection", config.mev_protection),
        json_text("config.settings", config.settings),
        changed_by,
        change_id,
    )
    if config.version:
        rows = yield Statement(_UPDATE, (*values, config.trader_id, config.version))
    else:
        rows = yield Statement(_INSERT, (config.trader_id, *values))
    if not rows:  # either somebody was first, or this change itself on an earlier try whose answer was lost
        rows = yield Statement(f"select {COLUMNS} from trader_config_history where change_id = %s", (change_id,))
    if not rows:
        found = yield Statement("select version from trader_configs where trader_id = %s", (config.trader_id,))
        now = f"version {found[0][0]}" if found else "no such trader"
        raise VersionConflict(f"trader {config.trader_id!r}: got version {config.version}, the database has {now}")
    return config_of(rows[0])


@operation
def get(trader_id: str) -> Steps[TraderConfig | None]:
    checked_text("trader_id", trader_id, TRADER_ID_BYTES_MAX)
    rows = yield Statement(f"select {COLUMNS} from trader_configs where trader_id = %s", (trader_id,))
    return config_of(rows[0]) if rows else None


@operation
def get_all() -> Steps[dict[str, TraderConfig]]:
    rows = yield Statement(f"select {COLUMNS} from trader_configs order by trader_id")
    return {config.trader_id: config for config in _configs(rows)}


@operation
def history(trader_id: str, limit: int) -> Steps[list[TraderConfig]]:
    checked_text("trader_id", trader_id, TRADER_ID_BYTES_MAX)
    wanted = f"select {COLUMNS} from trader_config_history where trader_id = %s order by version desc limit %s"
    rows = yield Statement(wanted, (trader_id, limit))
    return _configs(rows)


def config_of(row: tuple[Any, ...]) -> TraderConfig:
    """A row of COLUMNS as TraderConfig; raises PostgresValueError where its JSON does not fit."""
    trader_id, version, mode, enabled, limits, mev_protection, settings, changed_by, changed_at = row
    where = f"trader {trader_id!r} version {version} in the database"
    return TraderConfig(
        trader_id=trader_id,
        version=version,
        mode=mode,
        enabled=enabled,
        limits=fitted(f"{where}: limits", limits, Limits),
        mev_protection=fitted(f"{where}: mev_protection", mev_protection, MevProtection),
        settings=settings,
        changed_by=changed_by,
        changed_at=changed_at.astimezone(datetime.UTC),
    )


def _configs(rows: Rows) -> list[TraderConfig]:
    return [config_of(row) for row in rows]


class TraderConfigs:
    """The trader_configs table and its history. Bad input raises PostgresValueError before anything is sent.

    What the database holds may have been edited by hand: JSON that does not fit raises PostgresValueError too, naming
    trader, version and field.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def save(self, config: TraderConfig, *, changed_by: str) -> TraderConfig:
        """Writes a configuration over the version it was read at (0: a new trader), and returns it as it is stored.

        Raises VersionConflict where the database is at another version: read it again.
        """
        return self._pool.run(save(config, changed_by, uuid.uuid4()))

    def get(self, trader_id: str) -> TraderConfig | None:
        """The newest version, or None."""
        return self._pool.run(get(trader_id))

    def get_all(self) -> dict[str, TraderConfig]:
        """The newest version of every trader, by trader_id."""
        return self._pool.run(get_all())

    def history(self, trader_id: str, limit: int = 100) -> list[TraderConfig]:
        """The newest `limit` versions, newest first."""
        return self._pool.run(history(trader_id, limit))


class AsyncTraderConfigs:
    """`TraderConfigs` for asyncio: the same names, awaited."""

    def __init__(self, pool: AsyncPool) -> None:
        self._pool = pool

    async def save(self, config: TraderConfig, *, changed_by: str) -> TraderConfig:
        return await self._pool.run(save(config, changed_by, uuid.uuid4()))

    async def get(self, trader_id: str) -> TraderConfig | None:
        return await self._pool.run(get(trader_id))

    async def get_all(self) -> dict[str, TraderConfig]:
        return await self._pool.run(get_all())

    async def history(self, trader_id: str, limit: int = 100) -> list[TraderConfig]:
        return await self._pool.run(history(trader_id, limit))
