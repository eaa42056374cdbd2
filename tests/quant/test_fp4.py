"""MXFP4 and NVFP4 against their definitions and, to the last bit, against torchao's own quantization."""

import pytest
import torch
from torch import nn

from fewstep.quant import QuantLinear, Scheme, fp4, quantize
from fewstep.quant.grids import decode, fit_grid
from fewstep.quant.layer import QuantLayer
from tests.quant import load_float


def weights() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 128, generator=generator) * torch.logspace(-6, 3, 48)[:, None]
    weight[3, :32] = 0
    weight[5, 7] = 1e4
    weight[6] = torch.arange(128) * 0.25 - 16  # many ties
    return weight


def bytes_of(codes: torch.Tensor) -> torch.Tensor:
    """Two codes per byte, the first in the low half: torchao's packing."""
    pattern = codes.to(torch.uint8) & 15
    return pattern[:, ::2] | (pattern[:, 1::2] << 4)


def test_every_number_goes_to_the_nearest_of_the_sixteen_and_ties_to_even() -> None:
    x = torch.arange(-800, 801) / 100
    values = torch.tensor(fp4.MAGNITUDES)
    both = torch.cat([values, -values])
    found = fp4.decode_fp4(fp4.encode_fp4(x), torch.float32)
    assert torch.equal((found - x).abs(), (both[None] - x[:, None]).abs().amin(1))
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    even = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0])
    assert torch.equal(fp4.decode_fp4(fp4.encode_fp4(ties), torch.float32), even)
    assert torch.equal(fp4.decode_fp4(fp4.encode_fp4(-ties), torch.float32), -even)


def test_scales_are_those_of_the_definitions() -> None:
    weight = weights()
    _, grid = fit_grid(weight, Scheme.parse("mxfp4"))
    reach = weight.view(48, 4, 32).abs().amax(-1)
    alive = reach > 0
    assert torch.equal(grid.scale[alive], 2.0 ** (reach[alive].log2().floor() - 2))
    _, grid = fit_grid(weight, Scheme.parse("nvfp4"))
    assert grid.whole is not None
    assert float(grid.whole) == pytest.approx(float(weight.abs().max()) / (448 * 6))
    blocks = grid.scale / grid.whole
    assert float(blocks.max()) == 448
    assert torch.allclose(blocks, blocks.to(torch.float8_e4m3fn).float(), rtol=1e-6)


def test_mxfp4_is_that_of_torchao() -> None:
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    weight, scheme = weights(), Scheme.parse("mxfp4")
    scale, data = mx.to_mx(weight, torch.float4_e2m1fn_x2, 32)
    codes, grid = fit_grid(weight, scheme)
    assert torch.equal(bytes_of(codes), data.view(torch.uint8))
    assert torch.equal(fp4.to_bytes(grid.scale, None), scale.view(torch.uint8))
    theirs = mx.to_dtype(data, scale, torch.float4_e2m1fn_x2, 32, torch.float32)
    assert torch.equal(decode(codes, grid, scheme), theirs)


def test_nvfp4_is_that_of_torchao() -> None:
    nv = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    weight, scheme = weights(), Scheme.parse("nvfp4")
    whole = nv.per_tensor_amax_to_scale(weight.abs().max())
    theirs = nv.NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=whole)
    codes, grid = fit_grid(weight, scheme)
    assert torch.equal(bytes_of(codes), theirs.qdata.view(torch.uint8))
    assert torch.equal(fp4.to_bytes(grid.scale, grid.whole), theirs.scale.view(torch.uint8).view(48, 8))
    assert torch.equal(decode(codes, grid, scheme), theirs.dequantize(torch.float32))


@pytest.mark.parametrize(("name", "bits"), [("mxfp4", 4 + 8 / 32), ("nvfp4", 4 + 8 / 16 + 32 / 8192)])
def test_storage_is_really_packed_and_gives_the_grid_back(name: str, bits: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 64))
    codes, grid = fit_grid(model[0].weight, Scheme.parse(name))
    report = quantize(model, name)
    layer = model[0]
    assert isinstance(layer, QuantLayer)
    assert report.bits_per_weight == pytest.approx(bits)
    assert torch.equal(layer.codes(), codes)
    assert torch.equal(layer.grid().scale, grid.scale)


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_weights_of_all_zeros_and_odd_widths_are_harmless(name: str) -> None:
    torch.manual_seed(0)
    source = nn.Linear(37, 5)
    with torch.no_grad():
        source.weight[2] = 0
    layer = QuantLinear(source, Scheme.parse(name))
    load_float(layer, source.weight)
    found = layer.dequantize()
    assert bool((found[2] == 0).all())
    assert float((found - source.weight).norm() / source.weight.norm()) < 0.2
    load_float(layer, torch.zeros(5, 37))
    assert bool((layer.dequantize() == 0).all())
