"""The verbs on torch networks of one's own: no pipeline, no files, any signature of conditions."""

import itertools
import math

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep.errors import FewstepError, IdentityError
from fewstep.metrics.distances import energy_distance
from fewstep.process import RectifiedFlow
from fewstep.quant import QuantLinear
from fewstep.testing.toy import PointNetwork, Toy

TOY = Toy(pretraining=300)


class Labelled(nn.Module):
    """The velocity of a flow whose data are the point `label` alone, and a weight that training may spoil."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x, time, label, target_time=None):
        t = (time / 1000).reshape(-1, 1).clamp(min=1e-3)
        return self.gain * (x - label[:, None]) / t


def test_a_toy_is_distilled_in_ten_lines_and_draws_its_data(tmp_path):
    network = TOY.start()
    weights = [p.clone() for p in network.parameters()]
    data = TOY.mixture.sample(2048, 0).float()
    student = fs.distill(
        network, "sid", data=data, process=RectifiedFlow(), prediction="velocity", train_steps=100, batch=128,
        learning_rate=1e-3, settings={"ema": 0.9}, progress=False,
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(weights, network.parameters(), strict=True))
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    drawn = fs.generate(student, seeds=range(1000), batch=500)
    teacher = fs.Denoiser(network, RectifiedFlow(), fs.Prediction("velocity"))
    plan = fs.plan_of(teacher, 1, solver="ddim")
    untrained = fs.generate(teacher, seeds=range(1000), plan=plan, shape=(2,), batch=500)
    far, near = (float(energy_distance(x, data[:1000])) for x in (untrained, drawn))
    assert near < far / 4
    assert student.history[-1]["step"] == 100

    fs.save(student, tmp_path / "student")
    opened = fs.load(tmp_path / "student", network=PointNetwork())
    assert torch.equal(fs.generate(opened, seeds=[3, 4]), fs.generate(student, seeds=[3, 4]))
    with pytest.raises(FewstepError, match="network="):
        fs.load(tmp_path / "student")
    with pytest.raises(FewstepError, match="do not fit"):
        fs.load(tmp_path / "student", network=nn.Linear(2, 2))
    with torch.no_grad():
        student.network.first.weight.mul_(2)
    with pytest.raises(IdentityError):
        fs.save(student, tmp_path / "other")


def test_every_condition_meets_every_seed():
    labels = {"label": torch.tensor([-2.0, 5.0])}
    denoiser = fs.Denoiser(Labelled(), RectifiedFlow(), fs.Prediction("velocity"))
    plan = fs.plan_of(denoiser, 3, solver="ddim")
    drawn = fs.generate(denoiser, labels, seeds=[0, 1, 2], plan=plan, shape=(1,))
    torch.testing.assert_close(drawn, torch.tensor([[-2.0]] * 3 + [[5.0]] * 3), atol=1e-4, rtol=0)


def test_guidance_extrapolates_from_the_negative_condition():
    denoiser = fs.Denoiser(Labelled(), RectifiedFlow(), fs.Prediction("velocity"))
    plan = fs.plan_of(denoiser, 2, solver="ddim")
    given = {"label": torch.tensor([1.0])}
    drawn = fs.generate(denoiser, given, plan=plan, shape=(1,), guidance=3.0, negative={"label": torch.zeros(1)})
    torch.testing.assert_close(drawn, torch.tensor([[3.0]]), atol=1e-4, rtol=0)  # 0 + 3 (1 - 0)
    with pytest.raises(FewstepError, match="negative"):
        fs.generate(denoiser, given, plan=plan, shape=(1,), guidance=3.0)


def test_a_method_that_needs_trajectories_draws_them_from_the_teacher():
    labels = torch.tensor([-1.0, 1.0])
    student = fs.distill(
        Labelled(), "instaflow", steps=1, shape=(1,), conditions={"label": labels}, process=RectifiedFlow(),
        prediction="velocity", train_steps=40, batch=16, learning_rate=1e-3, progress=False,
    )  # fmt: skip
    drawn = fs.generate(student, {"label": labels}, seeds=[1, 2])
    torch.testing.assert_close(drawn.flatten(), labels.repeat_interleave(2), atol=0.2, rtol=0)


@pytest.mark.parametrize("calls", [1, 2])
def test_a_student_with_two_times_is_told_where_its_jump_ends(calls):
    student = fs.distill(
        TOY.start(), "mean_flow", steps=calls, data=TOY.mixture.sample(256, 0).float(), process=RectifiedFlow(),
        prediction="velocity", train_steps=3, batch=32, progress=False,
    )  # fmt: skip
    assert len(student.jumps) == calls
    noise = torch.stack([torch.randn(2, generator=torch.Generator().manual_seed(s)) for s in range(4)])
    x = noise
    bounds = [*(1.0 - k / calls for k in range(calls)), 0.0]
    for t, s in itertools.pairwise(bounds):  # x_s = x_t - (t - s) u(x_t, t, s)
        told = [torch.full((4,), 1000 * value) for value in (t, s)]
        x = x - (t - s) * student.network(x, told[0], target_time=told[1])
    torch.testing.assert_close(fs.generate(student, seeds=range(4)), x.detach(), atol=1e-5, rtol=0)


def test_data_may_be_any_iterable_of_batches_and_a_short_one_is_refused():
    x = torch.randn(64, 2)
    kinds = [x, list(x.split(16)), torch.utils.data.DataLoader(x, batch_size=16), [(part, None) for part in x.split(8)]]
    for data in kinds:
        made = fs.distill(
            TOY.start(), "lcm", data=data, process=RectifiedFlow(), prediction="velocity", train_steps=6, batch=16,
            progress=False,
        )  # fmt: skip
        assert math.isfinite(made.history[-1]["loss"])
    ask = {"process": RectifiedFlow(), "prediction": "velocity", "train_steps": 6, "batch": 16, "progress": False}
    with pytest.raises(FewstepError, match="used up"):
        fs.distill(TOY.start(), "lcm", data=iter(x.split(16)), **ask)
    with pytest.raises(FewstepError, match="unknown kind"):
        fs.distill(TOY.start(), "lcm", data=3, **ask)
    with pytest.raises(FewstepError, match="shape"):
        fs.distill(TOY.start(), "sid", **ask)
    with pytest.raises(FewstepError, match="needs its process"):
        fs.distill(TOY.start(), "sid", shape=(2,))
    with pytest.raises(FewstepError, match="leaning_rate"):
        fs.distill(TOY.start(), "sid", shape=(2,), settings={"leaning_rate": 1}, **ask)


def test_a_killed_training_goes_on_in_its_folder(tmp_path):
    x = TOY.mixture.sample(256, 0).float()

    class StopError(Exception):
        pass

    def ask(out, data):
        return fs.distill(
            TOY.start(), "lcm", steps=2, data=data, process=RectifiedFlow(), prediction="velocity", train_steps=30,
            batch=16, progress=False, out=out, settings={"checkpoint_every": 10},
        )  # fmt: skip

    class Failing(list):
        """A list whose 25th batch does not come."""

        def __iter__(self):
            for k, part in enumerate(list.__iter__(self)):
                if k == 25:
                    raise StopError
                yield part

    whole = ask(tmp_path / "whole", x)
    with pytest.raises(StopError):
        ask(tmp_path / "stopped", Failing(x[:16].split(16) * 40))
    again = ask(tmp_path / "stopped", x)
    assert again.history[-1]["step"] == whole.history[-1]["step"] == 30


def test_a_network_is_searched_and_quantized_without_being_touched():
    network = TOY.start()
    denoiser = fs.Denoiser(network, RectifiedFlow(), fs.Prediction("velocity"))
    plan = fs.search(denoiser, 3, method="ld3", budget=40, items=8, shape=(2,), teacher_steps=24)
    teacher = fs.generate(denoiser, seeds=range(500), plan=fs.plan_of(denoiser, 24), shape=(2,), batch=500)
    usual = fs.generate(denoiser, seeds=range(500), plan=fs.plan_of(denoiser, 3), shape=(2,), batch=500)
    found = fs.generate(denoiser, seeds=range(500), plan=plan, shape=(2,), batch=500)
    assert plan.steps == 3
    assert (found - teacher).square().mean() < (usual - teacher).square().mean()
    low = fs.quantize(network, "w4a8")
    assert low is not network
    assert any(isinstance(m, QuantLinear) for m in low.modules())
    assert not any(isinstance(m, QuantLinear) for m in network.modules())
    assert fs.quant_report(low).scheme == "w4a8"
    with pytest.raises(FewstepError, match="not quantized"):
        fs.quant_report(network)
    with pytest.raises(FewstepError, match="pipelines"):
        fs.quantize(network, effective_bits=4)
