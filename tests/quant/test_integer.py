import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.quant.integer import dequantize_weight, quantize_activation, quantize_weight

CASES = [(2, 32), (3, 32), (4, 32), (4, None), (4, 64), (8, None), (8, 16)]


def sqnr(reference: torch.Tensor, other: torch.Tensor) -> float:
    error = (reference - other).detach().double().square().sum()
    return float(10 * torch.log10(reference.detach().double().square().sum() / error))


@pytest.mark.parametrize(("bits", "group"), CASES)
def test_codes_are_the_nearest_integers_to_weight_over_scale(bits: int, group: int | None) -> None:
    weight = torch.randn(7, 70, generator=torch.Generator().manual_seed(0))
    codes, scale = quantize_weight(weight, bits, group)
    low, high = (-127, 127) if bits == 8 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for row in range(7):
        for column in range(70):
            s = float(scale[row, 0 if group is None else column // group])
            exact = float(weight[row, column]) / s
            assert int(codes[row, column]) == min(max(round(exact), low), high) or abs(exact % 1 - 0.5) < 1e-5


@pytest.mark.parametrize(("bits", "group"), CASES)
def test_dequantization_multiplies_by_the_scale_of_the_group(bits: int, group: int | None) -> None:
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(1))
    codes, scale = quantize_weight(weight, bits, group)
    size = 70 if group is None else group
    expected = torch.stack([codes[:, c].double() * scale[:, c // size].double() for c in range(70)], 1)
    assert torch.allclose(dequantize_weight(codes, scale, group, torch.float64), expected, rtol=0, atol=1e-12)


def test_eight_bit_error_is_at_most_half_a_step() -> None:
    weight = torch.randn(16, 100, generator=torch.Generator().manual_seed(2))
    codes, scale = quantize_weight(weight, 8)
    assert torch.allclose(scale[:, 0], weight.abs().amax(1) / 127)
    assert ((dequantize_weight(codes, scale, None, torch.float32) - weight).abs() <= scale * 0.5001).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_low_bits_beat_the_plain_symmetric_rule_in_every_group(bits: int) -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(3))
    codes, scale = quantize_weight(weight, bits, 32)
    error = (dequantize_weight(codes, scale, 32, torch.float32) - weight).view(64, 3, 32).square().sum(-1)
    groups, top = weight.view(64, 3, 32), 2 ** (bits - 1) - 1
    plain_scale = (groups.abs().amax(-1, keepdim=True) / top).half().float()
    plain = ((groups / plain_scale).round().clamp(-top, top) * plain_scale - groups).square().sum(-1)
    assert (error <= plain * (1 + 1e-5)).all()
    assert error.sum() < 0.9 * plain.sum()


def test_more_bits_and_smaller_groups_lose_less() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(4))

    def loss(bits: int, group: int | None) -> float:
        return sqnr(weight, dequantize_weight(*quantize_weight(weight, bits, group), group, torch.float32))

    assert loss(8, None) > loss(4, 32) > loss(4, 64) > loss(4, None) > loss(3, None)
    assert loss(4, 32) > loss(3, 32) > loss(2, 32)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [None, 4])
def test_degenerate_weights_are_harmless(bits: int, group: int | None) -> None:
    weight = torch.tensor([[0.0] * 6, [1e-12] * 6, [1e6] * 6, [0, 0, 0, 0, 3.0, -3.0]])
    restored = dequantize_weight(*quantize_weight(weight, bits, group), group, torch.float32)
    assert torch.isfinite(restored).all()
    assert (restored[0] == 0).all()
    assert restored[3, 4] > 0 > restored[3, 5]


def test_large_matrices_are_quantized_in_parts_without_a_seam() -> None:
    weight = torch.randn(1030, 1024, generator=torch.Generator().manual_seed(5))
    codes, scale = quantize_weight(weight, 4, 32)
    for rows in (slice(0, 8), slice(1020, 1030)):
        part_codes, part_scale = quantize_weight(weight[rows], 4, 32)
        assert torch.equal(codes[rows], part_codes)
        assert torch.equal(scale[rows], part_scale)


@settings(deadline=None)
@given(batch=st.integers(0, 3), tokens=st.integers(1, 4), features=st.integers(1, 40), seed=st.integers(0, 999))
def test_activation_codes_follow_the_definition(batch: int, tokens: int, features: int, seed: int) -> None:
    x = torch.randn(batch, tokens, features, generator=torch.Generator().manual_seed(seed))
    codes, scale = quantize_activation(x, (-1,))
    assert scale.shape == (batch, tokens, 1)
    assert torch.equal(codes, codes.round())
    assert codes.numel() == 0 or codes.abs().max() <= 127
    assert torch.allclose(scale[..., 0], x.abs().amax(-1) / 127)
    assert ((codes * scale - x).abs() <= scale * 0.501).all()


def test_one_token_does_not_change_another() -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(6))
    codes, scale = quantize_activation(x, (-1,))
    louder = x.clone()
    louder[1] *= 1000
    codes2, scale2 = quantize_activation(louder, (-1,))
    assert torch.equal(codes[[0, 2]], codes2[[0, 2]])
    assert torch.equal(scale[[0, 2]], scale2[[0, 2]])


def test_silence_is_silent_and_nan_is_loud() -> None:
    codes, scale = quantize_activation(torch.zeros(2, 4), (-1,))
    assert (codes * scale == 0).all()
    for bad in (float("nan"), float("inf")):
        codes, scale = quantize_activation(torch.tensor([[1.0, bad]]), (-1,))
        assert (codes * scale).isnan().any()


def test_straight_through_codes_equal_plain_codes_bit_for_bit() -> None:
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(7)) * torch.logspace(-6, 6, 200)[:, None]
    plain, scale = quantize_activation(x, (-1,))
    twin, twin_scale = quantize_activation(x.clone().requires_grad_(), (-1,))
    assert torch.equal(plain, twin.detach())
    assert torch.equal(scale, twin_scale)
