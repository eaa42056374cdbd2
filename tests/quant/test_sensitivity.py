"""Sensitivity against definitions: the measured layer is the only one that changes, metrics follow their formulas."""

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.errors import FewstepError
from fewstep.quant import sensitivity as s
from fewstep.quant.calls import multiply_adds, recording, replay
from fewstep.quant.fidelity import mean_ssim, sqnr
from fewstep.quant.modules import eligible


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.attn2 = nn.ModuleDict({"to_k": nn.Linear(8, 8), "to_v": nn.Linear(8, 8)})
        self.out = nn.Linear(8, 4)

    def forward(self, x, scale=1.0):
        y = self.conv(x).flatten(2).mT * scale
        return (self.out(y + self.attn2["to_k"](y) * self.attn2["to_v"](y)),)


@pytest.fixture
def recorded():
    net = Net()
    with recording(net, limit=2) as calls:
        for k in range(3):
            net(torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(k)), scale=1.0 + k)
    return net, calls


def test_calls_are_recorded_as_they_were(recorded):
    net, calls = recorded
    assert len(calls) == 2
    truth = torch.cat([net(*args, **kwargs)[0].flatten() for args, kwargs in calls])
    assert torch.equal(replay(net, calls), truth)
    assert calls[1][1] == {"scale": 2.0}
    with pytest.raises(FewstepError, match="no call"):
        replay(net, [])


def test_each_layer_is_measured_alone_and_the_model_stays(recorded):
    net, calls = recorded
    before = {k: v.clone() for k, v in net.state_dict().items()}
    groups = s.grouped(eligible(net))
    assert groups == {"conv": "quality", "attn2.to_k": "content", "attn2.to_v": "content", "out": "quality"}
    probe = (lambda: replay(net, calls), sqnr)
    table = s.layer_metrics(net, {"quality": probe, "content": probe}, groups, ["w8a16", "w4a16", "w2a16"])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    for row in table.values():
        assert row["w8a16"] > row["w4a16"] > row["w2a16"]
    # the definition, by hand, for one of them: everything else is float
    weight = net.out.weight.data
    truth = replay(net, calls)
    low = s.low_bit(net.out, "w4a16").dequantize()
    net.out.weight.data = low
    assert table["out"]["w4a16"] == pytest.approx(sqnr(truth, replay(net, calls)), abs=1e-3)
    net.out.weight.data = weight


def test_a_measurement_goes_on_where_it_was(recorded):
    net, calls = recorded
    seen = []
    probe = (lambda: replay(net, calls), sqnr)
    groups = {"conv": "quality", "out": "quality"}
    known = {"conv": {"w4a8": 12.5}}
    table = s.layer_metrics(
        net, {"quality": probe}, groups, ["w4a8", "w2a8"], known=known, watch=lambda n, q, v: seen.append((n, q))
    )
    assert seen == [("conv", "w2a8"), ("out", "w4a8"), ("out", "w2a8")]
    assert table["conv"]["w4a8"] == 12.5


def test_the_model_is_restored_when_a_probe_fails(recorded):
    net, _ = recorded
    kept = net.conv

    def fail():
        if not isinstance(net.conv, nn.Conv2d):
            raise RuntimeError("broken")
        return torch.zeros(1)

    with pytest.raises(RuntimeError, match="broken"):
        s.layer_metrics(net, {"quality": (fail, sqnr)}, {"conv": "quality"}, ["w8a8"])
    assert net.conv is kept
    with pytest.raises(FewstepError, match="NaN"):
        s.layer_metrics(
            net,
            {"quality": (lambda: torch.tensor(float("nan")), sqnr)},
            {"conv": "quality"},
            ["w8a8"],
        )


def test_sqnr_is_its_formula():
    y, e = torch.randn(100, dtype=torch.float64), torch.randn(100, dtype=torch.float64)
    assert sqnr(y, y + 0.1 * e) == pytest.approx(10 * np.log10(float((y @ y) / (0.01 * e @ e))))
    assert sqnr(y, y) == 200
    assert sqnr(y, y * float("nan")) == -200
    # damages of the two metrics: power of the noise adds up
    assert s.damage_of(30.0, "quality") == pytest.approx(1e-3)
    assert s.damage_of(0.75, "content") == 0.25


def test_ssim_is_its_formula():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 9, 11)), rng.random((2, 3, 9, 11))
    values = []
    for i in np.ndindex(2, 3):
        for y in range(9 - 7 + 1):
            for x in range(11 - 7 + 1):
                p, q = (im[i][y : y + 7, x : x + 7].ravel() for im in (a, b))
                cov = np.cov(p, q)
                top = (2 * p.mean() * q.mean() + 1e-4) * (2 * cov[0, 1] + 9e-4)
                values.append(top / ((p.mean() ** 2 + q.mean() ** 2 + 1e-4) * (cov[0, 0] + cov[1, 1] + 9e-4)))
    assert mean_ssim(torch.tensor(a), torch.tensor(b)) == pytest.approx(np.mean(values), rel=1e-9)
    assert mean_ssim(torch.tensor(a), torch.tensor(a)) == pytest.approx(1)
    assert mean_ssim(torch.tensor(a), torch.tensor(b) * float("nan")) == 0
    with pytest.raises(FewstepError, match="shapes"):
        mean_ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))


def test_costs_are_those_of_the_real_layers(recorded):
    net, calls = recorded
    names = eligible(net)
    cost = s.costs(net, names, ["w8a8", "w4a16"])
    assert cost["out"]["w8a8"] == s.LayerCost(
        4 * 8 + 4 * 4 + 4 * 4, 8, 8, ("packed", "scale")
    )  # codes, float32 scales, float32 bias
    assert cost["out"]["w4a16"].bytes == 4 * 4 + 4 * 2 + 4 * 4  # one group of 8, float16 scale
    assert cost["out"]["w4a16"].activation_bits == 16
    counts = multiply_adds(net, calls[0], names)
    assert counts == {
        "conv": 2 * 8 * 36 * 27, "attn2.to_k": 2 * 36 * 64, "attn2.to_v": 2 * 36 * 64, "out": 2 * 36 * 32,
    }  # fmt: skip


def test_a_layer_that_cannot_be_quantized_is_named():
    with pytest.raises(FewstepError, match="cannot be quantized"):
        s.low_bit(nn.LayerNorm(4), "w8a8")
