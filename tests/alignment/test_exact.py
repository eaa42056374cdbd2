"""Losses of rewards and preferences against their closed forms, on chains of one number and exact mixtures."""

import math
from dataclasses import replace

import pytest
import torch

import fewstep.alignment.contrastive as module
from fewstep.alignment.contrastive import forward_contrastive, optimality
from fewstep.alignment.exploring import compare_rewards, laws_of, rewards_of, walk
from fewstep.alignment.judged import judge_reward, judge_term
from fewstep.alignment.pairwise import dreambooth_loss, own_error, pairwise_chain_loss, preference_loss
from fewstep.alignment.policy import policy_gradient
from fewstep.denoiser import Denoiser
from fewstep.distillation.chain import Chain, eta_steps
from fewstep.distillation.core import Batch, Networks
from fewstep.distillation.score.branch import score_distillation
from fewstep.distillation.score.directions import distribution_matching
from fewstep.distillation.score.regularisers import reward_term
from fewstep.distillation.score.weights import reward_weight, scale_weight
from fewstep.distillation.times import fixed_times, uniform_times
from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.testing.mixture import Mixture
from tests.distillation.gaussians import Line, cast_of, generator, made_of, normal, perfect

FLOW = RectifiedFlow()
CHAIN = Chain((1.0, 0.6))
A, S = 0.4, 0.6  # of the step to 0.6


def constant(mean, last=None, shape=(1,)):
    """A student whose first call predicts `mean`, and whose last gives its state, or `last`, as the sample."""

    def network(x, time):
        first = time.reshape(-1, *[1] * len(shape)) > 900
        return torch.where(first, mean + 0 * x, x / A if last is None else last + 0 * x)

    return Denoiser(network, FLOW, Prediction("sample"))


def leaf(value):
    return torch.tensor(float(value), requires_grad=True)


def cast(student, reference, reward=None, target=None):
    return Networks(student, reference, target=target, reference=reference, reward=reward)


# --- PSO ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "beta", "shift"), [(1, 50.0, 0.0), (8, 50.0, 0.02), (8, 5.0, 0.02), (3, 50.0, -0.02)]
)
def test_the_gradient_of_pso_is_its_closed_form(count, beta, shift):
    """dL/dmean = -beta sigmoid(-margin) a / (s^2 D) sum(x_w - x_l), at and near the reference."""
    seen, mean = [], leaf(0.3 + shift)
    student, reference = constant(mean, shape=(count,)), constant(torch.tensor(0.3), shape=(count,))

    def reward(samples, batch):
        seen.append(samples * A)  # the states after the first step
        return samples.sum(1)

    batch, loss = Batch(400, (count,)), pairwise_chain_loss(CHAIN, beta, clamp=1e6)
    value, _ = loss(cast(student, reference, reward), batch, None, generator())
    value.backward()
    first, second = seen[0].chunk(2)
    better = (first.sum(1) > second.sum(1))[:, None]
    away = torch.where(better, first - second, second - first).sum(1)
    with torch.no_grad():
        ratio = [(-(x - A * mean).square() + (x - A * 0.3).square()).mean(1) / (2 * S**2) for x in (first, second)]
        margin = beta * torch.where(better[:, 0], ratio[0] - ratio[1], ratio[1] - ratio[0])
        wanted = -(beta * torch.sigmoid(-margin) * A / (S**2 * count) * away).mean()
        assert float(value) == pytest.approx(float(-torch.nn.functional.logsigmoid(margin).mean()), rel=1e-4)
    assert float(mean.grad) == pytest.approx(float(wanted), rel=1e-4)
    assert float(mean.grad) < 0, "the better samples are larger, so the mean must rise"


def test_outside_of_the_clamp_pso_has_no_gradient_and_ties_give_log_two():
    for shift, reward, wanted in ((3.0, lambda x, _: x[:, 0], 0.0), (0.05, lambda x, _: 0 * x[:, 0], math.log(2))):
        mean = leaf(0.3 + shift)
        loss = pairwise_chain_loss(CHAIN, 50.0, clamp=1e-4 if shift > 1 else 0.1)
        value, numbers = loss(
            cast(constant(mean), constant(torch.tensor(0.3)), reward), Batch(64, (1,)), None, generator()
        )
        value.backward()
        assert float(mean.grad) == 0
        if wanted:
            assert float(value.detach()) == pytest.approx(wanted)
            assert float(numbers["ties"]) == 1
        else:
            assert float(numbers["inside"]) == 0


def test_of_several_rewards_the_dominating_sample_is_preferred():
    first = torch.tensor([[1.0, 2.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [2.0, 1.0]])
    second = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 1.0], [0.0, 1.0], [2.0, 0.0]])
    assert compare_rewards(first, second).tolist() == [1, 0, 0, -1, 1]
    assert compare_rewards(first[:, 1], second[:, 1]).tolist() == [1, -1, 0, -1, 1]
    with pytest.raises(FewstepError, match=r"not one number per sample(.|\n)*dominance"):
        rewards_of(cast(None, None, lambda x, _: x), torch.zeros(3, 2), Batch(3, (2,)))


def test_the_sum_is_the_mean_with_beta_times_the_numbers():
    found = []
    for beta, reduction in ((50.0, "mean"), (50.0 / 8, "sum")):
        mean = leaf(0.32)
        loss = pairwise_chain_loss(CHAIN, beta, 1e6, reduction)
        networks = cast(constant(mean, shape=(8,)), constant(torch.tensor(0.3), shape=(8,)), lambda x, _: x.sum(1))
        loss(networks, Batch(32, (8,)), None, generator())[0].backward()
        found.append(float(mean.grad))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_offline_pairs_against_their_closed_form():
    """l = (raw - target)^2 in the network's own prediction; here that is clean data, so that l = (mean - x)^2."""
    mean, beta, gamma = leaf(0.5), 3.0, 0.8
    networks = cast(constant(mean), constant(torch.tensor(0.2)))
    liked, rejected = torch.tensor([[1.0], [0.4]]), torch.tensor([[-1.0], [0.6]])
    batch = Batch(2, (1,), clean=liked, rejected=rejected)
    value, _ = preference_loss(fixed_times((1.0,)), beta, gamma)(networks, batch, None, generator())
    value.backward()
    m = 0.5

    def change(x):
        return (m - x) ** 2 - (0.2 - x) ** 2

    inner = -beta * (change(liked) - gamma * change(rejected))
    wanted = (torch.sigmoid(-inner) * beta * 2 * ((m - liked) - gamma * (m - rejected))).mean()
    assert float(value.detach()) == pytest.approx(float(-torch.nn.functional.logsigmoid(inner).mean()))
    assert float(mean.grad) == pytest.approx(float(wanted))


def test_both_members_of_a_pair_get_one_noise_and_equal_ones_cancel():
    """The common pull to the posterior mean has no gradient: the blur of a denoising loss."""
    x = torch.randn(32, 1, generator=generator(3))
    blend = leaf(0.0)
    student = Denoiser(lambda x, time: blend + 0.3 * x, FLOW, Prediction("sample"))
    reference = Denoiser(lambda x, time: 0.3 * x, FLOW, Prediction("sample"))
    batch = Batch(32, (1,), clean=x, rejected=x)
    preference_loss(uniform_times())(cast(student, reference), batch, None, generator())[0].backward()
    assert float(blend.grad) == pytest.approx(0, abs=1e-6)
    plain = own_error(student, batch, x + 1, torch.zeros_like(x), torch.full((32,), 0.5).double()).mean()
    assert abs(float(torch.autograd.grad(plain, blend)[0])) > 0.1


def test_dreambooth_as_published_is_fine_tuning_and_as_meant_the_rejected_push_away():
    """While the hinge is active its 5 x 0.1 of the rejected is what 0.5 adds again."""
    liked, rejected = torch.tensor([[1.0], [0.4]]), torch.tensor([[-1.0], [0.6]])
    batch, times = Batch(2, (1,), clean=liked, rejected=rejected), fixed_times((1.0,))

    def slope(loss, **changes):
        mean = leaf(0.5)
        networks = cast(constant(mean), constant(torch.tensor(0.5)))
        loss(networks, replace(batch, **changes), None, generator())[0].backward()
        return float(mean.grad)

    wanted = float((5 * 2 * (0.5 - liked)).mean())
    assert slope(dreambooth_loss(times)) == pytest.approx(wanted, rel=1e-5)
    assert slope(dreambooth_loss(times), rejected=-rejected) == pytest.approx(wanted, rel=1e-5)
    assert slope(dreambooth_loss(times, keep=0.0)) != pytest.approx(wanted, rel=0.02)
    meant = [slope(preference_loss(times), rejected=x) for x in (rejected, -rejected)]
    assert meant[0] != pytest.approx(meant[1], rel=0.02)


# --- a judge of two answers -------------------------------------------------------------------------------------------


def test_the_loss_of_a_judge_sees_its_two_answers_alone_and_has_the_gradient_of_a_logistic_loss():
    x = torch.tensor([[0.3], [-0.8]], requires_grad=True)
    slopes, other = torch.tensor([2.0, -1.0]), torch.tensor([0.7, 0.2])

    def judge(shift):
        return lambda x, batch: torch.stack([x * other + shift, x * slopes + shift], 2)

    def gradient(shift, wanted):
        loss, numbers = judge_term(judge(shift), wanted)(cast(None, None), Batch(2, (1,)), made_of(x), generator())
        return torch.autograd.grad(loss, x)[0], numbers

    odds = x.detach() * (slopes - other) * torch.tensor([1.0, -1.0])
    wanted = (-torch.sigmoid(-odds) * (slopes - other) * torch.tensor([1.0, -1.0])).sum(1, keepdim=True) / 2
    found, numbers = gradient(0.0, (True, False))
    assert torch.allclose(found, wanted)
    assert torch.allclose(gradient(1e3, (True, False))[0], wanted, atol=1e-3)
    assert float(numbers["right"]) == pytest.approx(float((odds > 0).float().mean()))
    rewarded = judge_reward(judge(1e3), (True, False))(x, Batch(2, (1,)))
    assert torch.allclose(torch.autograd.grad(-rewarded.mean(), x)[0], wanted, atol=1e-3)
    with pytest.raises(FewstepError, match=r"1 answers are wanted(.|\n)*\(2, 2, 2\)"):
        gradient(0.0, (True,))
    silent = judge_term(lambda x, batch: torch.zeros(2, 1, 2))
    with pytest.raises(FewstepError, match="judge gives no gradient"):
        silent(cast(None, None), Batch(2, (1,)), made_of(x), generator())


# --- policy gradient ------------------------------------------------------------------------------------------------


def test_grpo_is_reinforce_with_the_known_gradient_of_the_reward():
    """Reward c x of x ~ N(a m, s^2): REINFORCE's gradient is c a, and advantages divide it by std r = c s."""
    mean, c = leaf(0.3), 2.5
    networks = cast(constant(mean), constant(torch.tensor(0.3)), lambda x, _: c * A * x[:, 0])
    loss = policy_gradient(CHAIN, group=40_000, kl=0.0, reduction="sum")
    loss(networks, Batch(1, (1,)), None, generator())[0].backward()
    assert float(mean.grad) == pytest.approx(-A / S, rel=0.03)


def test_grpo_on_given_draws_is_the_sum_of_score_times_advantage():
    seen, mean = [], leaf(0.3)

    def reward(samples, batch):
        seen.append(A * samples[:, 0])
        return samples[:, 0].sin()

    networks = cast(constant(mean), constant(torch.tensor(0.3)), reward)
    policy_gradient(CHAIN, group=4, kl=0.0)(networks, Batch(3, (1,)), None, generator())[0].backward()
    x = seen[0]
    scores = (x / A).sin().reshape(4, 3)
    advantage = (scores - scores.mean(0)) / scores.std(0, correction=0)
    wanted = -(advantage.flatten() * (x - A * 0.3) * A / S**2).mean()
    assert float(mean.grad) == pytest.approx(float(wanted), rel=1e-4)


def test_an_old_policy_is_clipped_where_its_advantage_would_carry_the_ratio_further():
    """rho = p / p_old over 1 + clip: no gradient for good draws, the full one for bad ones."""
    for good in (True, False):
        mean, old = leaf(0.9), constant(torch.tensor(0.3))
        draws = []

        def reward(samples, batch, good=good, draws=draws):
            draws.append(A * samples[:, 0])
            return samples[:, 0] * (1 if good else -1)

        networks = cast(constant(mean), old, reward, target=old)
        value, numbers = policy_gradient(CHAIN, group=64, clip=0.05, kl=0.0)(
            networks, Batch(1, (1,)), None, generator()
        )
        value.backward()
        x = draws[0]
        rho = ((-((x - A * 0.9) ** 2) + (x - A * 0.3) ** 2) / (2 * S**2)).exp()
        sign = x if good else -x
        advantage = (sign - sign.mean()) / sign.std(correction=0)
        active = ~((rho > 1.05) & (advantage > 0) | (rho < 0.95) & (advantage < 0))
        wanted = -(active * advantage * rho * (x - A * 0.9) * A / S**2).mean()
        assert float(mean.grad) == pytest.approx(float(wanted), rel=1e-3, abs=1e-6)
        assert 0 < float(numbers["clipped"]) < 1


def test_the_divergence_from_the_reference_pulls_back():
    mean = leaf(0.8)
    networks = cast(constant(mean), constant(torch.tensor(0.3)), lambda x, _: 0 * x[:, 0])
    value, numbers = policy_gradient(CHAIN, group=2, kl=0.5)(networks, Batch(4, (1,)), None, generator())
    value.backward()
    assert float(numbers["kl"]) == pytest.approx((A * 0.5) ** 2 / (2 * S**2), rel=1e-5)
    assert float(mean.grad) == pytest.approx(0.5 * A**2 * 0.5 / S**2, rel=1e-5)


def test_groups_are_copies_of_the_batch_and_flat_ones_have_no_advantage():
    found = optimality(torch.tensor([1.0, 5.0, 3.0, 5.0]), 2).reshape(2, 2)  # (1 + advantage) / 2
    assert found.tolist() == [[0, 0.5], [1, 0.5]]


# --- passes ---------------------------------------------------------------------------------------------------------


def test_an_update_calls_no_more_than_its_formula():
    """PSO: both runs once with gradient, the reference at all calls but the last. GRPO without kl: the runs alone."""
    calls = {"student": 0, "reference": 0}

    def counting(name):
        def network(x, time):
            calls[name] += len(x)
            return 0.5 * x

        return Denoiser(network, FLOW, Prediction("sample"))

    chain = Chain((1.0, 0.7, 0.4), law=eta_steps(0.5))
    networks = cast(counting("student"), counting("reference"), lambda x, _: x[:, 0])
    pairwise_chain_loss(chain)(networks, Batch(10, (1,)), None, generator())
    assert calls == {"student": 60, "reference": 40}
    calls.update(student=0, reference=0)
    policy_gradient(chain, group=5, kl=0.0)(networks, Batch(2, (1,)), None, generator())
    assert calls == {"student": 30, "reference": 0}


def test_a_walk_makes_states_that_its_own_laws_drew():
    student = normal(0.5, 0.3)
    states, laws, clean = walk(CHAIN, student, Batch(5, (1,)), torch.randn(5, 1, generator=generator()), generator(1))
    again = laws_of(CHAIN, student, Batch(5, (1,)), states)
    assert torch.allclose(laws[0].mean, again[0].mean)
    noise = (states[1] - laws[0].mean) / laws[0].std
    assert len(noise.unique()) == 5
    t = torch.full((5,), 0.6, dtype=torch.float64)
    assert torch.allclose(clean, student(states[1], t))


# --- Re-DMD and tilted matching ---------------------------------------------------------------------------------------

LEVELS = uniform_times(0.02, 0.98)


def redmd(beta):
    return score_distillation(distribution_matching(), LEVELS, (reward_weight(lambda x, _: x[:, 0].tanh(), beta),))


@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_re_dmd_does_not_move_a_student_that_matches(beta):
    line = Line(0.0, 1.0, 4000)
    teacher = normal(0.0, 1.0)
    value, _ = redmd(beta)(cast_of(teacher, line.critic), Batch(4000, (1,)), line.made(), generator())
    assert line.gradient(value) == pytest.approx([0, 0], abs=1e-5)
    moved, _ = reward_term(lambda x, _: x[:, 0].tanh())(cast_of(teacher), Batch(4000, (1,)), line.made(), generator())
    assert line.gradient(moved)[0] < -0.3


def slopes_of(mean, std, beta):
    """E[exp(beta tanh x) (G - F) (1, z)] of x = mean + std z, by sums over a fine grid."""
    teacher = Mixture.line([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5])
    grid = torch.linspace(-5, 5, 161, dtype=torch.float64)
    levels = 0.02 + 0.96 * (torch.arange(24, dtype=torch.float64) + 0.5) / 24
    z, e, t = (g.flatten() for g in torch.meshgrid(grid, grid, levels, indexing="ij"))
    mass = (-(z**2 + e**2) / 2).exp()
    x = mean + std * z
    noisy = (1 - t) * x + t * e
    own = mean + (1 - t) * std**2 / ((1 - t) ** 2 * std**2 + t**2) * (noisy - (1 - t) * mean)
    moved = (beta * x.tanh()).exp() * (own - teacher.estimates(noisy[:, None], 1 - t, t)[0][:, 0])
    return [float((mass * moved).sum() / mass.sum()), float((mass * moved * z).sum() / mass.sum())]


def test_re_dmd_moves_a_limited_student_towards_the_reward_the_further_the_stronger():
    """Teacher: modes at -2 and 2 of std 0.5; student: one Gaussian, which cannot have both; reward tanh."""
    teacher, size, found = two_modes(0.5), 100_000, []
    for beta in (0.0, 0.5, 2.0):
        line = Line(0.0, 1.9, size)
        value, _ = redmd(beta)(cast_of(teacher, line.critic), Batch(size, (1,)), line.made(), generator(7))
        found.append(line.gradient(value))
        assert found[-1] == pytest.approx(slopes_of(0.0, 1.9, beta), abs=0.02 + 0.05 * beta)
    assert abs(found[0][0]) < 0.02
    assert found[0][0] - 0.02 > found[1][0] > 2 * found[2][0], "the mean rises, four times as fast or more at beta 2"


def two_modes(weight):
    network = Mixture.line([1 - weight, weight], [-2.0, 2.0], [0.5, 0.5]).network(FLOW, Prediction("velocity"))
    return Denoiser(lambda x, time: network(x, time), FLOW, Prediction("velocity"))


def slope_by_weight(weight, beta, reward=lambda x, _: (6 * x[:, 0]).sigmoid()):
    """dL/dw of a student that carries noise to the mixture of weight w at 2: -integral of dF/dw times the gradient."""
    x = torch.linspace(-5, 5, 801, dtype=torch.float64)
    points = x.repeat(20)[:, None].requires_grad_(True)
    tiny = fixed_times((0.03,))
    loss = score_distillation(distribution_matching(), tiny, (scale_weight(2, -2),))
    networks = cast_of(two_modes(0.5), two_modes(weight))
    batch = Batch(len(points), (1,))
    value = loss(networks, batch, made_of(points), generator())[0]
    value = value + reward_term(reward, beta, True)(networks, batch, made_of(points), None)[0]
    (gradient,) = torch.autograd.grad(value, points)
    slope = (gradient[:, 0] * len(points)).reshape(20, -1).mean(0)
    normal_cdf = torch.distributions.Normal(0.0, 1.0).cdf
    falling = normal_cdf((x - 2) / 0.5) - normal_cdf((x + 2) / 0.5)  # dF/dw
    return float(-(falling * slope).sum() * (x[1] - x[0]))


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.7])
def test_the_optimum_of_tilted_matching_has_the_mode_weights_of_the_tilted_density(beta):
    """p exp(beta r) with a logistic reward that is 0 at one mode and 1 at the other: odds e^beta."""
    odds = math.exp(beta)
    wanted = odds / (1 + odds)
    assert slope_by_weight(wanted, beta) == pytest.approx(0, abs=0.02)
    assert slope_by_weight(wanted - 0.08, beta) < -0.1
    assert slope_by_weight(wanted + 0.08, beta) > 0.1


@pytest.mark.parametrize("beta", [1.0, 2.0, -0.7])
def test_under_a_logistic_judge_the_modes_weigh_what_the_tilted_density_says(beta):
    """p exp(beta r), r = log sigmoid(k x) of logits (0, k x): r(x) - r(-x) = k x, so odds e^(2 k beta)."""
    k = 0.5
    judge = judge_reward(lambda x, _: torch.stack([0 * x, k * x], 2), (True,))
    wanted = 1 / (1 + math.exp(-2 * k * beta))
    assert slope_by_weight(wanted, beta, judge) == pytest.approx(0, abs=0.02)
    assert slope_by_weight(wanted - 0.08, beta, judge) < -0.1
    assert slope_by_weight(wanted + 0.08, beta, judge) > 0.1


# --- NFT --------------------------------------------------------------------------------------------------------------


def blur_gradient(sharp, loss, reward):
    """Of the share of the posterior mean in the student's output, where it began as `sharp`."""
    share = leaf(0.0)
    mean = two_modes(0.5)

    def network(x, time):
        t = FLOW.from_network_time(time.double())
        return (1 - share) * sharp(x, t) + share * mean(x, t)

    student = Denoiser(network, FLOW, Prediction("sample"))
    start = Denoiser(lambda x, time: sharp(x, FLOW.from_network_time(time.double())), FLOW, Prediction("sample"))
    value, _ = loss(cast(student, start, reward), Batch(4000, (1,)), None, generator(5))
    value.backward()
    return float(share.grad)


def test_nft_blurs_a_few_step_student_where_it_is_good_and_no_many_step_teacher(monkeypatch):
    """Where r is 1 throughout, as after a rise of the reward, the loss is a denoising loss: it pulls a sample to the
    mean of all data behind its noise. A teacher's output is that mean already; a pair cancels the pull.
    """
    sharp = Denoiser(
        lambda x, time: torch.where(x > 0, 2.0, -2.0).to(x), FLOW, Prediction("sample")
    )  # a one-step student of the two modes
    mean, chain = two_modes(0.5), Chain((1.0,))

    def pulled(network, good):
        loss = forward_contrastive(chain, fixed_times((0.9,)), group=2)
        monkeypatch.setattr(module, "optimality", lambda scores, group: torch.full_like(scores, good))
        return blur_gradient(lambda x, t: network(x, t), loss, lambda x, _: x[:, 0])

    few, none, many = pulled(sharp, 1.0), pulled(sharp, 0.5), pulled(mean, 1.0)
    assert few < -1, "the loss falls as the student blurs"
    assert none == pytest.approx(0, abs=0.05 * abs(few))
    assert many == pytest.approx(0, abs=0.05 * abs(few))
    paired = pairwise_chain_loss(Chain((1.0, 0.9)), beta=1.0)
    cancelled = blur_gradient(lambda x, t: sharp(x, t), paired, lambda x, _: torch.rand(len(x), generator=generator(9)))
    assert abs(cancelled) < 0.05


def test_perfect_students_stay_when_rewards_say_nothing():
    student = perfect(0.5, 0.3)
    batch = replace(Batch(8, (1,)), step=1)
    loss = pairwise_chain_loss(CHAIN)(cast(student, student, lambda x, _: 0 * x[:, 0]), batch, None, generator())[0]
    assert float(loss) == pytest.approx(math.log(2))
