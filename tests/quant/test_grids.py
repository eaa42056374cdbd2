"""Weight formats against their definitions, and layers that carry them against float products."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fewstep.quant import QuantConv, QuantLinear, Scheme, quantize
from fewstep.quant.calibration import calibrate
from fewstep.quant.grids import NF4, QuantGrid, decode, encode, fit_grid
from fewstep.quant.layer import QuantLayer

FORMATS = [
    "w8",
    "w4",
    "w3",
    "w2",
    "w4row",
    "w4tensor",
    "w4-asym",
    "w2row-asym",
    "w8-asym",
    "nf4",
    "nf4row",
    "fp8",
    "fp8g16",
    "mxfp4",
    "nvfp4",
]


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(FORMATS), rows=st.integers(1, 5), columns=st.integers(1, 150), seed=st.integers(0, 99))
def test_every_weight_goes_to_the_nearest_value_of_its_grid(name: str, rows: int, columns: int, seed: int) -> None:
    scheme = Scheme.parse(name)
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    codes, grid = fit_grid(weight, scheme)
    assert codes.dtype == torch.int8
    assert codes.shape == weight.shape
    values = decode(codes, grid, scheme)
    if scheme.weight_format == "fp8":
        every = torch.arange(-128, 128, dtype=torch.int8)
        every = every[every.view(torch.float8_e4m3fn).float().isfinite()]
    else:
        half = 2 ** (scheme.weight_bits - 1)
        every = torch.arange(
            -half + (scheme.weight_format == "int" and scheme.weight_bits == 8), half, dtype=torch.int8
        )
    for code in every:
        other = decode(torch.full_like(codes, int(code)), grid, scheme)
        assert bool(((values - weight).abs() <= (other - weight).abs() + 1e-6).all())


def test_nf4_values_are_the_normal_quantiles_of_their_definition() -> None:
    # arXiv 2305.14314, eq. 4 with the two halves of bitsandbytes: 8 positive and 7 negative values and an exact zero
    offset = 0.5 * ((1 - 1 / 32) + (1 - 1 / 30))

    def quantile(p: torch.Tensor) -> torch.Tensor:
        return math.sqrt(2) * torch.erfinv(2 * p.double() - 1)

    top = quantile(torch.linspace(offset, 0.5, 9, dtype=torch.float64))[:-1]
    bottom = -quantile(torch.linspace(offset, 0.5, 8, dtype=torch.float64))[:-1]
    values = torch.cat([top, bottom, torch.zeros(1)]).sort().values
    assert torch.allclose(values / values.max(), torch.tensor(NF4, dtype=torch.float64), atol=1e-6)


def test_asymmetric_codes_suit_one_sided_weights() -> None:
    weight = torch.rand(8, 64, generator=torch.Generator().manual_seed(0)) + 0.05
    errors = []
    for name in ("w4row", "w4row-asym"):
        scheme = Scheme.parse(name)
        codes, grid = fit_grid(weight, scheme)
        errors.append(float((decode(codes, grid, scheme) - weight).square().mean()))
    assert errors[1] < 0.6 * errors[0]


def test_zero_is_exact_in_every_format() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    weight[:, ::3] = 0
    for name in FORMATS:
        scheme = Scheme.parse(name)
        codes, grid = fit_grid(weight, scheme)
        assert bool((decode(codes, grid, scheme)[:, ::3] == 0).all()), name


def test_all_zero_weights_stay_zero() -> None:
    for name in FORMATS:
        scheme = Scheme.parse(name)
        codes, grid = fit_grid(torch.zeros(3, 40), scheme)
        assert float(decode(codes, grid, scheme).abs().max()) == 0, name


def test_importance_moves_the_clipping_point_to_what_matters() -> None:
    weight = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    weight[0, 0] = 12.0
    scheme, errors = Scheme.parse("w4row"), []
    for importance in (torch.ones(64), torch.cat([torch.full((1,), 1e-6), torch.ones(63)])):
        codes, grid = fit_grid(weight, scheme, [1 - 0.025 * i for i in range(31)], importance)
        errors.append(float((decode(codes, grid, scheme) - weight)[:, 1:].square().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_codes_on_a_given_grid() -> None:
    scheme = Scheme.parse("w4g2")
    grid = QuantGrid(torch.tensor([[1.0, 0.5]]))
    assert encode(torch.tensor([[2.4, -9.0, 2.4, 1.1]]), grid, scheme).tolist() == [[2, -8, 5, 2]]


LAYERS = [
    "w4a16-asym",
    "w4a8-asym",
    "w8a8tensor",
    "nf4",
    "nf4a8",
    "fp8",
    "fp8afp8",
    "w8afp8",
    "w8a8-static",
    "w4a8-static",
    "w8a8-affine",
    "w4a8-affine",
    "w4a4",
    "w4a4g16-ag4",
    "mxfp4a8",
    "nvfp4",
    "nvfp4a4-ag5",
]


def layers(scheme: str) -> tuple[list[QuantLayer], list[torch.Tensor]]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(6, 10, 3, stride=2, padding=1), nn.Flatten(1), nn.Linear(160, 24))
    x = torch.randn(5, 6, 7, 7)
    calibration = calibrate(network, lambda c, s: network(x), [0], [0])
    quantize(network, scheme, rules=(), calibration=calibration)
    found = [m for m in network if isinstance(m, QuantLayer)]
    return found, [x, torch.randn(5, 160)]


@pytest.mark.parametrize("scheme", LAYERS)
def test_layers_are_float_products_of_rounded_factors(scheme: str) -> None:
    found, inputs = layers(scheme)
    for layer, x in zip(found, inputs, strict=True):
        dims = (-1,) if isinstance(layer, QuantLinear) else (1, 2, 3)
        kind = layer.scheme.activation_format if layer.scheme.activation_bits < 16 else "none"
        top, group = 2 ** (layer.scheme.activation_bits - 1) - 1, layer.scheme.activation_group
        seen = x.double()
        if kind == "static":
            assert layer.input_scale is not None
            seen = (seen / layer.input_scale).round().clamp(-127, 127) * layer.input_scale
        elif kind == "affine":
            step, zero = layer.input_scale, layer.input_zero
            seen = ((seen / step + zero).round().clamp(0, 255) - zero) * step
        elif kind == "dynamic":
            parts = [seen] if group is None else seen.split(group, dims[0])
            scales = [part.abs().amax(dims, keepdim=True) / top for part in parts]
            seen = torch.cat([(p / s).round() * s for p, s in zip(parts, scales, strict=True)], dims[0])
        elif kind == "fp8":
            scale = x.abs().amax(dims, keepdim=True) / 448
            seen = (x / scale).to(torch.float8_e4m3fn).double() * scale
        weight = layer.dequantize(torch.float64)
        bias = None if layer.bias is None else layer.bias.double()
        if isinstance(layer, QuantConv):
            expected = F.conv2d(seen, weight, bias, stride=2, padding=1)
        else:
            expected = F.linear(seen, weight, bias)
        # a float32 quotient may fall on the other side of a tie
        assert float((layer(x).double() - expected).abs().mean()) < 2e-3 * float(expected.abs().mean())


@pytest.mark.parametrize("scheme", LAYERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_keeps_the_stored_values(scheme: str, dtype: torch.dtype) -> None:
    found, inputs = layers(scheme)
    for layer, x in zip(found, inputs, strict=True):
        before = layer.dequantize()
        layer.to(dtype)
        assert layer(x.to(dtype)).dtype == dtype
        assert torch.equal(layer.dequantize(), before)


def test_static_scales_clip_and_dynamic_ones_do_not() -> None:
    (static, _), (x, _) = layers("w8a8-static")
    (dynamic, _), _ = layers("w8a8")
    assert torch.allclose(static(x), dynamic(x), atol=0.05)
    gap = (static(10 * x) - dynamic(10 * x)).abs().mean()
    assert float(gap) > 0.5
