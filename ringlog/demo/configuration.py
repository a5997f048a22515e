"""What the paper-trading session keeps in PostgreSQL: two tokens, the traders' limits and rules, and RPC nodes."""

from __future__ import annotations

import hashlib
from decimal import Decimal

from ringlog.postgres import (
    Extension,
    Limits,
    MevProtection,
    Node,
    Nodes,
    Pool,
    Token,
    Tokens,
    TraderConfig,
    TraderConfigs,
    TransferFee,
    TransferFeeConfig,
)
from ringlog.settings import Secret

DECIMALS = 8  # as many as exchanges give a quantity
FEE_BPS = 4  # of the modelled pool
EPOCH = 700
CHANGED_BY = "ringlog-demo"
WITHOUT_LIMIT = Decimal(10**12)

TRANSFER_FEE = TransferFee(epoch=EPOCH - 100, maximum_fee=10_000, transfer_fee_basis_points=2)  # at most 0.0001 token
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def paper_address(name: str) -> str:
    """An address that no account has: the SHA-256 of a text, in base58."""
    digest = hashlib.sha256(f"ringlog paper {name}".encode()).digest()
    number, text = int.from_bytes(digest), ""
    while number:
        number, digit = divmod(number, 58)
        text = BASE58[digit] + text
    return "1" * (len(digest) - len(digest.lstrip(b"\0"))) + text


def paper_tokens(base: str, quote: str) -> tuple[Token, Token]:
    """The market's two tokens: the base one is Token-2022 with a transfer fee, the quote one is plain."""
    extension = Extension.of(TransferFeeConfig(older_transfer_fee=TRANSFER_FEE, newer_transfer_fee=TRANSFER_FEE))
    return (
        Token(
            address=paper_address(base), symbol=base, decimals=DECIMALS, name=f"Paper {base}",
            program="spl-token-2022", extensions=(extension,),
        ),
        Token(address=paper_address(quote), symbol=quote, decimals=6, name=f"Paper {quote}"),
    )  # fmt: skip


def trader_configs(index: int) -> list[TraderConfig]:
    """The three traders of one executor, in the order in which they are offered a trade.

    The last, the desk, has no limits and may be short: what nobody else may take is its. Every second executor's
    traders are protected against MEV, so that the session compares both on the same market.
    """
    rules = {"stop_loss_bps": 5, "take_profit_bps": 5, "trailing_bps": 2, "may_short": False}

    def config(name: str, limits: Limits, settings: dict[str, int]) -> TraderConfig:
        protection = MevProtection(enabled=index % 2 == 0, route="private_rpc", sandwich_probability_max=0.02)
        return TraderConfig(
            trader_id=f"{name}-{index}", limits=limits, mev_protection=protection, settings=settings
        )  # fmt: skip

    def limits(trade_max: int, position_max: int, daily_loss_max: int, slippage_max_bps: int) -> Limits:
        return Limits(
            trade_max=Decimal(trade_max),
            position_max=Decimal(position_max),
            daily_loss_max=Decimal(daily_loss_max),
            slippage_max_bps=slippage_max_bps,
        )

    desk = Limits(
        trade_max=WITHOUT_LIMIT, position_max=WITHOUT_LIMIT, daily_loss_max=WITHOUT_LIMIT, slippage_max_bps=50
    )
    return [
        config("scalper", limits(500, 2_000, 20, 5), rules),
        config("swing", limits(5_000, 20_000, 150, 20), {**rules, "stop_loss_bps": 8, "take_profit_bps": 8}),
        config("desk", desk, {"may_short": True}),
    ]


def configure(pool: Pool, base: str, quote: str, executors: int, node_urls: dict[str, str]) -> None:
    """Writes all of it into a database whose tables are there."""
    tokens, configs, nodes = Tokens(pool), TraderConfigs(pool), Nodes(pool)
    for token in paper_tokens(base, quote):
        tokens.save(token)
    for index in range(executors):
        for config in trader_configs(index):
            configs.save(config, changed_by=CHANGED_BY)
    for name, url in node_urls.items():
        nodes.save(Node(name=name, url=Secret(url), failures_max=3, cooldown_s=2.0, trial_timeout_s=1.0))
