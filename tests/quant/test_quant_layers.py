import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fewstep.quant import QuantConv, QuantLayer, QuantLinear, Scheme
from fewstep.quant.integer import quantize_activation
from tests.quant import load_float

SCHEMES = ["w8a8", "w8a16", "w4a8", "w4a16", "w4a8row", "w3a8", "w2a16", "w8a8g16"]


def linear(inputs: int, outputs: int, scheme: str, bias: bool = True, seed: int = 0) -> tuple[nn.Linear, QuantLinear]:
    torch.manual_seed(seed)
    source = nn.Linear(inputs, outputs, bias)
    layer = QuantLinear(source, Scheme.parse(scheme))
    load_float(layer, source.weight)
    return source, layer


def conv(scheme: str, *args: int, seed: int = 0, **options: object) -> tuple[nn.Conv2d, QuantConv]:
    torch.manual_seed(seed)
    source = nn.Conv2d(*args, **options)  # type: ignore[arg-type]
    layer = QuantConv(source, Scheme.parse(scheme))
    load_float(layer, source.weight)
    return source, layer


def fake(x: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """Activation quantization written from the definition, in float64."""
    scale = x.double().abs().amax(dims, keepdim=True).clamp_min(1e-30) / 127
    return (x.double() / scale).round() * scale


def sqnr(reference: torch.Tensor, other: torch.Tensor) -> float:
    error = (reference - other).detach().double().square().sum()
    return float(10 * torch.log10(reference.detach().double().square().sum() / error))


@pytest.mark.parametrize("features", [1, 33, 1024])
def test_linear_equals_the_integer_product_to_the_last_integer(features: int) -> None:
    _, layer = linear(features, 24, "w8a8", bias=False)
    x = torch.randn(9, features)
    codes, _ = quantize_activation(x, (-1,))
    integers = (codes.to(torch.int64) @ layer.codes().to(torch.int64).T).float()
    assert torch.equal(F.linear(codes, layer.codes().float()), integers)
    layer.scale.fill_(1.0)
    ones = torch.cat([codes[:, :-1], torch.full((9, 1), 127.0)], 1)  # largest value 127: the activation scale is 1
    expected = (ones.to(torch.int64) @ layer.codes().to(torch.int64).T).float()
    assert torch.equal(layer(ones).round(), expected)


def test_convolution_equals_the_integer_product_to_the_last_integer() -> None:
    _, layer = conv("w8a8", 16, 12, 3, padding=1, bias=False)
    codes = torch.randint(-127, 128, (2, 16, 6, 6)).float()
    codes[:, 0, 0, 0] = 127
    columns = F.unfold(codes, 3, padding=1).to(torch.int64)
    expected = (layer.codes().to(torch.int64) @ columns).view(2, 12, 6, 6)
    layer.scale.fill_(1.0)
    assert torch.equal(layer(codes).round().to(torch.int64), expected)


@settings(deadline=None, max_examples=60)
@given(
    scheme=st.sampled_from(SCHEMES),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 9),
    lead=st.lists(st.integers(0, 3), max_size=3),
    bias=st.booleans(),
)
def test_linear_matches_the_definition_for_any_shape(
    scheme: str, inputs: int, outputs: int, lead: list[int], bias: bool
) -> None:
    _, layer = linear(inputs, outputs, scheme, bias)
    x = torch.randn(*lead, inputs)
    seen = fake(x, (-1,)) if layer.scheme.activation_bits == 8 else x.double()
    expected = F.linear(seen, layer.dequantize(torch.float64), None if layer.bias is None else layer.bias.double())
    assert torch.allclose(layer(x).double(), expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=60)
@given(
    scheme=st.sampled_from(SCHEMES),
    groups=st.sampled_from([1, 2]),
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 4),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "same"]),
    dilation=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "reflect", "circular"]),
    batch=st.integers(0, 2),
    last=st.booleans(),
)
def test_convolution_matches_the_definition_for_any_shape(
    scheme: str, groups: int, inputs: int, outputs: int, kernel: int, stride: int, padding: int | str,
    dilation: int, mode: str, batch: int, last: bool,
) -> None:  # fmt: skip
    source, layer = conv(
        scheme, inputs * groups, outputs * groups, kernel, stride=1 if padding == "same" else stride, padding=padding,
        dilation=dilation, groups=groups, padding_mode=mode,
    )  # fmt: skip
    x = torch.randn(batch, inputs * groups, 7, 8)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    seen = fake(x, (1, 2, 3)) if layer.scheme.activation_bits == 8 else x.double()
    reference = copy.deepcopy(source).double()
    reference.weight = nn.Parameter(layer.dequantize(torch.float64))
    if batch == 0 and mode != "zeros":
        return  # torch pads no empty batch
    assert torch.allclose(layer(x).double(), reference(seen), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradient_is_that_of_the_dequantized_layer(scheme: str) -> None:
    _, layer = linear(40, 6, scheme)
    _, layer2d = conv(scheme, 3, 5, 3, stride=2, padding=1)
    for module, shape in ((layer, (4, 40)), (layer2d, (2, 3, 7, 7))):
        x = torch.randn(*shape, requires_grad=True)
        y = module(x)
        direction = torch.randn_like(y)
        (gradient,) = torch.autograd.grad(y, x, direction)
        z = x.detach().clone().requires_grad_()
        (expected,) = torch.autograd.grad(module.to_float()(z), z, direction)
        assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            assert torch.equal(module(x), y.detach())  # the differentiable twin is the same function


def test_one_image_does_not_change_another() -> None:
    _, layer = conv("w8a8", 4, 4, 3, padding=1)
    x = torch.randn(3, 4, 5, 5)
    alone = layer(x[1:2])
    x[0] *= 1e4
    assert torch.equal(layer(x)[1:2], alone)


def test_non_contiguous_and_unbatched_inputs() -> None:
    _, layer = linear(8, 3, "w4a8")
    x = torch.randn(8, 5)
    assert torch.equal(layer(x.T), layer(x.T.contiguous()))
    assert layer(torch.randn(8)).shape == (3,)
    _, layer2d = conv("w4a8", 2, 3, 3)
    image = torch.randn(2, 6, 6)
    assert torch.equal(layer2d(image), layer2d(image[None])[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a16"])
def test_any_float_type_in_gives_the_same_type_out(scheme: str, dtype: torch.dtype) -> None:
    for layer, x in (
        (linear(32, 8, scheme)[1], torch.randn(4, 32)),
        (conv(scheme, 4, 4, 3)[1], torch.randn(1, 4, 5, 5)),
    ):
        y = layer(x.to(dtype))
        assert y.dtype == dtype
        assert sqnr(layer(x).float(), y.float()) > 30


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_casting_the_model_never_rounds_the_scales(scheme: str) -> None:
    _, layer = linear(64, 8, scheme)
    before = layer.dequantize(torch.float32)
    layer.to(torch.bfloat16)
    assert layer.bias is not None
    assert layer.bias.dtype == torch.bfloat16
    assert layer.weight.dtype == torch.bfloat16
    layer.to(torch.float32)
    assert torch.equal(layer.dequantize(torch.float32), before)


def test_eight_bit_weights_are_closer_than_four_bit() -> None:
    source, x = linear(256, 64, "w8a8")[0], torch.randn(32, 256)
    quality = [sqnr(source(x), linear(256, 64, scheme)[1](x)) for scheme in ("w8a8", "w4a8", "w3a8", "w2a8")]
    assert quality == sorted(quality, reverse=True)
    assert quality[0] > quality[1] + 10
    assert quality[1] > 15


def test_deepcopy_and_state_dict_keep_the_function() -> None:
    _, layer = linear(50, 7, "w3a8")
    x = torch.randn(3, 50)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    _, other = linear(50, 7, "w3a8", seed=1)
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    assert isinstance(other, QuantLayer)
