import copy
import json
from collections.abc import Callable

import pytest
import torch
from rich.console import Console
from torch import nn

from fewstep.errors import FewstepError
from fewstep.quant import QuantConv, QuantLayer, QuantLinear, Rule, Scheme, dequantize, quantize
from fewstep.quant.report import resident_bytes, tensor_bytes

Build = Callable[[], nn.Module]
Evaluate = Callable[..., torch.Tensor]


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 36, 16), nn.Embedding(4, 3)
    )


def sqnr(reference: torch.Tensor, other: torch.Tensor) -> float:
    return float(10 * torch.log10(reference.square().sum() / (reference - other).square().sum()))


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_nothing_is_skipped_silently(build: Build, scheme: str) -> None:
    model = build()
    expected = {name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))}
    floats = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    report = quantize(model, scheme)
    assert {row.name for row in report.rows} == expected
    assert {row.name for row in report.rows if row.quantized} == floats
    assert all(row.quantized or row.reason for row in report.rows)
    assert not any(isinstance(module, nn.Linear | nn.Conv2d) for module in model.modules())
    assert sum(row.bytes_after for row in report.rows) <= report.resident_after
    assert report.coverage > 0.9


def test_outputs_stay_close_and_closer_with_more_bits(build: Build, evaluate: Evaluate) -> None:
    reference = evaluate(build())
    quality = []
    for scheme in ("w8a16", "w8a8", "w4a8"):
        model = build()
        quantize(model, scheme)
        output = evaluate(model)
        assert output.shape == reference.shape
        quality.append(sqnr(reference, output))
    assert quality[0] > quality[1] > quality[2] > 5


def test_first_last_and_conditioning_layers_get_more_bits(build_unet: Build) -> None:
    rows = {row.name: row for row in quantize(build_unet(), "w4a8").rows}
    assert rows["conv_in"].bits == rows["conv_out"].bits == "w8a8"
    assert rows["time_embedding.linear_1"].bits == "w8a16"
    assert all(rows[name].reason for name in ("conv_in", "conv_out", "time_embedding.linear_1"))
    inner = "down_blocks.0.attentions.0.proj_out"  # only the model's own proj_out is a last layer
    assert rows[inner].bits == "w4a8"
    bare = {row.name: row for row in quantize(build_unet(), "w4a8", rules=()).rows}
    assert bare["conv_in"].bits == bare["time_embedding.linear_1"].bits == "w4a8"


def test_rules_never_lower_the_bits() -> None:
    rule = Rule(("0",), Scheme(8, 8), "why")
    assert rule.adapt(Scheme(4, 16, 32)) == Scheme(8, 16)
    assert rule.adapt(Scheme(8, 8)) == Scheme(8, 8)
    assert Rule(("0",), Scheme(4, 8, 32), "why").adapt(Scheme(8, 16)) == Scheme(8, 16)


def test_skip_keeps_layers_and_says_so(build_unet: Build) -> None:
    model = build_unet()
    report = quantize(model, "w8a8", skip=["mid_block", "*.to_q"])
    assert isinstance(model.mid_block.resnets[0].conv1, nn.Conv2d)
    kept = {row.name for row in report.skipped}
    assert "mid_block.resnets.0.conv1" in kept
    assert any(name.endswith("to_q") for name in kept)
    assert {row.reason for row in report.skipped} == {"kept on request"}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"scheme": "w5"}, "scheme|bits"),
        ({"scheme": "w8a8", "backend": "torchoa"}, "torchao"),
        ({"scheme": "w8a8", "skip": ["conv_inn"]}, "conv_inn"),
        ({"scheme": "w8a8", "skip": "conv_in"}, "list"),
    ],
)
def test_mistakes_are_refused_before_anything_changes(build_unet: Build, arguments: dict, word: str) -> None:
    model = build_unet()
    with pytest.raises(FewstepError, match=word):
        quantize(model, **arguments)
    assert not any(isinstance(module, QuantLayer) for module in model.modules())


def test_twice_single_meta_and_nan_are_refused() -> None:
    model = small()
    quantize(model, "w8a8")
    with pytest.raises(FewstepError, match="already"):
        quantize(model, "w8a8")
    with pytest.raises(FewstepError, match="Sequential"):
        quantize(nn.Linear(2, 2), "w8a8")
    with torch.device("meta"), pytest.raises(FewstepError, match="not loaded"):
        quantize(nn.Sequential(nn.Linear(2, 2)), "w8a8")
    broken = small()
    with torch.no_grad():
        broken[3].weight[0, 0] = float("nan")
    with pytest.raises(FewstepError, match="'3'"):
        quantize(broken, "w8a8")
    assert isinstance(broken[0], nn.Conv2d)


def test_layer_types_without_low_bit_form_are_listed_or_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Bilinear(2, 2, 2), nn.PReLU(2))
    report = quantize(model, "w8a8", rules=())
    reasons = {row.name: row.reason for row in report.rows if not row.quantized}
    assert set(reasons) == {"1", "2"}
    assert set(reasons.values()) == {"not a Linear, convolution or Embedding"}
    with pytest.raises(FewstepError, match="no Linear, convolution or Embedding"):
        quantize(nn.Sequential(nn.Bilinear(1, 1, 3), nn.LayerNorm(4)), "w8a8")


@pytest.mark.parametrize("scheme", ["w4g48", "w3g7-asym", "w8a8g10", "w4a4g48-ag7", "mxfp4"])
def test_a_group_that_does_not_divide_leaves_a_shorter_last_one(scheme: str) -> None:
    torch.manual_seed(0)
    source, x = nn.Linear(100, 6), torch.randn(3, 100)
    model = nn.Sequential(copy.deepcopy(source))
    quantize(model, scheme, rules=())
    layer = model[0]
    assert isinstance(layer, QuantLayer)
    size = layer.scheme.group_size or 1
    assert layer.scale.shape == (6, -(-100 // size))
    # the last group has a scale of its own: what lies before it does not change its weights
    with torch.no_grad():
        source.weight[:, : 100 - 100 % size] *= 50
    other = nn.Sequential(copy.deepcopy(source))
    quantize(other, scheme, rules=())
    ends = [m[0].dequantize()[:, 100 - 100 % size :] for m in (model, other)]  # type: ignore[operator]
    assert torch.equal(*ends)
    assert model(x).shape == (3, 6)


class Special(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def test_shared_and_special_layers() -> None:
    torch.manual_seed(0)
    twin = nn.Linear(4, 4)
    tied, embedding = nn.Linear(4, 9, bias=False), nn.Embedding(9, 4)
    tied.weight = embedding.weight
    model = nn.ModuleDict(
        {"a": twin, "b": nn.Sequential(twin), "tied": tied, "emb": embedding, "special": Special(4, 4)}
    )
    report = quantize(model, "w8a8")
    assert isinstance(model["a"], QuantLinear)
    assert model["a"] is model["b"][0]
    assert {row.name for row in report.skipped} == {"tied", "emb", "special"}
    assert tied.weight is embedding.weight


def test_bytes_are_those_of_the_tensors() -> None:
    model = small()
    before = sum(p.numel() * 4 for p in model.parameters())
    report = quantize(model, "w4a16", rules=())
    assert report.resident_before == report.disk_before == before
    weights = 8 * 27 + 16 * 288
    codes = 8 * 14 + 16 * 144  # 27 codes of 4 bit take 14 bytes
    scales = 2 * (8 * 1 + 16 * 9)
    rest = 4 * (8 + 16 + 16) + 12 + 4 * 4  # biases, normalization; the embedding in 8 bits with four scales
    assert report.resident_after == report.disk_after == codes + scales + rest
    assert report.bits_per_weight == pytest.approx(8 * (codes + scales) / weights)
    assert report.coverage == pytest.approx((weights + 12) / (before / 4))
    assert resident_bytes(model) == report.resident_after


def test_shared_storages_count_once_and_subclasses_are_opened() -> None:
    from torchao.quantization import IntxWeightOnlyConfig, quantize_

    x = torch.zeros(100)
    assert tensor_bytes([x[:10], x, x.view(10, 10), x[5:]]) == 400
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    quantize_(model, IntxWeightOnlyConfig(torch.int4))
    assert 64 * 64 <= resident_bytes(model) < 64 * 64 * 2  # one byte per value: the outer tensor claims four


def test_report_reads_as_table_and_json(build_unet: Build) -> None:
    report = quantize(build_unet(), "w4a8", skip=["*.to_k"])
    text = json.loads(json.dumps(report.to_dict()))
    assert text["coverage"] == report.coverage
    assert len(text["rows"]) == len(report.rows)
    for full in (False, True):
        console = Console(width=220, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(report.table(full=full))
        shown = console.export_text()
        assert "conv_in" in shown
        assert "kept on request" in shown
    assert "down_blocks.0.resnets.0.conv1" in shown


def test_dequantize_gives_float_layers_with_the_same_weights(build_unet: Build, evaluate: Evaluate) -> None:
    model = build_unet()
    quantize(model, "w4a16", rules=())
    output = evaluate(model)
    dequantize(model)
    assert not any(isinstance(module, QuantLayer) for module in model.modules())
    assert torch.allclose(evaluate(model), output, atol=1e-5)


def test_training_mode_and_copies_survive(build_unet: Build, evaluate: Evaluate) -> None:
    model = build_unet().train()
    quantize(model, "w4a8")
    assert all(module.training for module in model.modules())
    model.eval()
    assert torch.equal(evaluate(copy.deepcopy(model)), evaluate(model))
    assert isinstance(model.conv_in, QuantConv)


def test_gradient_reaches_the_input_of_a_whole_network(build_unet: Build) -> None:
    """What a gradient search needs: the derivative through the quantized network, near the float one."""
    gradients = []
    for scheme in (None, "w8a8", "w4a8"):
        model = build_unet().requires_grad_(False)
        if scheme:
            quantize(model, scheme)
        torch.manual_seed(2)
        x = torch.randn(1, 4, 8, 8, requires_grad=True)
        model(x, 10, torch.randn(1, 5, 16)).sample.square().sum().backward()
        gradients.append(x.grad)
    assert sqnr(gradients[0], gradients[1]) > 15
    assert sqnr(gradients[0], gradients[2]) > 3
