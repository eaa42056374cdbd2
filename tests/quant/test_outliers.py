"""Inputs that 8 bits cannot carry are found by what they do to the network's output, and stay as they are."""

import copy

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep.quant import QuantLayer, Scheme, quantize
from fewstep.quant.calls import spread_calls
from fewstep.quant.fidelity import sqnr
from fewstep.quant.outliers import input_errors, layer_sqnr, wide_layers
from fewstep.quant.rules import decisions_by_rules


class Blocks(nn.Module):
    """Six layers; those at `spoiled` see one feature a thousand times larger, whose weights are so much smaller."""

    def __init__(self, spoiled=()):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(6))
        self.loud = torch.ones(6, 32)
        self.loud[list(spoiled), 3] = 1000.0
        with torch.no_grad():
            for layer, loud in zip(self.layers, self.loud, strict=True):
                layer.weight /= loud

    def forward(self, x):
        for layer, loud in zip(self.layers, self.loud, strict=True):
            x = torch.tanh(layer(x * loud))
        return x


@pytest.fixture
def call():
    return (torch.randn(16, 32, generator=torch.Generator().manual_seed(1)),), {}


def schemes(model, name="w8a8"):
    given = decisions_by_rules(model, Scheme.parse(name), (), ())
    return {layer: scheme for layer, (scheme, _) in given.modules.items() if scheme is not None}


def test_only_the_layers_with_outliers_keep_wide_inputs(call):
    model = Blocks(spoiled=(1, 4))
    wide = wide_layers(model, schemes(model), [call])
    assert {"layers.1", "layers.4"} == set(wide)
    left, ratio = wide["layers.1"]
    assert left < 20
    assert ratio > 3
    assert wide_layers(Blocks(), schemes(model), [call]) == {}


def test_the_measured_error_is_that_of_the_rounded_product(call):
    model = Blocks(spoiled=(0,))
    seen = call[0][0] * model.loud[0]
    step = seen.abs().amax(1, keepdim=True) / 127
    weight = model.layers[0].weight.detach()
    expected = sqnr(seen @ weight.T, ((seen / step).round() * step) @ weight.T)
    found, ratio = input_errors(model, {"layers.0": Scheme(8, 8)}, [call])["layers.0"]
    assert found == pytest.approx(expected, abs=0.1)
    assert ratio == pytest.approx(float(seen.abs().max() / seen.square().mean().sqrt()), rel=1e-4)


def test_an_example_call_saves_a_network_that_w8a8_would_break(call):
    (x,), _ = call
    model = Blocks(spoiled=(2,))
    truth = model(x).detach()
    broken, saved = copy.deepcopy(model), copy.deepcopy(model)
    quantize(broken, "w8a8", rules=())
    report = quantize(saved, "w8a8", rules=(), example=call)
    wide = [row.name for row in report.rows if "outliers" in row.reason]
    assert wide == ["layers.2"]
    assert saved.layers[2].scheme.activation_bits == 16
    assert saved.layers[1].scheme.activation_bits == 8

    with torch.no_grad():
        assert sqnr(truth, broken(x)) < 20 < 25 < sqnr(truth, saved(x))
    low = fs.quantize(model, "w8a8", example=call)
    assert low.layers[2].scheme.activation_bits == 16


def test_every_call_of_a_list_is_looked_at(call):
    loud = call[0][0].clone()
    loud[:, 3] *= 1000  # as a later step of a sampler may be
    for calls, expected in ([call], []), ([call, ((loud,), {})], ["layers.0"]):
        model = Blocks()
        with torch.no_grad():
            model.layers[0].weight[:, 3] /= 1000
        report = quantize(model, "w8a8", rules=(), example=calls)
        assert [row.name for row in report.rows if "outliers" in row.reason] == expected


def test_calls_are_taken_from_first_to_last():
    calls = [((k,), {}) for k in range(10)]
    assert [k for ((k,), _) in spread_calls(calls)] == [0, 3, 6, 9]
    assert spread_calls(calls[:3]) == calls[:3]
    assert spread_calls([]) == []


def test_layers_are_compared_on_the_inputs_of_the_float_network_worst_first(call):
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(3)))
    low = copy.deepcopy(model)
    quantize(low, "w8a8", rules=())
    with torch.no_grad():
        next(layer for layer in low if isinstance(layer, QuantLayer)).scale.mul_(1.5)
    left = layer_sqnr(model, low, [call])
    assert list(left) == ["0", *sorted(("1", "2"), key=left.get)]
    assert left["0"] == pytest.approx(-20 * torch.tensor(0.5).log10().item(), abs=1.5)  # half of the output is error
    assert min(left["1"], left["2"]) > 30
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_language_model_is_looked_at_by_its_ids():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.table, self.mix, self.head = nn.Embedding(50, 32), nn.Linear(32, 32), nn.Linear(32, 50)

        def forward(self, input_ids):
            return self.head(torch.tanh(self.mix(self.table(input_ids))))

    call = (), {"input_ids": torch.arange(20).view(2, 10)}
    bits = {row.name: row.bits for row in quantize(Words(), "w4a8", example=call).rows}
    assert bits == {"table": "w8a16", "mix": "w8a8", "head": "w8a8"}  # the first and the last product get 8 bits
