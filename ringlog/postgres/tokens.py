"""Tokens: mints with their symbol, decimals and Token-2022 extensions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from ringlog.errors import PostgresValueError
from ringlog.postgres.addresses import checked_address
from ringlog.postgres.extensions import Extension
from ringlog.postgres.pools import AsyncPool, Pool, Rows, Statement, Steps, operation
from ringlog.postgres.transfer_fees import TransferFeeConfig
from ringlog.postgres.values import checked_text, fitted, json_text

SYMBOL_BYTES_MAX = 32
NAME_BYTES_MAX = 128
DECIMALS_MAX = 255  # a mint keeps them in a u8


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A mint. `extensions` are kept whole, kinds and fields that this version does not know included."""

    address: str
    symbol: str
    decimals: int
    name: str = ""
    program: Literal["spl-token", "spl-token-2022"] = "spl-token"
    extensions: tuple[Extension, ...] = ()

    def extension(self, kind: str) -> Extension | None:
        """The extension of that kind, as `transferHook`, or None."""
        return next((extension for extension in self.extensions if extension.kind == kind), None)

    @property
    def transfer_fee_config(self) -> TransferFeeConfig | None:
        """The transfer fee, or None for a token without one."""
        extension = self.extension("transferFeeConfig")
        typed = extension.typed() if extension else None
        return typed if isinstance(typed, TransferFeeConfig) else None

    def transfer_fee(self, epoch: int, amount: int) -> int:
        """What a transfer of `amount` (smallest units) in `epoch` withholds; 0 for a token without a fee."""
        config = self.transfer_fee_config
        return config.fee(epoch, amount) if config else 0


def checked_token(token: Token) -> Token:
    """`token`, if every part of it can be kept; raises PostgresValueError that names the part."""
    token = fitted("token", token, Token)
    checked_address("token.address", token.address)
    checked_text("token.symbol", token.symbol, SYMBOL_BYTES_MAX)
    checked_text("token.name", token.name, NAME_BYTES_MAX, 0)
    if not 0 <= token.decimals <= DECIMALS_MAX:
        raise PostgresValueError(f"token.decimals: got {token.decimals}, wanted 0 to {DECIMALS_MAX}")
    if token.extensions and token.program != "spl-token-2022":
        raise PostgresValueError(f"token.extensions: got some with program {token.program!r}, wanted 'spl-token-2022'")
    kinds = [extension.kind for extension in token.extensions]
    if len(set(kinds)) < len(kinds):
        raise PostgresValueError(f"token.extensions: got {kinds}, wanted each kind once")
    for extension in token.extensions:
        extension.typed()
    return token


_COLUMNS = "address, symbol, name, decimals, program, extensions"
_SAVE = f"""insert into tokens ({_COLUMNS}) values (%s, %s, %s, %s, %s, %s::jsonb)
    on conflict (address) do update set symbol = excluded.symbol, name = excluded.name, decimals = excluded.decimals,
        program = excluded.program, extensions = excluded.extensions, updated_at = now()
        where (tokens.symbol, tokens.name, tokens.decimals, tokens.program, tokens.extensions)
            is distinct from
            (excluded.symbol, excluded.name, excluded.decimals, excluded.program, excluded.extensions)"""


@operation
def save(token: Token) -> Steps[None]:
    token = checked_token(token)
    extensions = json_text("token.extensions", token.extensions)
    yield Statement(_SAVE, (token.address, token.symbol, token.name, token.decimals, token.program, extensions))


@operation
def get(address: str) -> Steps[Token | None]:
    checked_address("address", address)
    rows = yield Statement(f"select {_COLUMNS} from tokens where address = %s", (address,))
    return _token(rows[0]) if rows else None


@operation
def get_many(addresses: Iterable[str]) -> Steps[dict[str, Token]]:
    wanted = [checked_address("address", address) for address in addresses]
    rows = yield Statement(f"select {_COLUMNS} from tokens where address = any(%s)", (wanted,))
    return {token.address: token for token in _tokens(rows)}


@operation
def get_all() -> Steps[dict[str, Token]]:
    rows = yield Statement(f"select {_COLUMNS} from tokens order by address")
    return {token.address: token for token in _tokens(rows)}


@operation
def by_symbol(symbol: str) -> Steps[list[Token]]:
    checked_text("symbol", symbol, SYMBOL_BYTES_MAX)
    order = "order by address"
    rows = yield Statement(f"select {_COLUMNS} from tokens where upper(symbol) = upper(%s) {order}", (symbol,))
    return _tokens(rows)


@operation
def by_extension(kind: str) -> Steps[list[Token]]:
    wanted = json_text("kind", [{"extension": checked_text("kind", kind, 64)}])
    order = "order by address"
    rows = yield Statement(f"select {_COLUMNS} from tokens where extensions @> %s::jsonb {order}", (wanted,))
    return _tokens(rows)


def _token(row: tuple[Any, ...]) -> Token:
    address, symbol, name, decimals, program, extensions = row
    return Token(
        address=address,
        symbol=symbol,
        name=name,
        decimals=decimals,
        program=program,
        extensions=fitted(f"token {address} in the database", extensions, tuple[Extension, ...]) if extensions else (),
    )


def _tokens(rows: Rows) -> list[Token]:
    return [_token(row) for row in rows]


class Tokens:
    """The tokens table. Bad input raises PostgresValueError before anything is sent."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def save(self, token: Token) -> None:
        """Writes a token, over what was known of its address."""
        self._pool.run(save(token))

    def get(self, address: str) -> Token | None:
        """The token of that address, or None."""
        return self._pool.run(get(address))

    def get_many(self, addresses: Iterable[str]) -> dict[str, Token]:
        """The known ones of many addresses, by address, in one round trip."""
        return self._pool.run(get_many(tuple(addresses)))

    def get_all(self) -> dict[str, Token]:
        """All tokens, by address."""
        return self._pool.run(get_all())

    def by_symbol(self, symbol: str) -> list[Token]:
        """All tokens of a symbol, in any case: symbols are not unique. Ordered by address."""
        return self._pool.run(by_symbol(symbol))

    def by_extension(self, kind: str) -> list[Token]:
        """All tokens with an extension of that kind, as `transferHook`. Ordered by address."""
        return self._pool.run(by_extension(kind))


class AsyncTokens:
    """`Tokens` for asyncio: the same names, awaited."""

    def __init__(self, pool: AsyncPool) -> None:
        self._pool = pool

    async def save(self, token: Token) -> None:
        await self._pool.run(save(token))

    async def get(self, address: str) -> Token | None:
        return await self._pool.run(get(address))

    async def get_many(self, addresses: Iterable[str]) -> dict[str, Token]:
        return await self._pool.run(get_many(tuple(addresses)))

    async def get_all(self) -> dict[str, Token]:
        return await self._pool.run(get_all())

    async def by_symbol(self, symbol: str) -> list[Token]:
        return await self._pool.run(by_symbol(symbol))

    async def by_extension(self, kind: str) -> list[Token]:
        return await self._pool.run(by_extension(kind))
