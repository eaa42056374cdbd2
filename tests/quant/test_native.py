import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fewstep.quant import QuantConv, QuantLayer, QuantLinear, Scheme, native, quantize
from fewstep.quant.calibration import calibrate
from fewstep.quant.integer import quantize_activation
from fewstep.quant.report import resident_bytes
from tests.quant import load_float

needs_int8 = pytest.mark.skipif(not native.available(), reason="no exact int8 product on this CPU")
SCHEMES = st.sampled_from(["w8a8", "w8a8tensor", "w4a8row", "w3a8row", "w2a8row"])


def layer_of(source: nn.Linear | nn.Conv2d, scheme: str) -> QuantLayer:
    layer = (QuantLinear if isinstance(source, nn.Linear) else QuantConv)(source, Scheme.parse(scheme))  # type: ignore[arg-type]
    load_float(layer, source.weight)
    native.keep(layer)  # also for few rows, also below 8 bit
    if layer.native is not None:
        layer.native.least = 0
    return layer


def both(layer: QuantLayer, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the int8 kernel gives, and what the float product of the same integers gives."""
    with torch.no_grad():
        assert layer.native is not None
        layer.native.least = 0
        assert layer.native.takes(x)
        result = layer(x)
        kept, layer.native = layer.native, None
        reference = layer(x)
        layer.native = kept
    return result, reference


@needs_int8
@settings(deadline=None, max_examples=60)
@given(
    scheme=SCHEMES, inputs=st.integers(1, 150), outputs=st.integers(1, 40), bias=st.booleans(),
    lead=st.lists(st.integers(1, 4), max_size=3), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)  # fmt: skip
def test_linear_is_the_float_product_bit_for_bit(
    scheme: str, inputs: int, outputs: int, bias: bool, lead: list[int], dtype: torch.dtype
) -> None:
    torch.manual_seed(inputs)
    layer = layer_of(nn.Linear(inputs, outputs, bias), scheme)
    result, reference = both(layer, torch.randn(*lead, inputs).to(dtype))
    assert result.shape == reference.shape
    assert result.dtype == dtype
    assert torch.equal(result, reference)


@needs_int8
@settings(deadline=None, max_examples=80)
@given(
    scheme=SCHEMES, groups=st.sampled_from([1, 2]), inputs=st.integers(1, 9), outputs=st.integers(1, 9),
    kernel=st.integers(1, 3), stride=st.integers(1, 2), padding=st.sampled_from([0, 1, "same", "valid"]),
    dilation=st.integers(1, 2), batch=st.integers(1, 3), last=st.booleans(), strided=st.booleans(),
)  # fmt: skip
def test_convolution_is_the_float_product_bit_for_bit(
    scheme: str, groups: int, inputs: int, outputs: int, kernel: int, stride: int, padding: int | str, dilation: int,
    batch: int, last: bool, strided: bool,
) -> None:  # fmt: skip
    torch.manual_seed(inputs)
    source = nn.Conv2d(
        inputs * groups, outputs * groups, kernel, 1 if padding == "same" else stride, padding, dilation, groups
    )
    layer = layer_of(source, scheme)
    if layer.native is None:  # an even kernel with padding "same" needs uneven borders
        assert padding == "same"
        assert kernel % 2 == 0
        return
    x = torch.randn(batch, inputs * groups, 7, 16)
    x = x[..., ::2] if strided else x
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    result, reference = both(layer, x)
    assert torch.equal(result, reference)
    if not strided and x.shape[1] > 1 and reference.shape[1] > 1:
        assert result.is_contiguous() == x.is_contiguous()


@needs_int8
def test_sums_are_those_of_the_integers_even_where_float32_would_round() -> None:
    layer = layer_of(nn.Linear(4096, 8, bias=False), "w8a8")
    layer.packed.fill_(127)
    layer.packed[0, ::2] = -127
    layer.scale.fill_(1.0)
    x = torch.full((2, 4096), 127.0)  # the activation scale is 1
    x[1, 1::3] = -126.0
    codes, _ = quantize_activation(x, (-1,))
    expected = codes.long() @ layer.codes().long().T
    assert int(expected.abs().max()) > 2**24
    assert torch.equal(layer(x), expected.float())


@needs_int8
def test_convolution_sums_are_those_of_the_integers() -> None:
    layer = layer_of(nn.Conv2d(32, 6, 3, padding=1, bias=False), "w8a8")
    layer.scale.fill_(1.0)
    x = torch.randint(-127, 128, (2, 32, 6, 5)).float()
    x[:, 0, 0, 0] = 127.0
    columns = F.unfold(x, 3, padding=1).long()
    assert torch.equal(layer(x).long(), (layer.codes().long() @ columns).view(2, 6, 6, 5))


@needs_int8
def test_static_scales_clip_and_what_is_not_finite_is_noticed() -> None:
    layer = layer_of(nn.Linear(16, 4, bias=False), "w8a8")
    assert layer.native is not None
    static = torch.tensor(0.01)
    x = torch.randn(3, 16)
    scale = layer.scale.flatten()
    y = layer.native(x, layer.packed, layer.codes, scale, static)
    codes = (x / static).round().clamp(-127, 127)
    assert torch.allclose(y, (codes @ layer.codes().float().T) * scale * static)
    for wrong in (float("nan"), float("inf"), -float("inf")):
        x[1, 3] = wrong
        for input_scale in (None, static):
            bad = layer.native(x, layer.packed, layer.codes, scale, input_scale)
            finite = bad.isfinite()
            assert not (finite.all() if input_scale is not None else finite[1].all())
            assert input_scale is not None or finite[[0, 2]].all()


@needs_int8
def test_tiny_calls_take_the_float_product_and_the_table_says_so() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 512), nn.Conv2d(8, 8, 3, stride=2, padding=1))
    report = quantize(model, "w8a8", rules=())
    reasons = {row.name: row.reason for row in report.rows}
    assert "4,096 rows" in reasons["0"]
    assert reasons["1"] == ""
    small, large, conv = (layer.native for layer in model)
    assert not small.takes(torch.zeros(4095, 32))
    assert small.takes(torch.zeros(4096, 32))
    assert large.takes(torch.zeros(1, 256, 32))
    side = 2 * 86  # 576 weights at every second place of both sides
    assert conv.takes(torch.zeros(1, 8, side, side))
    assert not conv.takes(torch.zeros(1, 8, side - 4, side - 4))


@needs_int8
@pytest.mark.parametrize(
    "source", [nn.Linear(40, 12), nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Conv2d(6, 6, 3, groups=2)]
)
@pytest.mark.parametrize("shift", [0.0, 1.0, 30.0])
def test_affine_inputs_take_the_kernel_with_their_zero_point(source: nn.Module, shift: float) -> None:
    torch.manual_seed(0)
    x = torch.rand(3, 40) if isinstance(source, nn.Linear) else torch.rand(3, 6, 9, 8)
    x = 2 * x - 1 + shift
    model = nn.Sequential(copy.deepcopy(source))
    wanted = model(x).detach()
    quantize(model, "w8a8-affine", rules=(), calibration=calibrate(model, lambda c, s: model(x), [0], [0]))
    layer = model[0]
    assert isinstance(layer, QuantLayer)
    for seen in (x, 3 * x):  # inside the range, and clipped
        result, reference = both(layer, seen)
        assert torch.equal(result, reference)
    assert float((layer(x) - wanted).norm() / wanted.norm()) < 0.02


def test_one_sided_inputs_keep_twice_the_levels() -> None:
    torch.manual_seed(0)
    source = nn.Linear(64, 32, bias=False)
    x = torch.nn.functional.gelu(3 * torch.randn(256, 64))
    errors = []
    for scheme in ("w8a8-static", "w8a8-affine"):
        model = nn.Sequential(copy.deepcopy(source))
        quantize(model, scheme, calibration=calibrate(model, lambda c, s, m=model: m(x), [0], [0]))
        rounded = F.linear(x, model[0].dequantize())  # the error of the inputs alone
        errors.append(float((model(x) - rounded).square().mean()))
    assert errors[1] < 0.5 * errors[0]


@needs_int8
def test_the_kept_copy_follows_the_codes() -> None:
    torch.manual_seed(0)
    first, second = nn.Sequential(nn.Linear(24, 8)), nn.Sequential(nn.Linear(24, 8))
    x = torch.randn(5, 24)
    for model in (first, second):
        quantize(model, "w8a8", rules=())
        model[0].native.least = 0
    before = resident_bytes(first)
    with torch.no_grad():
        old, other = first(x), second(x)
        assert resident_bytes(first) == before + 24 * 8
        twin = copy.deepcopy(first)
        twin[0].native.least = 0
        first.load_state_dict(second.state_dict())  # in place
        assert torch.equal(first(x), other)
        first[0].packed = twin[0].packed.clone()  # replaced
        first[0].scale, first[0].bias = twin[0].scale, twin[0].bias
        assert torch.equal(first(x), old)
        assert torch.equal(twin(x), old)
        assert native.keep(first, False) == 0
        assert resident_bytes(first) == before
        assert torch.equal(first(x), old)
        first.to(torch.bfloat16).to(torch.float32)
        assert native.keep(first) == 0


@needs_int8
def test_fewer_bits_keep_no_copy_and_few_rows_take_the_float_product() -> None:
    layer = QuantLinear(nn.Linear(8, 8), Scheme.parse("w4a8row"))
    load_float(layer, torch.randn(8, 8))
    assert layer.native is not None
    layer.native.least = 0
    assert not layer.native.takes(torch.randn(native.WORTH - 1, 8))
    x = torch.randn(native.WORTH, 8)
    assert layer.native.takes(x)
    layer(x)
    assert layer.native.nbytes == 0


def test_what_needs_a_gradient_or_has_groups_takes_the_float_product() -> None:
    layer = QuantLinear(nn.Linear(64, 8), Scheme.parse("w8a8"))
    assert layer.native is not None
    layer.native.least = 0
    assert layer.native.takes(torch.randn(4, 64)) == native.available()
    assert not layer.native.takes(torch.randn(4, 64, requires_grad=True))
    assert not layer.native.takes(torch.randn(4, 64, dtype=torch.float64))
    assert QuantLinear(nn.Linear(64, 8), Scheme.parse("w4a8")).native is None
    assert QuantLinear(nn.Linear(64, 8), Scheme.parse("w8a16")).native is None
    report = quantize(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")), "w8a8", rules=())
    assert report.rows[0].kernel == "int8 product in float"
    assert "padding" in report.rows[0].reason


def test_a_kernel_that_saturates_is_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    real = native._linear

    def saturating(x: torch.Tensor, *rest: object) -> tuple[torch.Tensor, torch.Tensor]:
        y, scale = real(x, *rest)  # type: ignore[arg-type]
        return y.clamp(-(2.0**15), 2.0**15), scale

    native.available.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(native, "_linear", saturating)
        assert not native.available()
        row = quantize(nn.Sequential(nn.Linear(8, 8)), "w8a8").rows[0]
        assert row.kernel == "int8 product in float"
        assert "saturates" in row.reason
    native.available.cache_clear()
