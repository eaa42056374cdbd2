"""The critic's loss: what it is minimal at, its weights, and the density ratio of onward noise."""

import math

import pytest
import torch

from fewstep.denoiser import Denoiser
from fewstep.distillation.core import Samples
from fewstep.distillation.parts import (
    denoising_loss,
    mean_variance_penalty,
    onward,
    paired_regression,
    reward_term,
    scale_weight,
)
from fewstep.distillation.score.critic import density_ratio, dropped
from fewstep.distillation.times import fixed_times, uniform_times
from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import VE, RectifiedFlow, VPDiscrete
from tests.distillation.gaussians import (
    FLOW,
    batch_of,
    cast_of,
    counted,
    generator,
    guided_pair,
    labels,
    made_of,
    normal,
)

SIZE = 20_000
KINDS = [
    (FLOW, "velocity"),
    (VPDiscrete.from_betas(), "epsilon"),
    (VPDiscrete.from_betas(), "v_prediction"),
    (VE(), "edm"),
    (RectifiedFlow(3.0), "sample"),
]


def samples(size=SIZE, mean=1.4, std=0.8, seed=0):
    return mean + std * torch.randn(size, 1, generator=generator(seed), dtype=torch.float64)


def shifted_model(model, gain, offset):
    """A denoiser whose clean prediction is gain D + offset."""

    def network(x, time, **condition):
        t = model.process.from_network_time(time.double())
        a, s = (f(t)[:, None] for f in (model.process.alpha, model.process.sigma))
        scale = model.prediction.input_scale(a, s)
        clean = gain * model(x / scale, t, condition) + offset
        p, m = model.prediction.sample(a, s)
        return (clean - p * x / scale) / m

    return Denoiser(network, model.process, model.prediction)


@pytest.mark.parametrize(("process", "kind"), KINDS)
@pytest.mark.parametrize("own", [True, False])
def test_the_exact_denoiser_is_the_minimum(process, kind, own):
    exact = normal(1.4, 0.64, process, kind)
    t = 0.3 * process.noisiest if kind != "edm" else 0.7
    term = denoising_loss(fixed_times((t,)), own=own)

    def loss(gain, offset):
        critic = shifted_model(exact, gain, offset)
        return float(term(cast_of(exact, critic), batch_of(SIZE), made_of(samples()), generator(1))[0])

    best = loss(1.0, 0.0)
    for gain, offset in ((1.05, 0.0), (0.95, 0.0), (1.0, 0.05), (1.0, -0.05)):
        assert loss(gain, offset) > best


@pytest.mark.parametrize(("process", "kind"), KINDS)
def test_the_own_loss_is_that_of_the_networks_target(process, kind):
    critic, x = normal(0.5, 1.0, process, kind), samples(40)
    t = 0.3 * process.noisiest if kind != "edm" else 0.7
    loss, _ = denoising_loss(fixed_times((t,)))(cast_of(critic, critic), batch_of(40), made_of(x), generator(1))
    g = generator(1)
    torch.randint(1, (40,), generator=g)
    noise = torch.randn(40, 1, generator=g)
    a, s = process.alpha(t), process.sigma(t)
    noisy = a * x + s * noise
    clean = critic(noisy, torch.full((40,), t, dtype=torch.float64))
    square = (clean - x).square().mean()
    weight = {
        "velocity": 1 / s**2,
        "epsilon": (a / s) ** 2,
        "v_prediction": 1 / s**2,
        "edm": (s**2 + 0.25) / (0.5 * s) ** 2,  # the weight of arXiv 2206.00364
        "sample": 1.0,
    }[kind]
    assert float(loss) == pytest.approx(float(weight * square), rel=1e-5)


def test_snr_weight_on_clean_predictions_is_the_noise_error():
    process = VPDiscrete.from_betas()
    critic, made = normal(0.5, 1.0, process, "epsilon"), made_of(samples(50))
    law = fixed_times((300.0, 600.0, 900.0))
    noise_error, _ = denoising_loss(law)(cast_of(critic, critic), batch_of(50), made, generator())
    weighed, _ = denoising_loss(law, own=False, weights=(scale_weight(2, -2),))(
        cast_of(critic, critic), batch_of(50), made, generator()
    )
    assert float(noise_error) == pytest.approx(float(weighed), rel=1e-6)


def test_no_gradient_reaches_the_student():
    x = samples(8).requires_grad_(True)
    weight = torch.ones((), requires_grad=True)
    critic = Denoiser(lambda s, time: weight * s, FLOW, Prediction("velocity"))
    loss, numbers = denoising_loss(uniform_times())(cast_of(normal(0, 1), critic), batch_of(8), made_of(x), generator())
    loss.backward()
    assert x.grad is None
    assert weight.grad is not None
    assert not any(value.requires_grad for value in numbers.values())


@pytest.mark.parametrize(("guidance", "forwards"), [(1.0, 1), (0.0, 1), (4.5, 2), (-1.0, 2)])
def test_the_guided_prediction_is_regressed(guidance, forwards):
    pair = guided_pair((1.0, 0.25), (0.0, 1.25))
    critic, calls = counted(pair)
    term = denoising_loss(fixed_times((0.4,)), own=False, guidance=guidance)
    x = samples(30)
    loss, _ = term(cast_of(pair, critic), batch_of(30, **labels(30)), made_of(x), generator(1))
    assert sum(calls) == 30 * forwards
    assert len(calls) == 1
    g = generator(1)
    torch.randint(1, (30,), generator=g)
    noisy, t = 0.6 * x + 0.4 * torch.randn(30, 1, generator=g), torch.full((30,), 0.4, dtype=torch.float64)
    within, free = (pair(noisy, t, {"label": value}) for value in (torch.ones(30), torch.zeros(30)))
    assert float(loss) == pytest.approx(float((free + guidance * (within - free) - x).square().mean()), rel=1e-6)


def test_conditions_are_dropped_at_the_rate():
    batch = batch_of(20_000, **labels(20_000))
    kept = dropped(batch, 0.1, generator())["label"]
    assert float(kept.mean()) == pytest.approx(0.9, abs=0.01)
    assert dropped(batch, 0.0, generator()) is batch.condition
    with pytest.raises(FewstepError, match="negative"):
        dropped(batch_of(3, condition={"label": torch.ones(3)}), 0.1, generator())


# --- onward noise


def chain(size, process=FLOW, time=0.8, until=0.5):
    """What a student made on the way from `time` to `until`, one clean sample with many noises."""
    clean = torch.full((size, 1), 0.7, dtype=torch.float64)
    state = torch.full((size, 1), 1.1, dtype=torch.float64)
    return made_of(clean, time * process.noisiest, until * process.noisiest, state)


@pytest.mark.parametrize("process", [FLOW, VPDiscrete.from_betas()])
def test_the_full_ratio_turns_onward_noise_into_direct_noise(process):
    size, t = 100_000, 0.7 * process.noisiest
    made, at = chain(size, process), torch.full((size,), t, dtype=torch.float64)
    noise = torch.randn(size, 1, generator=generator(), dtype=torch.float64)
    model = normal(0, 1, process, "epsilon")
    noisy = onward(process, made, at, noise)
    a, s = process.alpha(t), process.sigma(t)
    ratio = density_ratio(model, made, at, (noisy - a * made.clean) / s, noise, "full")
    # the Gaussian q(x_t | x) has more spread than the proposal: the ratio's own moments check the identity
    direct = a * 0.7 + s * torch.randn(size, 1, generator=generator(1), dtype=torch.float64)
    for h in (torch.ones_like, lambda x: x, torch.cos):
        assert float((ratio[:, None] * h(noisy)).mean()) == pytest.approx(float(h(direct).mean()), abs=0.03)


def test_the_tempered_ratio_is_the_published_formula():
    made, at = chain(500), torch.full((500,), 0.6, dtype=torch.float64)
    made = Samples(made.clean.expand(-1, 3), made.state.expand(-1, 3), made.time, made.next_time, made.index)
    noise = torch.randn(500, 3, generator=generator(), dtype=torch.float64)
    noisy = onward(FLOW, made, at, noise)
    found = density_ratio(normal(0, 1), made, at, (noisy - 0.4 * made.clean) / 0.6, noise, "tempered")
    implied = (made.state - 0.2 * made.clean) / 0.8  # the student's noise, from its state at 0.8
    kept = 0.4 / 0.5
    b = math.sqrt(0.6**2 - (kept * 0.5) ** 2)
    mixed = (0.4 * 0.5 / 0.5 * implied + b * noise) / 0.6
    wanted = torch.exp(-0.5 * mixed.square().mean(1)) / torch.exp(-0.5 * noise.square().mean(1))
    assert torch.allclose(found, wanted)


def test_importance_enters_the_loss():
    critic, made = normal(0, 1), chain(64)
    args = (cast_of(critic, critic), batch_of(64), made)
    losses = [
        float(denoising_loss(fixed_times((0.6,)), own=False, noising=onward, importance=kind)(*args, generator())[0])
        for kind in ("none", "tempered", "full")
    ]
    assert len(set(losses)) == 3
    with pytest.raises(FewstepError, match="importance"):
        denoising_loss(uniform_times(), importance="half")


def test_errors_are_told_for_clean_and_noisy_halves():
    critic = normal(0.5, 1.0)
    args = (cast_of(critic, critic), batch_of(4000), made_of(samples(4000, 0.5, 1.0)), generator())
    _, numbers = denoising_loss(uniform_times(), own=False)(*args)
    assert float(numbers["error_clean"]) < float(numbers["error"]) < float(numbers["error_noisy"])


# --- terms beside the score


def test_pairs_regress_the_end_of_the_path():
    student = Denoiser(lambda x, time: 2 * x, FLOW, Prediction("sample"))
    path = torch.randn(5, 3, 1, generator=generator())
    batch = batch_of(5, path=path, times=torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    loss, _ = paired_regression(0.25)(cast_of(student), batch, None, generator())
    assert float(loss) == pytest.approx(0.25 * float((2 * path[:, 0] - path[:, 2]).square().mean()))
    with pytest.raises(FewstepError, match="paths"):
        paired_regression()(cast_of(student), batch_of(5), None, generator())


def test_mean_variance_is_a_divergence_of_gaussians():
    x = 0.5 + 2 * torch.randn(3, 500, generator=generator(), dtype=torch.float64)
    loss, _ = mean_variance_penalty(0.1, 1.5)(cast_of(normal(0, 1)), batch_of(3), made_of(x), generator())
    wanted = [
        torch.distributions.kl_divergence(
            torch.distributions.Normal(row.mean(), row.std(unbiased=False)),
            torch.distributions.Normal(torch.tensor(0.1, dtype=torch.float64), 1.5**0.5),
        )
        for row in x
    ]
    assert float(loss) == pytest.approx(float(torch.stack(wanted).mean()))


def test_rewards_are_raised():
    x = samples(6).requires_grad_(True)
    term = reward_term(lambda samples, batch: -samples.square().flatten(), scale=0.5)
    loss, numbers = term(cast_of(normal(0, 1)), batch_of(6), made_of(x), generator())
    (gradient,) = torch.autograd.grad(loss, x)
    assert torch.allclose(gradient, 0.5 * 2 * x / 6)
    assert float(numbers["reward"]) == pytest.approx(-float(x.detach().square().mean()))
    with pytest.raises(FewstepError, match="no gradient"):
        reward_term(lambda samples, batch: samples.detach().flatten())(
            cast_of(normal(0, 1)), batch_of(6), made_of(x), generator()
        )
