"""What a branch costs, whom its gradient reaches, and what its weights do."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fewstep.denoiser import Denoiser
from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Batch
from fewstep.distillation.discriminator import Discriminator, MeanHead, NetworkFeatures
from fewstep.distillation.part import made_by, replaced
from fewstep.distillation.parts import (
    density_ratio_weight,
    distribution_matching,
    error_normalizer,
    guidance_difference,
    huber_gradient,
    power_gradient,
    reward_weight,
    scale_weight,
    scheduled,
    score_distillation,
    score_identity,
    squared,
    weighted_sum,
)
from fewstep.distillation.rollout import backward_simulation, between
from fewstep.distillation.score.weights import RATIOS
from fewstep.distillation.times import fixed_times, uniform_times
from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from tests.distillation.gaussians import (
    FLOW,
    Line,
    batch_of,
    cast_of,
    counted,
    generator,
    guided_pair,
    labels,
    made_of,
    normal,
    perfect,
)

SIZE = 6
TEACHER = guided_pair((1.0, 0.25), (0.0, 1.25))
CRITIC = guided_pair((1.4, 0.64), (0.2, 1.0))


def leaf(size=SIZE, seed=0):
    return torch.randn(size, 1, generator=generator(seed), dtype=torch.float64).requires_grad_(True)


def gradient_of(branch, x, cast=None, batch=None, seed=1, **more):
    batch = batch or batch_of(len(x), **labels(len(x)))
    loss, numbers = branch(cast or cast_of(TEACHER, CRITIC), batch, made_of(x, **more), generator(seed))
    (gradient,) = torch.autograd.grad(loss, x)
    return gradient, float(loss.detach()), numbers


def predictions(x, seed=1, t=0.4):
    """What the networks say at the states that a branch with Points((t,)) makes of x."""
    g = generator(seed)
    torch.randint(1, (len(x),), generator=g)
    noisy = (1 - t) * x.detach() + t * torch.randn(x.shape, generator=g)
    at = torch.full((len(x),), t, dtype=torch.float64)
    one, zero = {"label": torch.ones(len(x))}, {"label": torch.zeros(len(x))}
    return [model(noisy, at, label) for model in (TEACHER, CRITIC) for label in (one, zero)]


DELTAS = {
    distribution_matching(): lambda Fc, Fu, Gc, Gu: Gc - Fc,
    distribution_matching(3.0): lambda Fc, Fu, Gc, Gu: Gc - (Fu + 3 * (Fc - Fu)),
    distribution_matching(1.5, 1.5): lambda Fc, Fu, Gc, Gu: (Gu + 1.5 * (Gc - Gu)) - (Fu + 1.5 * (Fc - Fu)),
    distribution_matching(1.0, 0.0): lambda Fc, Fu, Gc, Gu: Gu - Fc,
    distribution_matching(1.0, -1.0): lambda Fc, Fu, Gc, Gu: (2 * Gu - Gc) - Fc,
    guidance_difference(): lambda Fc, Fu, Gc, Gu: Fu - Fc,
    guidance_difference("critic"): lambda Fc, Fu, Gc, Gu: Gu - Gc,
    weighted_sum(((2.0, distribution_matching()), (0.5, guidance_difference()))): lambda Fc, Fu, Gc, Gu: (
        2 * (Gc - Fc) + 0.5 * (Fu - Fc)
    ),
}


@pytest.mark.parametrize("direction", list(DELTAS), ids=str)
@pytest.mark.parametrize("weight", [None, error_normalizer(3.0), scale_weight(2, -2)], ids=str)
def test_the_gradient_is_weight_times_delta(direction, weight):
    x = leaf()
    found, _, _ = gradient_of(
        score_distillation(direction, fixed_times((0.4,)), (weight,) if weight else (), scale=0.7), x
    )
    Fc, Fu, Gc, Gu = predictions(x)
    w = {None: 1.0, error_normalizer(3.0): 1 / (x - Fu - 3 * (Fc - Fu)).abs(), scale_weight(2, -2): (0.6 / 0.4) ** 2}[
        weight
    ]
    assert torch.allclose(found, 0.7 * w * DELTAS[direction](Fc, Fu, Gc, Gu) / SIZE, rtol=1e-6)


def test_the_published_stop_gradient_loss_has_the_same_gradient_and_value():
    x = leaf()
    found, value, numbers = gradient_of(score_distillation(distribution_matching(), fixed_times((0.4,))), x)
    Fc, _, Gc, _ = predictions(x)
    loss = 0.5 * (x - (x - (Gc - Fc)).detach()).square().mean()
    assert torch.allclose(found, torch.autograd.grad(loss, x)[0])
    assert value == pytest.approx(float(loss.detach()))
    assert float(numbers["pull"]) == pytest.approx(float((SIZE * found).square().mean().sqrt()))


def test_element_huber_is_the_published_loss_of_tdm():
    x = leaf()
    found, _, _ = gradient_of(
        score_distillation(distribution_matching(), fixed_times((0.4,)), slope=huber_gradient(0.3, elementwise=True)), x
    )
    Fc, _, Gc, _ = predictions(x)
    target = (x - (Gc - Fc)).detach()
    loss = (((x - target).square() + 0.09).sqrt() - 0.3).mean()
    assert torch.allclose(found, torch.autograd.grad(loss, x)[0])


@pytest.mark.parametrize(
    ("slope", "distance"),
    [
        (squared, lambda y: 0.5 * y.square().sum()),
        (huber_gradient(0.7), lambda y: (y.square().sum() + 0.49 * 5).sqrt()),
        (huber_gradient(0.2, elementwise=True), lambda y: (y.square() + 0.04).sqrt().sum()),
        (power_gradient(2.0), lambda y: y.square().sum() ** 2 / 4),
        (power_gradient(1.0), lambda y: y.square().sum() / 2),
    ],
)
def test_slopes_are_gradients_of_their_distances(slope, distance):
    y = torch.randn(3, 5, generator=generator(), dtype=torch.float64)
    wanted = torch.stack([torch.func.grad(distance)(row) for row in y])
    assert torch.allclose(slope(y), wanted)


# --- cost


@pytest.mark.parametrize(
    ("direction", "teacher", "critic"),
    [
        (distribution_matching(), 1, 1),
        (distribution_matching(7.5), 2, 1),
        (distribution_matching(4.5, 4.5), 2, 2),
        (distribution_matching(1.0, 0.0), 1, 1),
        (guidance_difference(), 2, 0),
        (weighted_sum(((1.0, distribution_matching()), (6.5, guidance_difference()))), 2, 1),
        (score_identity(1.0), 1, 1),
    ],
)
def test_forwards_are_counted(direction, teacher, critic):
    (t, seen_t), (c, seen_c) = counted(TEACHER), counted(CRITIC)
    weights = (error_normalizer(direction.guidance),) if made_by(direction, distribution_matching) else ()
    gradient_of(score_distillation(direction, uniform_times(), weights), leaf(), cast_of(t, c))
    assert (sum(seen_t), sum(seen_c)) == (teacher * SIZE, critic * SIZE)
    assert len(seen_t) <= 1
    assert len(seen_c) <= 1


def test_separate_branches_cost_four_forwards():
    (t, seen_t), (c, seen_c) = counted(TEACHER), counted(CRITIC)
    x = leaf()
    for direction in (distribution_matching(), guidance_difference()):
        gradient_of(score_distillation(direction, uniform_times(), (error_normalizer(),)), x, cast_of(t, c))
    assert (sum(seen_t), sum(seen_c)) == (3 * SIZE, SIZE)


def test_inactive_samples_cost_nothing_and_get_nothing():
    (t, seen_t), (c, seen_c) = counted(TEACHER), counted(CRITIC)
    x = leaf()
    time = torch.tensor([1.0, 0.75, 0.5, 0.25, 1.0, 0.25], dtype=torch.float64)
    whole = score_distillation(distribution_matching(2.0), uniform_times(), (error_normalizer(2.0),))
    part = replaced(whole, active=between(0.6, 1.0))
    made = replace(made_of(x), time=time)
    batch = batch_of(SIZE, **labels(SIZE))
    loss, _ = part(cast_of(t, c), batch, made, generator())
    (found,) = torch.autograd.grad(loss, x)
    (all_of_it,) = torch.autograd.grad(whole(cast_of(TEACHER, CRITIC), batch, made, generator())[0], x)
    active = time >= 0.6
    assert torch.allclose(found[active], all_of_it[active])
    assert bool((found[~active] == 0).all())
    assert (sum(seen_t), sum(seen_c)) == (6, 3)
    seen_t.clear()
    none = replaced(part, active=between(2.0, 3.0))
    loss, numbers = none(cast_of(t, c), batch, made, generator())
    assert (float(loss.detach()), numbers, seen_t) == (0.0, {}, [])
    loss.backward()


# --- whom the gradient reaches


class Small(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.inner = nn.Linear(2, 8)
        self.outer = nn.Linear(8, 1)

    def forward(self, x, time):
        return self.outer(torch.tanh(self.inner(torch.cat([x, time[:, None] / 1000], 1))))


@pytest.mark.parametrize("direction", [distribution_matching(), score_identity(1.2)])
def test_no_gradient_reaches_teacher_critic_or_the_calls_before(direction):
    networks = [Small(seed) for seed in range(3)]
    student, teacher, critic = (Denoiser(n, FLOW, Prediction("velocity")) for n in networks)
    cast = cast_of(teacher, critic, student)
    batch = Batch(SIZE, (1,))
    prefix = []

    def watched(x, time):
        raw = networks[0](x, time)
        prefix.append((raw, torch.is_grad_enabled()))
        return raw

    cast = replace(cast, student=Denoiser(watched, FLOW, Prediction("velocity")))
    made = backward_simulation(Chain((1.0, 0.75, 0.5, 0.25)), last=True)(cast, batch, generator())
    loss, _ = score_distillation(direction, uniform_times(), (error_normalizer(),))(cast, batch, made, generator())
    loss.backward()
    assert all(p.grad is not None for p in networks[0].parameters())
    assert all(p.grad is None for n in networks[1:] for p in n.parameters())
    assert [on for _, on in prefix] == [False, False, False, True]


def test_identity_is_the_same_as_back_propagating_it_plainly():
    networks = [Small(seed) for seed in range(2)]
    teacher, critic = (Denoiser(n, FLOW, Prediction("velocity")) for n in networks)
    x = torch.randn(SIZE, 1, generator=generator()).requires_grad_(True)
    cast = cast_of(teacher, critic)
    loss, _ = score_distillation(score_identity(1.2), fixed_times((0.4,)), (scale_weight(1, 0),))(
        cast, batch_of(SIZE), made_of(x), generator(1)
    )
    (found,) = torch.autograd.grad(loss, x)
    g = generator(1)
    torch.randint(1, (SIZE,), generator=g)
    noisy = 0.6 * x + 0.4 * torch.randn(SIZE, 1, generator=g)
    t = torch.full((SIZE,), 0.4, dtype=torch.float64)
    F, G = teacher(noisy, t), critic(noisy, t)
    plain = 0.6 * ((F - G) * ((F - x) - 1.2 * (F - G))).mean()
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    assert torch.allclose(found, torch.autograd.grad(plain, x)[0], atol=1e-6)


@pytest.mark.parametrize("direction", [distribution_matching(), score_identity(1.0), score_identity(1.2)])
@pytest.mark.parametrize("fresh", [True, False])
def test_an_exact_critic_leaves_a_perfect_student_alone(direction, fresh):
    # every call of this student makes the data law, so the critic of their mixture is the teacher
    teacher = normal(1.5, 0.25)
    rollout = backward_simulation(Chain((1.0, 0.75, 0.5, 0.25)), each=fresh)
    made = rollout(cast_of(perfect(1.5, 0.25)), batch_of(500), generator())
    x = made.clean.clone().requires_grad_(True)
    gradient, value, _ = gradient_of(
        score_distillation(direction, uniform_times(), (error_normalizer(),)),
        x,
        cast_of(teacher, normal(1.5, 0.25)),
        batch_of(500),
    )
    assert float(gradient.abs().max()) < 1e-9
    assert abs(value) < 1e-9


# --- weights


def test_weights_multiply():
    x = leaf()
    both, _, _ = gradient_of(
        score_distillation(distribution_matching(), fixed_times((0.4,)), (scale_weight(1, 0), scale_weight(0, -1))), x
    )
    plain, _, _ = gradient_of(score_distillation(distribution_matching(), fixed_times((0.4,))), x)
    assert torch.allclose(both, plain * 0.6 / 0.4)


def test_weights_are_capped_and_errors_floored():
    x = leaf()
    plain, _, _ = gradient_of(score_distillation(distribution_matching(), fixed_times((0.1,))), x)
    capped, _, _ = gradient_of(
        score_distillation(distribution_matching(), fixed_times((0.1,)), (scale_weight(2, -2, most=5.0),)), x
    )
    assert torch.allclose(capped, 5 * plain)
    plain, _, _ = gradient_of(score_distillation(distribution_matching(), fixed_times((0.4,))), x)
    floored, _, _ = gradient_of(
        score_distillation(distribution_matching(), fixed_times((0.4,)), (error_normalizer(floor=100.0),)), x
    )
    assert torch.allclose(floored, plain / 100)


def test_rewards_tilt_the_gradient_and_beta_zero_does_nothing():
    x = leaf()

    def reward(samples, batch):
        assert not samples.requires_grad
        return samples.flatten()

    plain, _, _ = gradient_of(score_distillation(distribution_matching(), fixed_times((0.4,))), x)
    none, _, _ = gradient_of(
        score_distillation(distribution_matching(), fixed_times((0.4,)), (reward_weight(reward, 0.0),)), x
    )
    two, _, _ = gradient_of(
        score_distillation(distribution_matching(), fixed_times((0.4,)), (reward_weight(reward, 2.0),)), x
    )
    assert torch.equal(plain, none)
    assert torch.allclose(two, plain * (2 * x).exp())


def test_the_scale_may_follow_the_training():
    x = leaf()
    branch = score_distillation(distribution_matching(), fixed_times((0.4,)), scale=lambda done: 4 * done)
    plain, _, _ = gradient_of(replaced(branch, scale=1.0), x)
    for step, factor in ((0, 0.0), (5, 2.0)):
        batch = replace(batch_of(SIZE, **labels(SIZE)), step=step, steps=10)
        assert torch.allclose(gradient_of(branch, x, batch=batch)[0], factor * plain)


F_OF = {
    "reverse_kl": lambda r: -torch.log(r),
    "forward_kl": lambda r: r * torch.log(r),
    "jensen_shannon": lambda r: r * torch.log(r) - (r + 1) * torch.log((r + 1) / 2),
    "softened_reverse_kl": lambda r: (r + 1) * torch.log(1 / 2 + 1 / (2 * r)),
    "neyman": lambda r: 1 / r,
    "hellinger": lambda r: 1 - r.sqrt(),
    "jeffreys": lambda r: (r - 1) * torch.log(r),
}


@pytest.mark.parametrize("kind", list(RATIOS))
def test_ratios_are_second_derivatives_of_their_divergences(kind):
    r = torch.linspace(0.2, 4.0, 9, dtype=torch.float64)
    second = torch.func.vmap(torch.func.grad(torch.func.grad(F_OF[kind])))(r)
    wanted = r**2 * second
    found = RATIOS[kind](r)
    assert torch.allclose(found / found[0], wanted / wanted[0])


def test_ratios_are_levelled_per_tenth_of_the_range():
    adversary = Discriminator({"x": MeanHead()})
    times = torch.tensor([0.05, 0.05, 0.95, 0.95], dtype=torch.float64)

    def law(size, process, generator, made=None):
        return times

    def odds(cast, batch, view):
        return torch.tensor([1.0, 3.0, 4.0, 8.0]).log()

    x = leaf(4)
    cast = cast_of(TEACHER, CRITIC, adversary=adversary)
    branch = score_distillation(distribution_matching(), law, (density_ratio_weight("forward_kl", odds, momentum=1.0),))
    found, _, _ = gradient_of(branch, x, cast)
    plain, _, _ = gradient_of(score_distillation(distribution_matching(), law), x, cast)
    assert (found / plain).flatten().tolist() == pytest.approx([0.5, 1.5, 2 / 3, 4 / 3])
    assert adversary.level.tolist() == pytest.approx([2.0] + [1.0] * 8 + [6.0])
    clipped = score_distillation(
        distribution_matching(), law, (density_ratio_weight("forward_kl", odds, clip=(2.0, 4.0), level=False),)
    )
    assert (gradient_of(clipped, x, cast)[0] / plain).flatten().tolist() == pytest.approx([2, 3, 4, 4])


@pytest.mark.parametrize("who", ["teacher", "critic"])
def test_ratios_read_features_of_the_call_that_is_made_anyway(who):
    network, other = Small(0), Small(1)
    teacher, critic = (Denoiser(n, FLOW, Prediction("velocity")) for n in (network, other))
    adversary = Discriminator({"inner": MeanHead()})
    cast = cast_of(teacher, critic, adversary=adversary)
    calls = []
    for each in (network, other):
        each.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(SIZE, 1, generator=generator()).requires_grad_(True)
    branch = score_distillation(
        distribution_matching(),
        fixed_times((0.4,)),
        (density_ratio_weight("forward_kl", level=False),),
        taps=NetworkFeatures(who, ("inner",)),
    )
    found, _, _ = gradient_of(branch, x, cast, batch_of(SIZE))
    assert len(calls) == 2
    g = generator(1)
    torch.randint(1, (SIZE,), generator=g)
    noisy = torch.cat([0.6 * x.detach() + 0.4 * torch.randn(SIZE, 1, generator=g), torch.full((SIZE, 1), 0.4)], 1)
    r = {"teacher": network, "critic": other}[who].inner(noisy).mean(1).exp()
    plain, _, _ = gradient_of(score_distillation(distribution_matching(), fixed_times((0.4,))), x, cast, batch_of(SIZE))
    assert torch.allclose(found, plain * r[:, None].detach(), rtol=1e-4)
    with pytest.raises(FewstepError, match="read from features"):
        gradient_of(replaced(branch, taps=None), x, cast, batch_of(SIZE))


def test_terms_may_change_as_the_training_goes_on():
    x = leaf()
    term = scheduled(lambda batch: score_distillation(distribution_matching(), fixed_times((0.2 + batch.progress,))))
    for step in (0, 5):
        batch = replace(batch_of(SIZE, **labels(SIZE)), step=step, steps=10)
        wanted, _, _ = gradient_of(
            score_distillation(distribution_matching(), fixed_times((0.2 + step / 10,))), x, batch=batch
        )
        assert torch.equal(gradient_of(term, x, batch=batch)[0], wanted)


@pytest.mark.parametrize("direction", [distribution_matching(), score_identity(1.0)])
def test_half_precision_is_widened_before_networks_are_compared(direction):
    seen = []

    def network(x, time, label):
        seen.append(x.dtype)
        return TEACHER.network(x, time, label)

    cast = cast_of(Denoiser(network, FLOW, Prediction("velocity")), CRITIC)
    x = leaf().detach().bfloat16().requires_grad_(True)
    found, _, _ = gradient_of(score_distillation(direction, fixed_times((0.4,))), x, cast)
    wanted, _, _ = gradient_of(
        score_distillation(direction, fixed_times((0.4,))), x.detach().float().requires_grad_(True), cast
    )
    assert seen == [torch.float32] * 2
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), wanted, rtol=0.01)


# --- signals and mistakes


def test_signals_of_health():
    line = Line(1.0, 0.5, 1000)
    _, numbers = score_distillation(distribution_matching(), uniform_times())(
        cast_of(normal(1.0, 0.25), line.critic), batch_of(1000), line.made(), generator()
    )
    assert float(numbers["gap"]) == pytest.approx(0, abs=1e-6)
    assert float(numbers["cosine"]) == pytest.approx(1)
    assert float(numbers["spread"]) == pytest.approx(0.5, rel=0.05)
    lagging = cast_of(normal(1.0, 0.25), normal(-1.0, 0.25))
    _, worse = score_distillation(distribution_matching(), uniform_times())(
        lagging, batch_of(1000), line.made(), generator()
    )
    assert float(worse["gap"]) > 0.5
    assert float(worse["cosine"]) < 0.9
    assert not any(value.requires_grad for value in worse.values())


def test_mistakes_are_named():
    x = leaf()
    with pytest.raises(FewstepError, match="needs a critic"):
        gradient_of(score_distillation(distribution_matching(), uniform_times()), x, cast_of(TEACHER))
    with pytest.raises(FewstepError, match="negative condition"):
        gradient_of(
            score_distillation(distribution_matching(2.0), uniform_times()),
            x,
            cast_of(normal(0, 1), normal(0, 1)),
            batch_of(SIZE),
        )
    with pytest.raises(FewstepError, match="roll-out"):
        score_distillation(distribution_matching(), uniform_times())(
            cast_of(TEACHER, CRITIC), batch_of(SIZE), None, generator()
        )
    with pytest.raises(FewstepError, match="unknown divergence"):
        density_ratio_weight("kl")
