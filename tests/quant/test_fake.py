"""Float twins: the same function as the packed layer, gradients straight through, there and back without change."""

import copy

import pytest
import torch
from torch import nn

from fewstep.quant import QuantLayer, Scheme, quantize
from fewstep.quant.calibration import calibrate
from fewstep.quant.fake import FakeLayer, fake_static, fake_weight, to_fake, to_packed
from fewstep.quant.grids import QuantGrid, decode, encode, fit_grid

SCHEMES = [
    "w8a8", "w4a8", "w3a16", "w2a16", "w4a16-asym", "w4a8row-asym", "w8a8tensor", "nf4", "nf4a8", "fp8", "fp8afp8",
    "w8a8-static", "w4a8-smooth-r4", "w4a8-static-smooth", "w8a8-smooth-hadamard", "w4a8-hadamard-r4",
    "w8a8-affine", "w4a4", "w4a4-ag8", "mxfp4", "nvfp4a8",
]  # fmt: skip


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 16, 3, stride=2), nn.Flatten(1), nn.Linear(144, 40),
        nn.SiLU(), nn.Linear(40, 20, bias=False),
    )  # fmt: skip


def low(scheme: str) -> tuple[nn.Module, torch.Tensor]:
    """A quantized model, and inputs."""
    network = model()
    x = torch.randn(4, 3, 8, 8)
    calibration = calibrate(network, lambda c, s: network(x), [0], [0])
    quantize(network, scheme, rules=(), calibration=calibration)
    return network, x


@pytest.mark.parametrize("scheme", SCHEMES)
def test_twin_is_the_same_function_and_packs_to_the_same_layer(scheme: str) -> None:
    network, x = low(scheme)
    before = {name: m.stored() for name, m in network.named_modules() if isinstance(m, QuantLayer)}
    y = network(x).detach()
    fake = to_fake(copy.deepcopy(network))
    assert sum(isinstance(m, FakeLayer) for m in fake.modules()) == 4
    assert torch.allclose(fake(x), y, atol=1e-4 * float(y.abs().max()))
    packed = to_packed(fake)
    assert torch.allclose(packed(x), y, atol=1e-6)
    for name, m in packed.named_modules():
        if isinstance(m, QuantLayer):
            assert torch.equal(m.codes(), before[name].codes)
            assert torch.equal(m.grid().scale, before[name].grid.scale)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_part_learns(scheme: str) -> None:
    network, x = low(scheme)
    # off the grid: on it the scale's gradient, round(v) - v, is zero
    weights = {name: m.dequantize() * 1.07 for name, m in network.named_modules() if isinstance(m, QuantLayer)}
    fake = to_fake(network, weights)
    fake(x).square().mean().backward()
    for name, parameter in fake.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_gradient_is_that_of_the_identity_inside_the_range_and_zero_outside() -> None:
    scheme = Scheme.parse("w4a16row")
    weight = torch.tensor([[-20.0, -8.0, 0.3, 6.6, 9.0]], requires_grad=True)
    scale = torch.ones(1, 1, requires_grad=True)
    rounded = fake_weight(weight, QuantGrid(scale), scheme)
    assert rounded.tolist() == [[-8.0, -8.0, 0.0, 7.0, 7.0]]
    rounded.sum().backward()
    assert weight.grad is not None
    assert scale.grad is not None
    assert weight.grad.tolist() == [[0.0, 1.0, 1.0, 1.0, 0.0]]
    # LSQ, eq. 3: round(v) - v inside, the bound outside
    assert float(scale.grad) == pytest.approx(-8 + 0 - 0.3 + (7 - 6.6) + 7, abs=1e-5)


def test_static_inputs_have_a_gradient_to_their_scale() -> None:
    x = torch.tensor([0.26, 100.0], requires_grad=True)
    scale = torch.tensor(0.1, requires_grad=True)
    y = fake_static(x, scale)
    assert torch.allclose(y, torch.tensor([0.3, 12.7]))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 0.0]
    assert float(scale.grad) == pytest.approx(3 - 2.6 + 127, abs=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["w4a8", "w2a16", "nf4", "fp8", "mxfp4", "nvfp4"])
def test_rounding_agrees_with_the_packed_codes(scheme: str) -> None:
    torch.manual_seed(0)
    kind, weight = Scheme.parse(scheme), torch.randn(6, 70)
    codes, grid = fit_grid(weight, kind)
    assert torch.equal(encode(weight, grid, kind), codes)
    assert torch.allclose(fake_weight(weight, grid, kind), decode(codes, grid, kind), atol=1e-6)


def test_training_from_float_weights_recovers_what_rounding_lost() -> None:
    network = model()
    weights = {name: m.weight.detach() for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    x, target = torch.randn(64, 3, 8, 8), None
    with torch.no_grad():
        target = network(x)
    quantize(network, "w2a16", rules=())
    start = float((network(x) - target).square().mean())
    fake = to_fake(network, weights)
    optimizer = torch.optim.Adam(fake.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        (fake(x) - target).square().mean().backward()
        optimizer.step()
    assert float((to_packed(fake)(x) - target).square().mean()) < 0.5 * start
