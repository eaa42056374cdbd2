"""Whose turn it is, who gets gradients, how slow networks move, and how a student is run."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fewstep.denoiser import Denoiser
from fewstep.distillation.chain import Chain, evenly
from fewstep.distillation.core import Batch, Samples
from fewstep.distillation.engine import assemble, towards
from fewstep.distillation.method import Method, method
from fewstep.distillation.roles import Adversary, Critic, OptimizerSettings, TargetNetwork, UpdateRule
from fewstep.errors import FewstepError
from fewstep.executor import sample
from fewstep.prediction import Prediction
from fewstep.process import VE, Cosine, RectifiedFlow, VPDiscrete
from fewstep.testing.mixture import Mixture
from fewstep.testing.toy import Toy
from fewstep.testing.training import train_toy
from fewstep.train.ema import EMA

TOY = Toy(width=16, pretraining=0)
BATCH = 8
calls: list[str] = []


class Counted(nn.Module):
    """A linear network that says when it is called, and with gradients or without."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.name = "start"

    def forward(self, x, time):
        calls.append(f"{self.name}{'+' if torch.is_grad_enabled() else '-'}")
        return self.layer(x)


def roll(cast, batch, generator):
    noise = torch.randn(batch.size, 2, generator=generator)
    t = torch.ones(batch.size, dtype=torch.float64)
    return Samples(cast.student(noise, t), noise, t, 0 * t, torch.zeros(batch.size))


def through_everything(cast, batch, made, generator):
    """A term whose gradient passes through the critic and the adversary, as in SiD."""
    t = torch.full((batch.size,), 0.5, dtype=torch.float64)
    value = cast.critic(made.clean, t).square().mean()
    if cast.adversary is not None:
        value = value + cast.adversary(made.clean).mean()
    return value, {"size": made.clean.detach().abs().mean()}


def follow(cast, batch, made, generator):
    assert not made.clean.requires_grad
    t = torch.full((batch.size,), 0.5, dtype=torch.float64)
    return (cast.critic(made.clean, t) - made.clean).square().mean(), {}


def judge(cast, batch, made, generator):
    t = torch.full((batch.size,), 0.5, dtype=torch.float64)
    return cast.adversary(cast.critic(made.clean, t)).mean(), {}


def engine(method, names=True):
    torch.manual_seed(0)
    made = assemble(method, TOY.teacher(), Counted(), lambda m: m, TOY.batches(BATCH), (2,))
    for name, module in {**made.modules, **made.slow}.items():
        module.name = name
    calls.clear()
    return made


def play(made, step=0, steps=10):
    """Every turn of one step; who got gradients in it, and the numbers."""
    seen = []
    for parties, compute in made.turns(step, steps, torch.Generator().manual_seed(step)):
        loss, numbers = compute()
        loss.backward()
        touched = {n for n, m in made.modules.items() if any(p.grad is not None for p in m.parameters())}
        seen.append((parties, touched, numbers))
        for module in made.modules.values():
            module.zero_grad(set_to_none=True)
    return seen


METHOD = Method({"x": through_everything}, Chain((1.0,)), roll, Critic(follow, UpdateRule(ratio=3)))


def test_the_critic_follows_as_often_as_it_wants_and_only_it_then_learns():
    seen = play(engine(METHOD))
    assert [parties for parties, _, _ in seen] == [("student",), *[("critic",)] * 3]
    assert [touched for _, touched, _ in seen] == [{"student"}, *[{"critic"}] * 3]


def test_no_forward_pass_that_the_method_does_not_need():
    play(engine(METHOD))
    # the student's samples serve its own loss and the critic's first update; two more roll-outs without gradient
    assert calls == ["student+", "critic+", "critic+", "student-", "critic+", "student-", "critic+"]


def test_numbers_are_named_after_their_terms():
    seen = play(engine(METHOD))
    assert set(seen[0][2]) == {"loss", "x", "x/size", "samples/spread"}
    assert set(seen[1][2]) == {"critic"}


@pytest.mark.parametrize("joint", [True, False])
def test_an_adversary_learns_alone_or_with_the_critic(joint):
    adversary = Adversary(lambda cast, shape: nn.Linear(*shape, 1), judge, UpdateRule(ratio=2), with_critic=joint)
    seen = play(engine(replace(METHOD, adversary=adversary)))
    parties = [p for p, _, _ in seen]
    pair = [("critic", "adversary")] if joint else [("critic",), ("adversary",)]
    assert parties == [("student",), *pair, *pair, ("critic",)]
    assert all(touched == set(p) for p, touched, _ in seen)
    assert set(seen[1][2]) == ({"critic", "adversary"} if joint else {"critic"})


def test_terms_know_how_far_the_training_is():
    told = []

    def term(cast, batch, made, generator):
        told.append(batch.progress)
        return cast.student(batch.clean, torch.ones(batch.size)).mean(), {}

    play(engine(Method({"x": term}, Chain((1.0,)))), step=5, steps=20)
    assert told == [0.25]


def matched(cast, batch, made, generator):
    return cast.student(batch.clean, torch.ones(batch.size)).square().mean(), {}


@pytest.mark.parametrize(("decay", "every"), [(0.9, 1), (0.0, 2)])
def test_the_slow_student_moves_as_told(decay, every):
    made = engine(Method({"x": matched}, Chain((1.0,)), target=TargetNetwork(decay, every)))
    weight = made.modules["student"].layer.weight
    expected = weight.detach().clone()
    for step in range(1, 5):
        weight.data.mul_(1.5)
        made.after(step)
        if step % every == 0:
            expected = decay * expected + (1 - decay) * weight.detach()
        torch.testing.assert_close(made.slow["target"].layer.weight, expected)
    assert not any(p.requires_grad for p in made.slow["target"].parameters())


def test_the_target_of_stages_rests_in_the_last_one():
    """Three stages of two steps: it moves where the second and the third begin, and not within a longer last stage."""
    made = engine(Method({"x": matched}, Chain((1.0,)), target=TargetNetwork(every=2, until=4)))
    weight, moved = made.modules["student"].layer.weight, []
    for step in range(1, 10):
        weight.data.add_(1.0)
        made.after(step)
        if torch.equal(made.slow["target"].layer.weight, weight):
            moved.append(step)
    assert moved == [2, 4]


def test_a_frozen_flow_is_the_average_of_the_stage_before():
    """SlimFlow's, compared with the averages that the loop keeps; the live student has moved on."""
    target = method("slim_flow", TOY.process, reflow_steps=6, distil_steps=3).target
    made = engine(Method({"x": matched}, Chain((1.0,)), target=target))
    student = made.modules["student"]
    average = EMA({"student": student}, target.decay)
    for step in range(1, 10):
        student.layer.weight.data.mul_(1.1)
        if step <= 6:
            average.update({"student": student})
        made.after(step)
    found = made.slow["target"].layer.weight
    torch.testing.assert_close(found, average.shadow["student.layer.weight"])
    assert not torch.allclose(found, student.layer.weight / 1.1**3)


def test_a_live_target_is_the_student_itself():
    made = engine(Method({"x": matched}, Chain((1.0,)), target=TargetNetwork()))
    assert made.networks.target is made.networks.student
    assert not made.slow


def test_the_critic_is_pulled_towards_the_student():
    made = engine(replace(METHOD, critic=Critic(follow, UpdateRule(pull=0.25))))
    made.modules["student"].layer.weight.data.add_(4.0)
    before = made.modules["critic"].layer.weight.detach().clone()
    made.after(1)
    torch.testing.assert_close(made.modules["critic"].layer.weight.data, before + 1.0)
    with pytest.raises(FewstepError, match="architecture"):
        towards(nn.Linear(2, 2), nn.Linear(3, 3), 0.5)


def test_what_a_method_needs_is_asked_for_before_training():
    lacking = TOY.batches(BATCH, data=False)
    for needs in ({"data"}, {"store"}):
        method = Method({"x": matched}, Chain((1.0,)), needs=frozenset(needs))
        with pytest.raises(FewstepError, match=next(iter(needs))):
            assemble(method, TOY.teacher(), Counted(), lambda m: m, lacking, (2,))

    def conditional(generator):
        return Batch(2, (2,), condition={"label": torch.zeros(2)})

    guided = Method({"x": matched}, Chain((1.0,)), needs=frozenset({"guidance"}))
    with pytest.raises(FewstepError, match="guidance"):
        assemble(guided, TOY.teacher(), Counted(), lambda m: m, conditional, (2,))
    with pytest.raises(FewstepError, match="two times"):
        assemble(replace(METHOD, two_times=True), TOY.teacher(), Counted(), lambda m: m, lacking, (2,))


PROCESSES = [RectifiedFlow(), VPDiscrete.from_betas(), Cosine(), VE()]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("steps", [1, 4])
def test_with_one_gaussian_a_chain_of_exact_jumps_ends_in_the_law_of_the_data(process, steps):
    """Data N(0, 1): the marginal of a variance-preserving process is N(0, 1) at every time, and D = alpha x."""
    mixture = Mixture.gaussian([0.0, 0.0], [1.0, 1.0])
    prediction = Prediction("sample")
    teacher = Denoiser(mixture.network(process, prediction), process, prediction)
    plan = evenly(process, steps, 0.0)
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = plan.sample(teacher, noise, None, torch.Generator())
    assert len(plan) == steps
    # every DDIM step of a Gaussian is linear: compare with the product of the steps' factors
    factor = torch.tensor(1.0, dtype=torch.float64)
    if process.alpha(plan.times[0]) == 1:
        factor = torch.tensor(process.sigma(plan.times[0]), dtype=torch.float64)
    else:
        factor = torch.tensor((process.alpha(plan.times[0]) ** 2 + process.sigma(plan.times[0]) ** 2) ** 0.5)
    for t, to in zip(plan.times, (*plan.times[1:], None), strict=True):
        a, s = process.alpha(t), process.sigma(t)
        b, r = (1.0, 0.0) if to is None else (process.alpha(to), process.sigma(to))
        gain = a / (a**2 + s**2)
        factor = factor * (r / s + (b - a * r / s) * gain)
    torch.testing.assert_close(x, noise * factor, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("fresh", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("process", PROCESSES[:3], ids=lambda p: type(p).__name__)
def test_the_plan_draws_from_the_law_that_the_student_is_sampled_with(process, fresh):
    """Same network, same first noise: equal states where nothing is random, equal moments where it is."""
    mixture = Mixture.gaussian([0.5, -0.5], [0.3, 0.3])
    prediction = Prediction("velocity")
    network = mixture.network(process, prediction)
    student, how, count = Denoiser(network, process, prediction), evenly(process, 3, fresh), 4000
    plan = how.plan(process, prediction)
    by_plan = sample(plan, network, seeds=range(count), shape=(2,))
    if fresh == 0:
        noise = torch.stack([torch.randn(2, generator=torch.Generator().manual_seed(i)) for i in range(64)])
        mine = how.sample(student, noise, None, torch.Generator())
        torch.testing.assert_close(by_plan[:64], mine, rtol=1e-4, atol=1e-4)
    else:
        generator = torch.Generator().manual_seed(1)
        mine = how.sample(student, torch.randn(count, 2, generator=generator), None, generator)
        tolerance = 5 * (0.3 / count) ** 0.5
        assert (by_plan.mean(0) - mine.mean(0)).abs().max() < tolerance
        assert (by_plan.var(0) / mine.var(0) - 1).abs().max() < 5 * (4 / count) ** 0.5


def test_times_that_do_not_fall_are_refused():
    for times in ((), (0.5, 0.5), (0.5, 0.0), (0.2, 0.9)):
        with pytest.raises(FewstepError, match="times of a student"):
            Chain(times)
    with pytest.raises(FewstepError, match="fresh"):
        Chain((1.0,), 1.5)


def test_a_toy_learns_and_repeats_itself():
    def regress(cast, batch, made, generator):
        t = 0.999 * torch.rand(batch.size, generator=generator, dtype=torch.float64) + 0.001
        x = cast.student.process.add_noise(batch.clean, torch.randn(batch.clean.shape, generator=generator), t)
        with torch.no_grad():
            wanted = cast.teacher.raw(x, t) + 1  # what the start has not learned yet
        return (cast.student.raw(x, t) - wanted).square().mean(), {}

    method = Method({"x": regress}, evenly(TOY.process, 4, 0.0), settings=OptimizerSettings(warmup=5))
    first, second = (train_toy(TOY, method, steps=40, batch=64) for _ in range(2))
    assert first.progress.history == second.progress.history
    assert first.progress.history[0]["loss"] > first.progress.history[-1]["loss"]
    assert torch.equal(first.samples, second.samples)


def test_a_loss_that_explodes_stops_the_training_and_is_named(tmp_path):
    def explodes(cast, batch, made, generator):
        value = cast.critic(made.clean, torch.ones(batch.size)).square().mean()
        return value / (1 if batch.step < 30 else 0), {}

    def steady(cast, batch, made, generator):
        return cast.student(batch.clean, torch.ones(batch.size)).square().mean(), {}

    method = Method({"steady": steady}, Chain((1.0,)), roll, Critic(explodes))
    with pytest.raises(FewstepError, match="critic"):
        train_toy(TOY, method, steps=60, batch=BATCH, out=tmp_path, checkpoint_every=5)
    from fewstep.files import read_json, read_tensors

    assert read_json(tmp_path / "checkpoint" / "progress.json")["step"] == 30
    tensors = read_tensors(tmp_path / "checkpoint" / "state.safetensors")
    assert all(bool(t.isfinite().all()) for t in tensors.values())
