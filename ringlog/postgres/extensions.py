"""Token-2022's extensions, typed, and kept whole whatever their kind.

An extension is what Solana RPC's jsonParsed encoding says of it: a kind and a state. Known kinds have a type; a kind,
or a field of a known kind, that this version does not know stays in `state` and is stored as it came.
Source: `UiExtension` in anza-xyz/agave, `account-decoder-client-types/src/token.rs`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ringlog.errors import PostgresValueError
from ringlog.postgres.transfer_fees import TransferFeeConfig


class InterestBearingConfig(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Interest shown, not paid: rates in basis points a year, times in Unix seconds."""

    rate_authority: str | None = None
    initialization_timestamp: int
    pre_update_average_rate: int
    last_update_timestamp: int
    current_rate: int


class TransferHook(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A program that is called on every transfer, and may refuse it."""

    authority: str | None = None
    program_id: str | None = None


class PermanentDelegate(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Somebody who may move or burn anybody's tokens."""

    delegate: str | None = None


class MintCloseAuthority(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    close_authority: str | None = None


class DefaultAccountState(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The state new accounts start in; `frozen` ones cannot be traded until thawed."""

    account_state: Literal["uninitialized", "initialized", "frozen"]


class MetadataPointer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    authority: str | None = None
    metadata_address: str | None = None


class ScaledUiAmountConfig(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A multiplier on shown amounts, from a Unix time on another one."""

    authority: str | None = None
    multiplier: str
    new_multiplier_effective_timestamp: int
    new_multiplier: str


class PausableConfig(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Whether all transfers are stopped."""

    authority: str | None = None
    paused: bool


class NonTransferable(msgspec.Struct, frozen=True):
    """Tokens that stay where they were minted."""


Typed = (
    TransferFeeConfig
    | InterestBearingConfig
    | TransferHook
    | PermanentDelegate
    | MintCloseAuthority
    | DefaultAccountState
    | MetadataPointer
    | ScaledUiAmountConfig
    | PausableConfig
    | NonTransferable
)
KINDS: dict[str, type[Any]] = {
    "transferFeeConfig": TransferFeeConfig,
    "interestBearingConfig": InterestBearingConfig,
    "transferHook": TransferHook,
    "permanentDelegate": PermanentDelegate,
    "mintCloseAuthority": MintCloseAuthority,
    "defaultAccountState": DefaultAccountState,
    "metadataPointer": MetadataPointer,
    "scaledUiAmountConfig": ScaledUiAmountConfig,
    "pausableConfig": PausableConfig,
    "nonTransferable": NonTransferable,
}


class Extension(msgspec.Struct, frozen=True, rename={"kind": "extension"}, omit_defaults=True):
    """One extension of a mint: its kind, as `transferFeeConfig`, and its state, as JSON gave it."""

    kind: str
    state: dict[str, Any] = {}

    def typed(self) -> Typed | None:
        """The state as its kind's type; None for a kind this version does not know.

        Raises PostgresValueError where the state of a known kind does not fit.
        """
        wanted = KINDS.get(self.kind)
        if wanted is None:
            return None
        try:
            return msgspec.convert(self.state, wanted)  # type: ignore[no-any-return]
        except msgspec.ValidationError as error:
            raise PostgresValueError(f"extension {self.kind}: {error}") from None

    @classmethod
    def of(cls, state: Typed) -> Extension:
        """The extension that a typed state belongs to."""
        for kind, known in KINDS.items():
            if type(state) is known:
                return cls(kind, msgspec.to_builtins(state))
        raise PostgresValueError(f"extension: got {type(state).__name__}, wanted one of {', '.join(KINDS)}")
