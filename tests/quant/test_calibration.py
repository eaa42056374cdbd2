"""What calibration collects, against direct computation; several passes equal one; mistakes are named."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fewstep.errors import FewstepError, NonFiniteError
from fewstep.executor import sample
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import VPDiscrete
from fewstep.quant import quantize
from fewstep.quant.calibration import Calibration, calibrate
from fewstep.solvers.first_order import ddim
from fewstep.solvers.grids import given
from fewstep.testing.mixture import Mixture

DATA = torch.randn(6, 4, 9, 9, generator=torch.Generator().manual_seed(0)) + 0.5


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, padding_mode="reflect"), nn.SiLU(),
        nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=2), nn.SiLU(), nn.Flatten(2), nn.Linear(25, 7),
    )  # fmt: skip


def collect(model: nn.Module, **options: object) -> Calibration:
    return calibrate(model, lambda c, s: model(DATA[list(s)]), list("abcdef"), list(range(6)), batch=4, **options)  # type: ignore[arg-type]


def test_moments_are_those_of_the_product_that_the_layer_computes() -> None:
    model = network()
    found = collect(model, rows=10**9)
    assert list(found.layers) == ["0", "2", "5"]
    x = DATA
    for name, layer in (("0", model[0]), ("2", model[2])):
        statistics = found.layers[name]
        assert torch.equal(statistics.largest, x.abs().amax((0, 2, 3)))
        # the mean squared output of a layer is w^T H w, with the layer itself as the independent implementation
        with torch.no_grad():
            y = layer(x) - layer.bias.view(-1, 1, 1)
            assert statistics.second is not None
            for i, part in enumerate(layer.weight.flatten(1).chunk(layer.groups)):
                expected = y.square().mean((0, 2, 3)).chunk(layer.groups)[i]
                assert torch.allclose((part @ statistics.second[i] * part).sum(1), expected, rtol=1e-4)
            x = F.silu(layer(x))
    rows = x.detach().flatten(2).reshape(-1, 25)
    assert found.layers["5"].second is not None
    assert torch.allclose(found.layers["5"].second[0], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
    assert found.layers["5"].rows == len(rows)


def test_memory_is_bounded_and_rows_are_drawn_evenly() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    stream = torch.arange(4000.0).view(40, 100, 1).expand(-1, -1, 3)
    found = calibrate(model, lambda c, s: model(stream[list(s)]), range(40), range(40), batch=7, rows=30, sample=64)
    statistics = found.layers["0"]
    assert statistics.rows == 40 * 30
    assert statistics.sample.shape == (64, 3)
    assert 1600 < float(statistics.sample[:, 0].mean()) < 2400
    assert float(statistics.reach()) == 3999
    assert float(statistics.reach(percentile=50)) < 3000
    assert float(statistics.reach(torch.tensor([1.0, 2.0, 4.0]))) == 3999


def test_passes_on_disk_equal_one_pass_in_memory(tmp_path: Path) -> None:
    model = network()
    whole = collect(model)
    parts = collect(model, limit=6000, folder=tmp_path)
    again = Calibration.load(tmp_path)
    assert list(again.layers) == list(whole.layers)
    assert (again.seeds, again.conditions, again.calls) == (tuple(range(6)), 6, 2) == (whole.seeds, 6, whole.calls)
    for found in (parts, again):
        for name, wanted in whole.layers.items():
            have = found.layers[name]
            assert torch.equal(have.sample, wanted.sample)
            assert have.second is not None
            assert wanted.second is not None
            assert torch.equal(have.second, wanted.second)
    with pytest.raises(FewstepError, match="memory"):
        collect(model, limit=6000)
    assert collect(model, limit=6000, second=False).layers["0"].second is None


def test_times_are_those_of_the_plan() -> None:
    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return exact(x, timestep) + 0 * self.layer(x)

    process = VPDiscrete.from_betas()
    exact = Mixture.line([1.0], [0.0], [1.0]).network(process, Prediction())
    plan: Plan = ddim(process, Prediction(), given([900.0, 400.0]))
    model = Timed()
    found = calibrate(model, lambda c, s: sample(plan, model, seeds=s, shape=(1,)), [None] * 3, [1, 2, 3], batch=2)
    assert found.times == (900.0, 400.0)
    assert found.calls == 4
    assert found.layers["layer"].rows == 6


def test_mistakes_are_named(tmp_path: Path) -> None:
    model = network()
    with pytest.raises(FewstepError, match="conditions"):
        calibrate(model, lambda c, s: model(DATA), [], [])
    with pytest.raises(FewstepError, match="conditions"):
        calibrate(model, lambda c, s: model(DATA), ["a"], [1, 2])
    with pytest.raises(FewstepError, match="was called"):
        calibrate(model, lambda c, s: None, ["a"], [1])
    with pytest.raises(NonFiniteError, match="'0'"):
        calibrate(model, lambda c, s: model(DATA * float("nan")), ["a"], [1])
    assert not any(m._forward_pre_hooks for m in model.modules())  # nothing stays behind a failure
    with pytest.raises(FewstepError):
        Calibration.load(tmp_path)
    with pytest.raises(FewstepError, match="calibration"):
        quantize(network(), "w8a8-static", rules=())
    other = nn.Sequential(nn.Linear(9, 9))
    found = calibrate(other, lambda c, s: other(torch.ones(9)), [0], [0])
    with pytest.raises(FewstepError, match="another model"):
        quantize(network(), "w4a8", calibration=found)


def test_layers_that_were_not_reached_are_rounded_and_the_table_says_so() -> None:
    model = nn.ModuleDict({"used": nn.Linear(8, 8), "idle": nn.Linear(8, 8)})
    model.forward = lambda x: model["used"](x)  # type: ignore[assignment]
    found = calibrate(model, lambda c, s: model(torch.randn(4, 8)), [0], [0])
    report = quantize(model, "w8a8-static-smooth", rules=(), method="gptq", calibration=found)
    rows = {row.name: row for row in report.rows}
    assert rows["used"].bits == "w8a8-static-smooth"
    assert rows["idle"].bits == "w8a8"
    assert "not reached" in rows["idle"].reason


def test_ranges_follow_their_definitions(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    parts = [torch.randn(50, 3, generator=torch.Generator().manual_seed(s)) + 1 for s in range(4)]

    def seen(ranges: str, **more: object) -> Calibration:
        return calibrate(
            model, lambda c, s: model(parts[s[0]]), [0] * 4, range(4), batch=1, sample=10**6, ranges=ranges, **more
        )  # type: ignore[arg-type]

    low, high = seen("max").layers["0"].span()
    assert float(low) == float(torch.cat(parts).min())
    assert float(high) == float(torch.cat(parts).max())
    average = parts[0].amax(0)
    for part in parts[1:]:
        average = 0.8 * average + 0.2 * part.amax(0)
    found = seen("ema:0.8", folder=tmp_path)
    assert found.ranges == Calibration.load(tmp_path).ranges == "ema:0.8"
    assert torch.allclose(found.layers["0"].highest, average)  # type: ignore[arg-type]
    few = seen("percentile:90").layers["0"]
    every = torch.cat(parts).flatten().sort().values
    ends = tuple(float(end) for end in few.span())
    assert ends == (float(every[30 - 1]), float(every[-30]))
    assert float((torch.cat(parts).abs() <= few.reach()).float().mean()) == pytest.approx(0.9, abs=0.005)
    divided = seen("max").layers["0"].span(torch.tensor([2.0, 2.0, 2.0]))
    assert float(divided[1]) == pytest.approx(float(high) / 2)


@pytest.mark.parametrize("ranges", ["min", "ema", "ema:1", "ema:x", "percentile:20", ""])
def test_unknown_ranges_are_refused(ranges: str) -> None:
    with pytest.raises(FewstepError, match="ranges"):
        collect(network(), ranges=ranges)
