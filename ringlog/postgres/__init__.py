"""PostgreSQL for what must be right: tokens, trader configurations, order rules and RPC nodes; sync and async."""

from ringlog.postgres.extensions import Extension
from ringlog.postgres.pools import AsyncPool, Pool
from ringlog.postgres.tokens import AsyncTokens, Token, Tokens
from ringlog.postgres.transfer_fees import TransferFee, TransferFeeConfig

__all__ = [
    "AsyncPool",
    "AsyncTokens",
    "Extension",
    "Pool",
    "Token",
    "Tokens",
    "TransferFee",
    "TransferFeeConfig",
]
