"""Bits per layer from recorded calls: the budget is met, and layers that matter get more."""

import copy

import pytest
import torch
from torch import nn

from fewstep.errors import FewstepError
from fewstep.quant import QuantLayer, native, quantize
from fewstep.quant.bits import quantize_to_bits
from fewstep.quant.calls import recording, replay
from fewstep.quant.fidelity import sqnr


class Net(nn.Module):
    """Two paths of equal layers: the output hears almost nothing of one of them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.loud, self.quiet = (nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 64)) for _ in range(2))

    def forward(self, x):
        return self.loud(x) + 0.01 * self.quiet(x)


@pytest.fixture
def recorded():
    net = Net()
    with recording(net, limit=1) as calls:
        net(torch.randn(32, 64))
    return net, calls


def test_layers_that_matter_get_more_at_equal_bytes(recorded):
    net, calls = recorded
    truth = replay(net, calls)
    low, same = copy.deepcopy(net), copy.deepcopy(net)
    report = quantize_to_bits(low, calls, 6.4)
    bits = {name: m.scheme.weight_bits for name, m in low.named_modules() if isinstance(m, QuantLayer)}
    assert min(bits["loud.0"], bits["loud.2"]) > max(bits["quiet.0"], bits["quiet.2"])
    assert report.bits_per_weight <= 6.4
    quantize(same, "w4a8", rules=())
    assert sqnr(truth, replay(low, calls)) > 10 + sqnr(truth, replay(same, calls))
    with pytest.raises(FewstepError, match="bits per weight"):
        quantize_to_bits(copy.deepcopy(net), calls, 2.0)


@pytest.mark.skipif(not native.available(), reason="no exact int8 product on this CPU")
def test_int8_codes_stay_beside_packed_ones_and_change_nothing():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)), torch.randn(4096, 256)
    packed, kept = copy.deepcopy(net), copy.deepcopy(net)
    before = quantize(packed, "w4a8row", rules=()).resident_after
    quantize(kept, "w4a8row", rules=(), backend="int8")
    with torch.no_grad():
        assert torch.equal(packed(x), kept(x))
    from fewstep.quant.report import resident_bytes

    assert resident_bytes(packed) == before
    assert resident_bytes(kept) == before + 2 * 256 * 256  # a byte per weight
