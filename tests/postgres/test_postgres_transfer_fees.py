"""Token-2022's transfer-fee arithmetic, held against the program's own test values and against exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringlog.postgres.transfer_fees import U64_MAX, TransferFee, TransferFeeConfig

ONE = 10_000


def fee_of(points: int, maximum: int = U64_MAX, epoch: int = 0) -> TransferFee:
    return TransferFee(epoch=epoch, maximum_fee=maximum, transfer_fee_basis_points=points)


fees = st.builds(fee_of, st.integers(0, ONE), st.integers(0, U64_MAX))
amounts = st.one_of(st.integers(0, U64_MAX), st.integers(0, 100_000))


def test_the_fee_stops_at_its_maximum() -> None:
    """spl-token-2022 `calculate_fee_max`: 1 basis point, maximum 5,000."""
    fee = fee_of(1, 5_000)
    assert [fee.fee(amount) for amount in (U64_MAX, 5_000 * ONE, 5_000 * ONE + 1, 5_000 * ONE - 1)] == [5_000] * 4


def test_the_fee_is_rounded_up() -> None:
    """spl-token-2022 `calculate_fee_min`: one unit from the first token on, two from 10,001."""
    fee = fee_of(1, 5_000)
    assert [fee.fee(amount) for amount in (0, 1, 2, ONE, ONE + 1)] == [0, 1, 1, 1, 2]


def test_no_basis_points_or_no_maximum_is_no_fee() -> None:
    """spl-token-2022 `calculate_fee_zero`."""
    for fee in (fee_of(0), fee_of(ONE, 0)):
        assert [fee.fee(amount) for amount in (0, 1, ONE, U64_MAX)] == [0] * 4


def test_the_inverse_fee_at_its_maximum_and_minimum() -> None:
    """spl-token-2022 `calculate_fee_exact_out_max` and `calculate_fee_exact_out_min`."""
    fee = fee_of(1, 5_000)
    for received in (U64_MAX - 5_000, 5_000 * ONE - 5_000, 5_000 * ONE - 4_999, 5_000 * ONE - 5_001):
        assert fee.inverse_fee(received) == 5_000
    assert [fee.inverse_fee(received) for received in (0, 1, 2, ONE - 1, ONE)] == [0, 1, 1, 1, 2]


def test_the_amount_to_send_at_the_edges() -> None:
    """spl-token-2022 `calculate_pre_fee_amount_edge_cases`, and an amount beyond u64."""
    whole = fee_of(ONE, 5_000)
    assert (whole.amount_to_send(0), whole.amount_to_send(1)) == (0, 5_001)
    assert fee_of(0, 5_000).amount_to_send(1) == 1
    assert fee_of(1_000).amount_to_send(9) == 10, "10 and 11 both arrive as 9: the smaller one"
    with pytest.raises(ValueError, match="wanted an integer of 0 to"):
        fee_of(1, 5_000).amount_to_send(U64_MAX)


def test_the_epoch_decides_between_the_older_and_the_newer_fee() -> None:
    """spl-token-2022 `epoch_fee`: the newer fee holds from its epoch on, the older one before."""
    config = TransferFeeConfig(older_transfer_fee=fee_of(100, 10, 1), newer_transfer_fee=fee_of(1, 5_000, 100))
    assert [config.epoch_fee(epoch).epoch for epoch in (0, 1, 99, 100, 101, U64_MAX)] == [1, 1, 1, 100, 100, 100]
    assert (config.fee(99, 1_000_000), config.fee(100, 1_000_000)) == (10, 100)
    assert config.inverse_fee(100, 999_900) == 100


@given(fees, amounts)
def test_the_fee_is_the_exact_fraction_rounded_up_and_capped(fee: TransferFee, amount: int) -> None:
    """min(ceil(amount * points / 10,000), maximum), in exact arithmetic, for every u64."""
    exact = Fraction(amount) * fee.transfer_fee_basis_points / ONE
    assert fee.fee(amount) == min(math.ceil(exact), fee.maximum_fee)
    assert 0 <= fee.amount_received(amount) <= amount


@given(fees, amounts)
def test_the_inverse_never_exceeds_the_fee(fee: TransferFee, amount: int) -> None:
    """The program's own relation: fee(x) >= inverse_fee(x - fee(x)); what is to be sent arrives as at least that."""
    received = fee.amount_received(amount)
    assert fee.fee(amount) >= fee.inverse_fee(received)
    assert fee.amount_received(fee.amount_to_send(received)) >= received


def test_rpc_json_is_read_as_it_comes_and_bad_values_are_refused() -> None:
    """jsonParsed's camelCase names are the struct's; more than 100 % or a negative maximum is no fee."""
    text = b'{"epoch": 1, "maximumFee": 18446744073709551615, "transferFeeBasisPoints": 250}'
    assert msgspec.json.decode(text, type=TransferFee) == fee_of(250, U64_MAX, 1)
    for bad in (b'{"epoch":1,"maximumFee":1,"transferFeeBasisPoints":10001}', b'{"epoch":1,"maximumFee":-1}'):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(bad, type=TransferFee)
    for amount in (-1, U64_MAX + 1, 1.0, True):
        with pytest.raises(ValueError, match="wanted an integer"):
            fee_of(1).fee(amount)  # type: ignore[arg-type]
