import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.quant.packing import pack, packed_columns, unpack, unpack_into


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    rows=st.integers(1, 5),
    columns=st.integers(1, 67),
    seed=st.integers(0, 10_000),
)
def test_round_trip_is_exact_for_any_size(bits: int, rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns), generator=generator, dtype=torch.int8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.int8
    assert packed.shape == (rows, packed_columns(columns, bits))
    assert torch.equal(unpack(packed, bits, columns), codes)
    assert torch.equal(unpack_into(packed, bits, torch.empty(rows, columns)), codes.float())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_storage_takes_exactly_the_bits(bits: int) -> None:
    assert packed_columns(64, bits) == 64 * bits // 8


def test_every_code_survives_in_every_field() -> None:
    for bits in (2, 3, 4):
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
        codes = torch.cartesian_prod(*[torch.arange(low, high, dtype=torch.int8)] * 2)
        assert torch.equal(unpack(pack(codes, bits), bits, 2), codes)
