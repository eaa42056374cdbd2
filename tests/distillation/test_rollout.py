import itertools

import pytest
import torch
from torch import nn

from fewstep.denoiser import Denoiser
from fewstep.distillation.chain import Chain, evenly, one_step_time
from fewstep.distillation.core import Batch
from fewstep.distillation.rollout import backward_simulation, between, noised_data_rollout, one_step, random_schedule
from fewstep.distillation.score.relay import later_call
from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import VE, VPDiscrete
from fewstep.transition import first_state
from tests.distillation.gaussians import FLOW, batch_of, cast_of, counted, generator, labels, made_of, normal, perfect

FOUR = (1.0, 0.75, 0.5, 0.25)


class Affine(nn.Module):
    """A network with a weight of its own for every time."""

    def __init__(self, times):
        super().__init__()
        self.known = [1000 * t for t in times]
        self.weight = nn.Parameter(torch.linspace(0.5, 0.9, len(times), dtype=torch.float64))

    def forward(self, x, time, **condition):
        place = torch.tensor([self.known.index(float(t)) for t in time])
        return torch.tanh(self.weight[place, None].to(x) * x)


def affine(times=FOUR):
    network = Affine(times)
    return Denoiser(network, FLOW, Prediction("sample")), network.weight


@pytest.mark.parametrize("fresh", [0.0, 1.0, 0.3])
def test_the_chain_is_the_one_of_sampling(fresh):
    steps = Chain(FOUR, fresh)
    student, _ = affine()
    made = backward_simulation(steps, last=True)(cast_of(student), batch_of(6), generator(3))
    again = generator(3)
    noise = torch.randn(6, 1, generator=again)
    assert torch.allclose(made.clean, steps.sample(student, noise, None, again).to(made.clean), atol=1e-6)
    # written out: jump to (1 - fresh) times the next time, and noise up again
    again = generator(3)
    x = torch.randn(6, 1, generator=again) * FLOW.sigma(FOUR[0])
    for t, s in itertools.pairwise(FOUR):
        jump = (1 - fresh) * s
        clean = student(x, torch.full((6,), t).double())
        implied = (x - FLOW.alpha(t) * clean) / FLOW.sigma(t)
        there = FLOW.alpha(jump) * clean + FLOW.sigma(jump) * implied
        kept = FLOW.alpha(s) / FLOW.alpha(jump)
        x = kept * there
        if fresh:
            x = x + (FLOW.sigma(s) ** 2 - (kept * FLOW.sigma(jump)) ** 2) ** 0.5 * torch.randn(6, 1, generator=again)
    assert torch.allclose(made.clean, student(x, torch.full((6,), FOUR[-1]).double()), atol=1e-5)
    assert made.index.tolist() == [3] * 6
    assert made.next_time.tolist() == [0.0] * 6


@pytest.mark.parametrize("each", [True, False])
def test_a_perfect_student_makes_the_data_law_at_every_call(each):
    student = perfect(1.5, 0.25)
    made = backward_simulation(Chain(FOUR), each=each)(cast_of(student), batch_of(40_000), generator(1))
    for call in made.index.unique():
        clean = made.clean[made.index == call]
        assert float(clean.mean()) == pytest.approx(1.5, abs=0.03)
        assert float(clean.var()) == pytest.approx(0.25, rel=0.06)


def test_one_index_for_the_batch_or_one_each():
    student, _ = affine()
    seen = [
        backward_simulation(Chain(FOUR))(cast_of(student), batch_of(5), generator(seed)).index for seed in range(40)
    ]
    assert all(len(index.unique()) == 1 for index in seen)
    assert {int(index[0]) for index in seen} == {0, 1, 2, 3}
    each = backward_simulation(Chain(FOUR), each=True)(cast_of(student), batch_of(4000), generator()).index
    assert torch.bincount(each).tolist() == pytest.approx([1000] * 4, rel=0.12)


def test_index_time_and_next_time_belong_together():
    made = backward_simulation(Chain(FOUR), each=True)(cast_of(affine()[0]), batch_of(50), generator())
    times = torch.tensor((*FOUR, 0.0), dtype=torch.float64)
    assert torch.equal(made.time, times[made.index])
    assert torch.equal(made.next_time, times[made.index + 1])


def test_only_the_last_call_has_a_gradient():
    student, weight = affine()
    made = backward_simulation(Chain(FOUR), last=True)(cast_of(student), batch_of(8), generator())
    (gradient,) = torch.autograd.grad(made.clean.sum(), weight)
    assert gradient.tolist()[:3] == [0, 0, 0]
    assert gradient[3] != 0
    through = backward_simulation(Chain(FOUR, 0.0), last=True, through=True)(cast_of(student), batch_of(8), generator())
    (gradient,) = torch.autograd.grad(through.clean.sum(), weight)
    assert (gradient != 0).all()


def test_each_sample_has_a_gradient_in_its_own_call():
    student, weight = affine()
    made = backward_simulation(Chain(FOUR), each=True)(cast_of(student), batch_of(30), generator())
    for call in range(4):
        (gradient,) = torch.autograd.grad(made.clean[made.index == call].sum(), weight, retain_graph=True)
        assert (gradient != 0).nonzero().flatten().tolist() == [call]


def test_gradient_through_all_calls_is_that_of_finite_differences():
    student, weight = affine()
    rollout = backward_simulation(Chain(FOUR, 0.0), each=True, through=True)

    def value():
        return rollout(cast_of(student), batch_of(9), generator()).clean.double().sum()

    (gradient,) = torch.autograd.grad(value(), weight)
    for place in range(4):
        with torch.no_grad():
            weight[place] += 1e-3
            up = value()
            weight[place] -= 2e-3
            down = value()
            weight[place] += 1e-3
        assert float(gradient[place]) == pytest.approx(float(up - down) / 2e-3, rel=2e-2, abs=2e-3)


def test_no_sample_is_called_more_often_than_it_must_be():
    student, calls = counted(affine()[0])
    made = backward_simulation(Chain(FOUR), each=True)(cast_of(student), batch_of(50), generator())
    assert sum(calls) == int((made.index + 1).sum())
    calls.clear()
    one_step(0.5)(cast_of(student), batch_of(50), generator())
    assert calls == [50]


def test_fixed_noise_is_the_first_noise_again():
    student, _ = affine()
    seed = next(s for s in range(20) if int(torch.randint(4, (1,), generator=generator(s))) == 1)
    made = backward_simulation(Chain(FOUR), fixed=True)(cast_of(student), batch_of(6), generator(seed))
    again = generator(seed)
    torch.randint(4, (1,), generator=again)
    noise = torch.randn(6, 1, generator=again)
    first = student(noise, torch.ones(6, dtype=torch.float64))
    assert torch.allclose(made.state, 0.25 * first.to(noise) + 0.75 * noise, atol=1e-6)


def test_first_states_have_the_scale_of_the_process():
    noise = torch.ones(1, 1, dtype=torch.float64)
    assert float(first_state(VE(), 2.5, noise)) == 2.5
    assert float(first_state(VPDiscrete.from_betas(), 625.0, noise)) == pytest.approx(1, abs=1e-12)
    assert float(first_state(FLOW, 0.75, noise)) == pytest.approx(0.625**0.5)


def test_one_step_students_start_where_their_family_does():
    assert one_step_time(VE()) == pytest.approx(2.5)
    assert one_step_time(FLOW) == 1.0
    assert one_step_time(VPDiscrete.from_betas()) == 0.625 * 999


def test_the_first_calls_alone():
    index = backward_simulation(Chain(FOUR), each=True, first=2)(cast_of(affine()[0]), batch_of(200), generator()).index
    assert set(index.tolist()) == {0, 1}


def test_noised_data():
    data = 3 + torch.randn(20_000, 1, generator=generator(5))
    batch = batch_of(20_000, clean=data)
    made = noised_data_rollout(Chain(FOUR))(cast_of(perfect(3.0, 1.0)), batch, generator())
    for call, t in enumerate(FOUR):
        state = made.state[made.index == call]
        assert float(state.mean()) == pytest.approx(3 * (1 - t), abs=0.05)
        assert float(state.var()) == pytest.approx((1 - t) ** 2 + t**2, rel=0.08)
    with pytest.raises(FewstepError, match="real data"):
        noised_data_rollout(Chain(FOUR))(cast_of(perfect(3.0, 1.0)), batch_of(4), generator())


def test_random_schedules_start_at_noise_and_vary():
    student, calls = counted(perfect(0.0, 1.0))
    lengths, times = set(), set()
    for seed in range(30):
        calls.clear()
        made = random_schedule(1, 4)(cast_of(student), batch_of(2), generator(seed))
        lengths.add(len(calls))
        times.add(round(float(made.time[0]), 6))
        assert 0.02 <= float(made.time[0]) <= 1
    assert lengths == {1, 2, 3, 4}
    assert 1.0 in times
    assert len(times) > 10


def test_conditions_follow_their_samples():
    seen = []

    def network(x, time, label):
        seen.append((label.clone(), x.clone()))
        return label[:, None].to(x)

    student = Denoiser(network, FLOW, Prediction("sample"))
    label = torch.arange(30.0)
    batch = Batch(30, (1,), condition={"label": label}, negative={"label": 0 * label})
    made = backward_simulation(Chain(FOUR, 0.0), each=True)(cast_of(student), batch, generator())
    assert torch.equal(made.clean.flatten(), label)
    assert {len(each) for each, _ in seen} != {30}


def test_finishing_the_chain_of_a_perfect_student_keeps_the_law():
    steps = Chain(FOUR)
    student, calls = counted(perfect(1.5, 0.25))
    made = backward_simulation(steps, each=True)(cast_of(student), batch_of(40_000), generator())
    calls.clear()
    clean = steps.finish(student, batch_of(40_000), made, generator(1))
    assert sum(calls) == int((3 - made.index).sum())
    assert torch.equal(clean[made.index == 3], made.clean[made.index == 3])
    assert float(clean.mean()) == pytest.approx(1.5, abs=0.02)
    assert float(clean.var()) == pytest.approx(0.25, rel=0.04)


def test_a_deterministic_chain_is_finished_as_it_would_have_been():
    steps, student = Chain(FOUR, 0.0), affine()[0]
    index = torch.arange(20) % 4
    noise = torch.randn(20, 1, generator=generator())
    part = steps.roll_out(student, batch_of(20), noise, index, generator())
    whole = steps.roll_out(student, batch_of(20), noise, torch.full((20,), 3), generator())
    assert torch.allclose(steps.finish(student, batch_of(20), part, generator(9)), whole.clean, atol=1e-6)


def test_relay_has_its_gradient_in_the_later_call_alone():
    student, weight = affine()
    steps = Chain(FOUR)
    early = backward_simulation(Chain(FOUR), last=False)(cast_of(student), batch_of(8), generator(3))
    seen = []

    def term(networks, batch, made, generator):
        seen.append(made)
        return made.clean.sum(), {}

    loss, _ = later_call(steps, (0.5, 0.25), term)(cast_of(student), batch_of(8), early, generator())
    (gradient,) = torch.autograd.grad(loss, weight)
    call = int(seen[0].index[0])
    assert (gradient != 0).nonzero().flatten().tolist() == [call]
    assert call in (2, 3)
    loss, _ = later_call(steps, (0.5,), term, learn=False)(cast_of(student), batch_of(8), early, generator())
    assert not loss.requires_grad
    with pytest.raises(FewstepError, match="never called"):
        later_call(steps, (0.6,), term)(cast_of(student), batch_of(8), early, generator())


def test_between_selects_by_the_time_of_the_call():
    made = made_of(torch.zeros(3, 1), time=0.5)
    assert between(0.5, 1.0)(made).tolist() == [True] * 3
    assert between(0.6, 1.0)(made).tolist() == [False] * 3


def test_times_outside_the_process_are_refused():
    with pytest.raises(FewstepError, match="outside the process"):
        backward_simulation(Chain((999.0, 500.0)))(cast_of(normal(0, 1)), batch_of(2), generator())
    process = VPDiscrete.from_betas()
    model = normal(0, 1, process, "epsilon")
    backward_simulation(evenly(process, 4))(cast_of(model), batch_of(2, **labels(2)), generator())
