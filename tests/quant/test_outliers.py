"""Inputs that 8 bits cannot carry are found by what they do to the network's output, and get the cheapest remedy."""

import copy
import math

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep.quant import QuantLayer, Scheme, quantize
from fewstep.quant.calibration import calibrate
from fewstep.quant.calls import spread_calls
from fewstep.quant.fidelity import sqnr
from fewstep.quant.outliers import _narrowed, input_errors, layer_sqnr, wide_layers
from fewstep.quant.remedies import Remedy, chosen, expected_left, guessed, largest_inputs
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


def test_only_the_layers_with_outliers_are_exempted(call):
    model = Blocks(spoiled=(1, 4))
    flagged, target = wide_layers(model, schemes(model), [call])
    assert {"layers.1", "layers.4"} == set(flagged)
    left, ratio = flagged["layers.1"]
    assert left < 20 < target
    assert ratio > 3
    assert wide_layers(Blocks(), schemes(model), [call])[0] == {}


def test_the_measured_error_is_that_of_the_rounded_product(call):
    model = Blocks(spoiled=(0,))
    seen = call[0][0] * model.loud[0]
    step = seen.abs().amax(1, keepdim=True) / 127
    weight = model.layers[0].weight.detach()
    expected = sqnr(seen @ weight.T, ((seen / step).round() * step) @ weight.T)
    found, ratio = input_errors(model, {"layers.0": Scheme(8, 8)}, [call])["layers.0"]
    assert found == pytest.approx(expected, abs=0.1)
    assert ratio == pytest.approx(float(seen.abs().max() / seen.square().mean().sqrt()), rel=1e-4)


@pytest.mark.parametrize(("scheme", "remedy"), [("w8a8", "w8a8-smooth"), ("w8a8g16", "w8a16g16")])
def test_an_example_call_saves_a_network_that_8_bits_would_break(call, scheme, remedy):
    (x,), _ = call
    model = Blocks(spoiled=(2,))
    truth = model(x).detach()
    broken, saved = copy.deepcopy(model), copy.deepcopy(model)
    quantize(broken, scheme, rules=())
    report = quantize(saved, scheme, rules=(), example=call)
    assert [row.name for row in report.rows if "outliers" in row.reason] == ["layers.2"]
    assert [str(layer.scheme) for layer in saved.layers] == [scheme] * 2 + [remedy] + [scheme] * 3

    with torch.no_grad():
        assert sqnr(truth, broken(x)) < 20 < 25 < sqnr(truth, saved(x))
    low = fs.quantize(model, scheme, example=call)
    assert str(low.layers[2].scheme) == remedy


def remedy_of(layer, x, target=25.0):
    model = nn.Sequential(layer)
    call = (x,), {}
    given = {"0": Scheme(8, 8)}
    return chosen(model, given, [call], target, largest_inputs(model, given, [call]).layers)["0"]


def test_the_cheapest_remedy_that_is_enough_is_taken():
    torch.manual_seed(0)
    linear, x = nn.Linear(256, 32), torch.randn(64, 256)
    quiet, loud = x.clone(), x.clone()
    quiet[:, 7] *= 1000
    with torch.no_grad():
        linear.weight[:, 7] /= 1000
    found = remedy_of(linear, quiet)
    assert str(found.scheme) == "w8a8-smooth"
    assert found.left > 25

    linear, tokens = nn.Linear(256, 32), torch.arange(64)
    with torch.no_grad():
        linear.weight[:, 1::2] = linear.weight[:, ::2]
    loud[tokens, 2 * tokens], loud[tokens, 2 * tokens + 1] = 60.0, -60.0  # they cancel, in another place of each token
    found = remedy_of(linear, loud)
    assert str(found.scheme) == "w8a8-hadamard"
    assert "rotation" in found.reason
    assert found.left > 25

    conv, picture = nn.Conv2d(16, 16, 1), torch.randn(2, 16, 16, 16)
    picture[:, :, 3, 3] *= 3000  # one place of all channels: nothing spreads it over the others
    with torch.no_grad():
        conv.weight -= conv.weight.mean(1, keepdim=True)
    picture[:, :, 3, 3] = 3000.0  # and the layer does not see it
    found = remedy_of(conv, picture)
    assert str(found.scheme) == "w8a16"
    assert "16-bit inputs" in found.reason


def test_a_remedy_is_judged_by_the_noise_beyond_that_of_16_bit_inputs():
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 16, bias=False), torch.randn(32, 64)
    x[:, 2], x[:, 3] = 300.0, -300.0
    with torch.no_grad():
        layer.weight[:, 3] = layer.weight[:, 2]
    found = remedy_of(layer, x, target=-100.0)
    smooth, plain = nn.Sequential(copy.deepcopy(layer)), nn.Sequential(copy.deepcopy(layer))
    seen = calibrate(smooth, lambda c, s: smooth(x), [0], [0])
    quantize(smooth, "w8a8-smooth", rules=(), calibration=seen)
    quantize(plain, "w8a16", rules=())
    with torch.no_grad():
        truth = layer(x)
        more = (smooth(x) - truth).square().sum() - (plain(x) - truth).square().sum()
        assert found.left == pytest.approx(10 * float((truth.square().sum() / more).log10()), abs=0.01)


def test_remedies_that_are_not_enough_together_give_way_to_16_bit_inputs(call):
    model = Blocks(spoiled=(1, 4))
    given = {name: Scheme(8, 8) for name in schemes(model)}
    weak = {
        name: Remedy(given.pop(name), "enough alone", left) for name, left in (("layers.1", 30.0), ("layers.4", 31.0))
    }
    found = _narrowed(model, given, weak, [call], 20.0, {})
    assert str(found["layers.1"].scheme) == "w8a16"
    assert "together" in found["layers.1"].reason
    assert _narrowed(Blocks(), given, weak, [call], 20.0, {}) == weak


def test_weights_alone_tell_a_likely_outlier(call):
    model = Blocks(spoiled=(2,))
    report = quantize(copy.deepcopy(model), "w8a8")
    assert {row.name: row.bits for row in report.rows if "likely" in row.reason} == {"layers.2": "w8a8-hadamard"}
    assert not any("likely" in row.reason for row in quantize(copy.deepcopy(model), "w8a8", rules=()).rows)
    assert not any("likely" in row.reason for row in quantize(Blocks(), "w8a8").rows)
    assert {row.bits for row in quantize(copy.deepcopy(model), "w4a8").rows if "likely" in row.reason} == {"w4a16"}


def test_the_guess_is_the_formula_it_states():
    torch.manual_seed(0)
    spread = torch.tensor([1.0] * 255 + [40.0])
    layer, x = nn.Linear(256, 64, bias=False), torch.randn(4096, 256) * spread
    with torch.no_grad():
        layer.weight /= layer.weight.norm(dim=0) * spread  # every input adds the same
    left, _ = input_errors(nn.Sequential(layer), {"0": Scheme(8, 8)}, [((x,), {})])["0"]
    # 4 spreads is the largest of many inputs; here one alone is loud, and its root mean square counts
    assert left == pytest.approx(expected_left(layer) + 20 * math.log10(4), abs=1)
    with torch.no_grad():
        layer.weight[:, 3] = 0.0  # an input that is not used says nothing
        layer.weight[:, 255] = layer.weight[:, 254]
    assert expected_left(layer) == pytest.approx(40.8, abs=0.1)
    assert guessed(nn.Sequential(layer), {"0": Scheme(8, 8)}) == {}


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
