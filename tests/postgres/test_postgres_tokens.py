"""The tokens table: what goes in comes out whole, is found by symbol and extension, and bad input is named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from postgres_platform import PYUSD, SOL, USDC, execute

from ringlog import libpq
from ringlog.errors import PostgresValueError
from ringlog.postgres import AsyncPool, AsyncTokens, Extension, Pool, Token, Tokens, TransferFee, TransferFeeConfig
from ringlog.postgres.addresses import _DIGITS, ADDRESS_BYTES, checked_address, decoded
from ringlog.postgres.extensions import KINDS, InterestBearingConfig, TransferHook
from ringlog.postgres.pools import Operation, Statement, connection_options
from ringlog.settings import Settings

FEE = TransferFeeConfig(
    older_transfer_fee=TransferFee(epoch=1, maximum_fee=10, transfer_fee_basis_points=100),
    newer_transfer_fee=TransferFee(epoch=600, maximum_fee=2**64 - 1, transfer_fee_basis_points=250),
    withheld_amount=2**64 - 1,
)
INTEREST = InterestBearingConfig(
    initialization_timestamp=1, pre_update_average_rate=5, last_update_timestamp=2, current_rate=-7
)
UNKNOWN = Extension("quantumVault", {"qubits": [1, None, {"spin": "up"}], "ratio": 0.1})
TOKEN = Token(
    address=PYUSD,
    symbol="PYUSD",
    name="PayPal USD",
    decimals=6,
    program="spl-token-2022",
    extensions=(
        Extension.of(FEE),
        Extension.of(INTEREST),
        Extension("transferHook", {"authority": USDC, "programId": None, "addedLater": {"kept": True}}),
        Extension("nonTransferable"),
        UNKNOWN,
    ),
)


def changed(**fields: Any) -> Token:
    return Token(**({name: getattr(TOKEN, name) for name in TOKEN.__struct_fields__} | fields))


def test_a_token_comes_back_whole_with_what_this_version_does_not_know(pool: Pool) -> None:
    """Typed extensions read as their types; an unknown kind, and an unknown field of a known kind, are kept."""
    tokens = Tokens(pool)
    tokens.save(TOKEN)
    token = tokens.get(PYUSD)
    assert token == TOKEN
    assert token.transfer_fee_config == FEE
    assert (token.transfer_fee(599, 10_000), token.transfer_fee(600, 10_000)) == (10, 250)
    assert token.extension("interestBearingConfig").typed() == INTEREST
    assert token.extension("transferHook").typed() == TransferHook(authority=USDC)
    assert token.extension("transferHook").state["addedLater"] == {"kept": True}
    assert token.extension("quantumVault").typed() is None
    assert token.extension("quantumVault").state == UNKNOWN.state
    assert (token.extension("pausableConfig"), changed(extensions=()).transfer_fee(1, 10)) == (None, 0)


def test_tokens_are_found_by_symbol_extension_and_many_addresses(pool: Pool) -> None:
    """Symbols match in any case and are not unique; an extension's kind finds every mint that has it."""
    tokens = Tokens(pool)
    for token in (TOKEN, Token(address=USDC, symbol="USDC", decimals=6), Token(address=SOL, symbol="usdc", decimals=9)):
        tokens.save(token)
    assert [token.address for token in tokens.by_symbol("Usdc")] == sorted([USDC, SOL])
    assert [token.address for token in tokens.by_extension("transferHook")] == [PYUSD]
    assert tokens.by_extension("quantumVault") == [TOKEN]
    assert tokens.by_extension("' or true --") == []
    assert set(tokens.get_many([USDC, PYUSD, "1" * 32])) == {USDC, PYUSD}
    assert tokens.get("1" * 32) is None


def test_lookups_use_their_indexes(database: Settings) -> None:
    """By symbol and by extension, PostgreSQL's plan reads the index made for it."""
    with libpq.Connection.connect(**connection_options(database)) as connection:
        connection.execute("set enable_seqscan = off")  # the table is empty: a scan would always be cheaper
        for where, index in (
            ("upper(symbol) = 'USDC'", "tokens_symbol"),
            ("""extensions @> '[{"extension": "transferHook"}]'""", "tokens_extensions"),
        ):
            assert index in str(connection.execute(f"explain select * from tokens where {where}").fetchall())


def test_saving_again_replaces_and_saving_the_same_changes_nothing(database: Settings, pool: Pool) -> None:
    """The newest save wins; one that changes nothing does not even move updated_at."""
    tokens = Tokens(pool)
    tokens.save(TOKEN)
    tokens.save(TOKEN)
    ((created, updated),) = execute(database, "select created_at, updated_at from tokens")
    assert created == updated
    tokens.save(changed(symbol="PYUSD2", extensions=()))
    assert tokens.get(PYUSD) == changed(symbol="PYUSD2", extensions=())
    assert execute(database, "select updated_at > created_at, count(*) over () from tokens") == [(True, 1)]


async def test_async_tokens_answer_the_same(database: Settings) -> None:
    """AsyncTokens over AsyncPool: the same calls, the same results."""
    async with AsyncPool(database) as pool:
        tokens = AsyncTokens(pool)
        await tokens.save(TOKEN)
        assert await tokens.get(PYUSD) == TOKEN
        assert await tokens.get_many([PYUSD]) == {PYUSD: TOKEN}
        assert await tokens.by_symbol("pyusd") == await tokens.by_extension("transferFeeConfig") == [TOKEN]


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"address": "0OIl" * 8}, "token.address.*'0'"),
        ({"address": USDC[:40]}, "token.address.* of (29|30) bytes"),
        ({"address": "z" * 44}, "token.address.*33 bytes"),
        ({"address": "1" * 45}, "token.address"),
        ({"address": ""}, "token.address"),
        ({"address": 7}, "address"),
        ({"decimals": -1}, "token.decimals: got -1, wanted 0 to 255"),
        ({"decimals": 256}, "token.decimals: got 256"),
        ({"decimals": 6.5}, "decimals"),
        ({"decimals": "6"}, "decimals"),
        ({"decimals": True}, "decimals"),
        ({"symbol": ""}, "token.symbol"),
        ({"symbol": "é" * 17}, "token.symbol.*1 to 32 bytes"),
        ({"symbol": "A\0B"}, "token.symbol.*NUL"),
        ({"symbol": "\ud800"}, "symbol|token"),
        ({"program": "spl-token-2023"}, "program"),
        ({"program": "spl-token"}, "token.extensions.*spl-token-2022"),
        ({"extensions": (UNKNOWN, UNKNOWN)}, "each kind once"),
        ({"extensions": (Extension("transferFeeConfig", {"olderTransferFee": 1}),)}, "transferFeeConfig.*Expected"),
        ({"extensions": (Extension("pausableConfig", {}),)}, "pausableConfig.*paused"),
        ({"extensions": (Extension("new", {"text": "\0"}),)}, "token.extensions.*NUL"),
        ({"extensions": (Extension("new", {"text": "x" * 70_000}),)}, "token.extensions.*65536"),
        ({"extensions": (Extension("new", {"set": object()}),)}, "token"),
    ],
)
def test_bad_tokens_are_named_before_anything_is_sent(fields: dict[str, Any], names: str) -> None:
    """Each bad part raises PostgresValueError naming it, without a server: the pool was never opened."""
    tokens = Tokens(Pool(Settings(postgres_port=1)))
    with pytest.raises(PostgresValueError, match=names):
        tokens.save(changed(**fields))


def test_the_database_refuses_what_gets_past_the_checks(database: Settings, pool: Pool) -> None:
    """The same bounds stand as constraints, for programs that write past ringlog; the error names the constraint."""

    def insert(address: str, decimals: int, extensions: str) -> Any:
        def steps() -> Any:
            sql = "insert into tokens values (%s, 'X', '', %s, 'spl-token', %s::jsonb)"
            yield Statement(sql, (address, decimals, extensions))

        return Operation(steps)

    for values, constraint in (
        (("0" * 32, 6, "[]"), "tokens_address_base58"),
        ((USDC, 256, "[]"), "tokens_decimals_u8"),
        ((USDC, 6, "{}"), "tokens_extensions_array"),
        ((USDC, 6, '[{"extension": "x"}]'), "tokens_extensions_need_2022"),
        ((USDC, 6, "[nonsense"), "json"),
    ):
        with pytest.raises(PostgresValueError, match=constraint):
            pool.run(insert(*values))
    assert execute(database, "select count(*) from tokens") == [(0,)]


def test_json_in_the_database_that_does_not_fit_is_named_on_reading(database: Settings, pool: Pool) -> None:
    """An extension list edited by hand into another shape raises, naming the token."""
    Tokens(pool).save(TOKEN)
    execute(database, """update tokens set extensions = '[{"kind": 1}]'""")
    with pytest.raises(PostgresValueError, match=f"{PYUSD}.*extension"):
        Tokens(pool).get(PYUSD)


@given(st.binary(min_size=0, max_size=40))
def test_base58_decodes_what_any_encoder_makes(content: bytes) -> None:
    """decoded() is the inverse of base58 for any bytes, and an address is exactly 32 of them."""
    number, digits = int.from_bytes(content), ""
    alphabet = "".join(_DIGITS)
    while number:
        number, digit = divmod(number, 58)
        digits = alphabet[digit] + digits
    text = "1" * (len(content) - len(content.lstrip(b"\0"))) + digits
    assert decoded(text) == content
    if len(content) == ADDRESS_BYTES:
        assert checked_address("address", text) == text
    else:
        with pytest.raises(PostgresValueError):
            checked_address("address", text)


def test_every_known_kind_is_one_of_solanas() -> None:
    """The kinds are spelled as Solana RPC spells them: a typo here would silently treat a known kind as unknown."""
    source = {
        "transferFeeConfig", "mintCloseAuthority", "defaultAccountState", "nonTransferable", "interestBearingConfig",
        "permanentDelegate", "transferHook", "metadataPointer", "scaledUiAmountConfig", "pausableConfig",
    }  # fmt: skip
    assert set(KINDS) == source
