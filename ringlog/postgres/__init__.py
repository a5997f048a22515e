"""PostgreSQL for what must be right: tokens, trader configurations, order rules and RPC nodes; sync and async."""

from ringlog.postgres.extensions import Extension
from ringlog.postgres.nodes import AsyncNodes, Choice, Node, NodeHealth, Nodes
from ringlog.postgres.orders import AsyncOrders, Orders
from ringlog.postgres.pools import AsyncPool, Pool, Statement, operation, transaction
from ringlog.postgres.rules import Evaluation, OrderRule, evaluate
from ringlog.postgres.tokens import AsyncTokens, Token, Tokens
from ringlog.postgres.traders import AsyncTraderConfigs, Limits, MevProtection, TraderConfig, TraderConfigs
from ringlog.postgres.transfer_fees import TransferFee, TransferFeeConfig
from ringlog.postgres.watch import AsyncConfigWatch, ConfigWatch, Current

__all__ = [
    "AsyncConfigWatch",
    "AsyncNodes",
    "AsyncOrders",
    "AsyncPool",
    "AsyncTokens",
    "AsyncTraderConfigs",
    "Choice",
    "ConfigWatch",
    "Current",
    "Evaluation",
    "Extension",
    "Limits",
    "MevProtection",
    "Node",
    "NodeHealth",
    "Nodes",
    "OrderRule",
    "Orders",
    "Pool",
    "Statement",
    "Token",
    "Tokens",
    "TraderConfig",
    "TraderConfigs",
    "TransferFee",
    "TransferFeeConfig",
    "evaluate",
    "operation",
    "transaction",
]
