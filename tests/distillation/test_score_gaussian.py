"""Gradients of score distillation on Gaussians, against closed forms derived independently of the code."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq

from fewstep.distillation.parts import (
    density_ratio_weight,
    distribution_matching,
    guidance_difference,
    huber_gradient,
    onward,
    power_gradient,
    scale_weight,
    score_distillation,
    score_identity,
    squared,
    weighted_sum,
)
from fewstep.distillation.times import fixed_times, uniform_times
from fewstep.process import RectifiedFlow, VPContinuous, VPDiscrete
from fewstep.transition import forward_step
from tests.distillation.gaussians import FLOW, Line, batch_of, cast_of, generator, guided_pair, labels, made_of, normal

SIZE = 200_000
MU, V = 1.0, 0.25
M, STD = 1.4, 0.8
T = 0.4
A, S = 1 - T, T
VD, VG = A**2 * V + S**2, A**2 * STD**2 + S**2
EXACT = {"rel": 0.02, "abs": 0.02}


def gradients(branch, mean=M, std=STD, size=SIZE, seed=0, teacher=None, **more):
    line = Line(mean, std, size, seed)
    networks = cast_of(teacher or normal(MU, V), line.critic)
    loss, numbers = branch(networks, batch_of(size, **more), line.made(), generator(seed + 1))
    return line.gradient(loss), float(loss.detach()), numbers


def test_matching_with_the_weight_of_kl_is_the_gradient_of_kl():
    found, _, _ = gradients(score_distillation(distribution_matching(), fixed_times((T,)), (scale_weight(2, -2),)))
    wanted = [A**2 * (M - MU) / VD, A**2 * STD * (1 / VD - 1 / VG)]
    assert found == pytest.approx(wanted, **EXACT)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_identity_is_the_gradient_of_sid(alpha):
    found, _, _ = gradients(score_distillation(score_identity(alpha), fixed_times((T,)), (scale_weight(2, -4),)))
    dm = A**2 * (M - MU) / VD * ((2 - 2 * alpha) / VD + (2 * alpha - 1) / VG)
    ds = -2 * A**2 * STD * (1 / VG - 1 / VD) * ((1 - alpha) / VD + alpha / VG)
    assert found == pytest.approx([dm, ds], rel=0.03, abs=0.05)


def test_half_of_alpha_is_half_the_fisher_divergence():
    # E |score_g - score_d|^2 of two Gaussians, differentiated by differences
    def fisher(mean, std):
        vg = A**2 * std**2 + S**2
        return (1 / VD - 1 / vg) ** 2 * vg + (A * (mean - MU) / VD) ** 2

    h = 1e-5
    wanted = [
        (fisher(M + h, STD) - fisher(M - h, STD)) / (4 * h),
        (fisher(M, STD + h) - fisher(M, STD - h)) / (4 * h),
    ]
    found, _, _ = gradients(score_distillation(score_identity(0.5), fixed_times((T,)), (scale_weight(2, -4),)))
    assert found == pytest.approx(wanted, rel=0.03, abs=0.05)


def test_large_alpha_reverses_where_the_student_is_too_wide():
    def mean_gradient(alpha, ratio):
        std = math.sqrt((ratio * VD - S**2) / A**2)
        return gradients(score_distillation(score_identity(alpha), fixed_times((T,)), (scale_weight(2, -4),)), std=std)[
            0
        ][0]

    assert mean_gradient(1.2, 3.0) > 0 > mean_gradient(1.2, 4.5)
    assert mean_gradient(1.0, 4.5) > 0


@pytest.mark.parametrize("slope", [squared, huber_gradient(0.5), power_gradient(2.0)])
def test_sim_is_the_gradient_of_any_distance_with_the_law_frozen(slope):
    distance = {
        squared: lambda y: 0.5 * y**2,
        huber_gradient(0.5): lambda y: (y**2 + 0.25).sqrt(),
        power_gradient(2.0): lambda y: 0.25 * y**4,
    }[slope]
    x = A * M + VG**0.5 * torch.randn(SIZE, generator=generator(3), dtype=torch.float64)

    def clean(mean, variance):
        return mean + A * variance / (A**2 * variance + S**2) * (x - A * mean)

    def divergence(mean, std):
        return float(distance(clean(mean, std**2) - clean(MU, V)).mean())

    h = 1e-4
    wanted = [
        (divergence(M + h, STD) - divergence(M - h, STD)) / (2 * h),
        (divergence(M, STD + h) - divergence(M, STD - h)) / (2 * h),
    ]
    found, _, _ = gradients(score_distillation(score_identity(1.0), fixed_times((T,)), slope=slope))
    assert found == pytest.approx(wanted, rel=0.03, abs=0.004)


def test_detaching_the_noisy_state_would_be_another_gradient():
    line = Line(M, STD, SIZE)
    x = line.made().clean
    noisy = (A * x + S * torch.randn(x.shape, generator=generator(1), dtype=torch.float64)).detach()
    t = torch.full((SIZE,), T, dtype=torch.float64)
    F, G = normal(MU, V)(noisy, t), line.critic(noisy, t)
    detached = line.gradient(((F - G) * (G - x)).mean())
    found, _, _ = gradients(score_distillation(score_identity(1.0), fixed_times((T,))))
    assert abs(found[0] - detached[0]) > 0.1 * abs(detached[0])


def test_all_predictions_give_one_gradient():
    branches = [
        score_distillation(distribution_matching(), fixed_times((T,)), (scale_weight(2, -2),)),
        score_distillation(score_identity(1.2), fixed_times((T,))),
    ]
    for branch in branches:
        seen = []
        for kind in ("epsilon", "v_prediction", "velocity", "edm", "sample", "score"):
            line = Line(M, STD, 200, kind=kind)
            networks = cast_of(normal(MU, V, kind=kind), line.critic)
            seen.append(line.gradient(branch(networks, batch_of(200), line.made(), generator())[0]))
        for other in seen[1:]:
            assert other == pytest.approx(seen[0], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("process", [VPContinuous(), VPDiscrete.from_betas(), RectifiedFlow(3.0)])
def test_kl_on_other_processes(process):
    t = 0.4 * process.noisiest
    a, s = process.alpha(t), process.sigma(t)
    line = Line(M, STD, SIZE, process=process, kind="epsilon")
    networks = cast_of(normal(MU, V, process, "epsilon"), line.critic)
    branch = score_distillation(distribution_matching(), fixed_times((t,)), (scale_weight(2, -2),))
    found = line.gradient(branch(networks, batch_of(SIZE), line.made(), generator())[0])
    vd, vg = a**2 * V + s**2, a**2 * STD**2 + s**2
    assert found == pytest.approx([a**2 * (M - MU) / vd, a**2 * STD * (1 / vd - 1 / vg)], rel=0.02, abs=0.01)


def test_ratio_of_forward_kl_turns_the_gradient_into_that_of_forward_kl():
    # KL(data || student) at one noise level, by its closed form
    def odds(networks, batch, view):
        x = view.noisy.flatten()
        log = [-0.5 * ((x - A * m) ** 2 / v + math.log(v)) for m, v in ((MU, VD), (M, VG))]
        return log[0] - log[1]

    branch = score_distillation(
        distribution_matching(),
        fixed_times((T,)),
        (scale_weight(2, -2), density_ratio_weight("forward_kl", odds, (0, 1e9), level=False)),
    )
    found, _, _ = gradients(branch, size=2 * SIZE)
    # d/dm and d/dstd of 1/2 [log VG + (VD + A^2 (MU - M)^2) / VG]
    spread = VD + A**2 * (MU - M) ** 2
    wanted = [A**2 * (M - MU) / VG, A**2 * STD * (1 / VG - spread / VG**2)]
    assert found == pytest.approx(wanted, **EXACT)
    plain = density_ratio_weight("reverse_kl", odds, (0, 1e9), level=False)
    a, _, _ = gradients(score_distillation(distribution_matching(), fixed_times((T,)), (scale_weight(2, -2), plain)))
    b, _, _ = gradients(score_distillation(distribution_matching(), fixed_times((T,)), (scale_weight(2, -2),)))
    assert a == b


# --- Decoupled DMD: fixed points of conditional N(1, .25) against unconditional N(0, 1.25) ----------------------------

FREE = 1.25


def average(f, low, high):
    return quad(f, low, high)[0] / (high - low)


def fixed_point(guidance, dm, ca):
    """Mean and standard deviation (0: collapse) at which both expected gradients vanish, from their formulas."""

    def gain(v, t):
        return (1 - t) * v / ((1 - t) ** 2 * v + t**2)

    def pull(t):
        return t**2 / ((1 - t) ** 2 * V + t**2)

    def rho(t):
        return (1 - t) ** 2 * (FREE - V) / ((1 - t) ** 2 * FREE + t**2)

    top = average(pull, *dm) + (guidance - 1) * average(pull, *ca)
    mean = MU * top / (average(pull, *dm) + (guidance - 1) * average(lambda t: pull(t) * rho(t), *ca))

    def excess(q):
        kept = average(lambda t: (1 - t) * (gain(V, t) - gain(q, t)), *dm)
        return kept - (guidance - 1) * average(lambda t: (1 - t) * (gain(FREE, t) - gain(V, t)), *ca)

    return mean, math.sqrt(brentq(excess, 1e-9, V)) if excess(1e-9) > 0 else 0.0


@pytest.mark.parametrize(
    ("guidance", "ca", "mean", "std"),
    [(1.5, (0.02, 0.98), 1.322, 0.318), (1.5, (0.02, 0.5), 1.090, 0.281), (4.0, (0.02, 0.25), 1.087, 0.091)],
)
def test_fixed_points_of_the_decoupled_gradient(guidance, ca, mean, std):
    at = fixed_point(guidance, (0.02, 0.98), ca)
    assert at == pytest.approx((mean, std), abs=1.5e-3)  # the published table of this derivation
    teacher = guided_pair((MU, V), (0.0, FREE))
    size = 400_000
    match, extra = (
        score_distillation(distribution_matching(), uniform_times(0.02, 0.98)),
        score_distillation(guidance_difference(), uniform_times(*ca), scale=guidance - 1),
    )

    def both(mean, std):
        line = Line(mean, std, size)
        critic = guided_pair((mean, std**2), (0.0, FREE))
        made, batch = line.made(), batch_of(size, **labels(size))
        networks = cast_of(teacher, critic)
        losses = [branch(networks, batch, made, generator(seed))[0] for seed, branch in ((1, match), (2, extra))]
        return line.gradient(sum(losses))

    here = both(*at)
    assert here == pytest.approx([0, 0], abs=4e-3)
    assert both(at[0] + 0.1, at[1])[0] > 0.015
    assert both(at[0] - 0.1, at[1])[0] < -0.015
    assert both(at[0], at[1] + 0.1)[1] > 0.01


def test_too_much_guidance_on_all_levels_collapses():
    assert fixed_point(4.0, (0.02, 0.98), (0.02, 0.98))[1] == 0
    assert fixed_point(4.0, (0.02, 0.98), (0.02, 0.25))[1] > 0


def test_guidance_alone_always_narrows_the_student():
    size = 100_000
    line = Line(1.2, 0.4, size)
    branch = score_distillation(guidance_difference(), uniform_times(0.02, 0.98))
    networks = cast_of(guided_pair((MU, V), (0.0, FREE)))
    loss, _ = branch(networks, batch_of(size, **labels(size)), line.made(), generator())
    assert line.gradient(loss)[1] > 0


def test_a_sum_at_one_noise_level_is_guided_matching():
    size = 64
    teacher, critic = guided_pair((MU, V), (0.0, FREE)), guided_pair((M, STD**2), (0.0, FREE))
    one = score_distillation(distribution_matching(guidance=3.0), uniform_times())
    two = score_distillation(
        weighted_sum(((1.0, distribution_matching()), (2.0, guidance_difference()))), uniform_times()
    )
    seen = []
    for branch in (one, two):
        line = Line(M, STD, size)
        loss, _ = branch(cast_of(teacher, critic), batch_of(size, **labels(size)), line.made(), generator(4))
        seen.append([float(loss.detach()), *line.gradient(loss)])
    assert seen[0] == pytest.approx(seen[1], rel=1e-12)


# --- noise added onward from a later state of the student -------------------------------------------------------------


@pytest.mark.parametrize("process", [FLOW, VPContinuous(), VPDiscrete.from_betas()])
def test_the_forward_kernel_keeps_the_marginals(process):
    low, high = 0.3 * process.noisiest, 0.7 * process.noisiest
    t, to = (torch.full((SIZE,), v, dtype=torch.float64) for v in (low, high))
    clean = MU + V**0.5 * torch.randn(SIZE, 1, generator=generator(), dtype=torch.float64)
    state = process.add_noise(clean, torch.randn(SIZE, 1, generator=generator(1), dtype=torch.float64), t)
    noisy = forward_step(process, state, torch.randn(SIZE, 1, generator=generator(2), dtype=torch.float64), t, to)
    a, s = process.alpha(high), process.sigma(high)
    assert float(noisy.mean()) == pytest.approx(a * MU, abs=0.01)
    assert float(noisy.var()) == pytest.approx(a**2 * V + s**2, rel=0.015)
    # given the data, too: the noise is white and independent of it
    rest = noisy - a * clean
    assert float(rest.var()) == pytest.approx(s**2, rel=0.015)
    assert float((rest * (clean - MU)).mean()) == pytest.approx(0, abs=0.01)


def test_onward_noise_of_the_last_step_is_direct_noise():
    clean = torch.randn(50, 1, dtype=torch.float64)
    noise, t = torch.randn(50, 1, dtype=torch.float64), torch.full((50,), 0.2, dtype=torch.float64)
    for process in (FLOW, VPDiscrete.from_betas()):
        made = made_of(clean, time=0.25 * process.noisiest, until=0.0, state=torch.randn(50, 1, dtype=torch.float64))
        at = t * process.noisiest
        assert torch.allclose(onward(process, made, at, noise), process.add_noise(clean, noise, at))


def test_one_segment_of_tdm_is_dmd():
    size = 40
    seen = []
    for noising in ({}, {"noising": onward}):
        line = Line(M, STD, size)
        branch = score_distillation(distribution_matching(), uniform_times(), (scale_weight(2, -2),), **noising)
        made = line.made(state=torch.randn(size, 1, generator=generator(), dtype=torch.float64))
        seen.append(line.gradient(branch(cast_of(normal(MU, V), line.critic), batch_of(size), made, generator())[0]))
    assert seen[0] == pytest.approx(seen[1])
