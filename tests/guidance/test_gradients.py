"""Rules against closed forms: tilts of Gaussians are Gaussians, so guided samples are those of the exact tilt."""

import pytest
import torch

from fewstep.denoiser import Denoiser
from fewstep.errors import FewstepError
from fewstep.executor import sample
from fewstep.guidance import LinearSurrogate, classifier, corrected, reward_gradient, target
from fewstep.prediction import Prediction
from fewstep.process import VE, RectifiedFlow, VPContinuous
from fewstep.solvers import ddim, dpm_solver_pp_2m, grids
from fewstep.testing.mixture import Mixture

MEAN = torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64)
ROOT = torch.tensor([[0.9, 0.0, 0.0], [0.4, 0.7, 0.0], [-0.3, 0.2, 0.5]], dtype=torch.float64)
COVARIANCE = ROOT @ ROOT.T
SLOPE = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
WORLDS = [
    (VPContinuous(), Prediction("epsilon")),
    (RectifiedFlow(3.0), Prediction("velocity")),
    (VE(), Prediction("edm")),
    (VPContinuous(), Prediction("v_prediction")),
    (RectifiedFlow(), Prediction("sample")),
]


def exact(law, process, prediction):
    return Denoiser(law.network(process, prediction), process, prediction)


def drawn(denoiser, solver=ddim, steps=7, shape=(3,), first=0.9, **options):
    times = denoiser.process.noisiest * torch.linspace(first, 1 / steps, steps, dtype=torch.float64)
    plan = solver(denoiser.process, denoiser.prediction, grids.given(times), **options)
    return sample(plan, denoiser.network, seeds=range(6), shape=shape, dtype=torch.float64)


@pytest.mark.parametrize(("process", "prediction"), WORLDS, ids=lambda part: getattr(part, "kind", type(part).__name__))
@pytest.mark.parametrize("solver", [ddim, dpm_solver_pp_2m])
def test_a_linear_reward_tilts_a_gaussian_exactly(process, prediction, solver):
    data = Mixture.gaussian(MEAN, COVARIANCE)
    tilted = Mixture.gaussian(MEAN + 1.5 * COVARIANCE @ SLOPE, COVARIANCE)
    guided = corrected(exact(data, process, prediction), reward_gradient(lambda x: x @ SLOPE, 1.5))
    torch.testing.assert_close(drawn(guided, solver), drawn(exact(tilted, process, prediction), solver))


@pytest.mark.parametrize(("process", "prediction"), WORLDS[:3], ids=["vp", "flow", "edm"])
def test_a_target_of_a_linear_score_conditions_a_gaussian_exactly(process, prediction):
    """Given SLOPE . x0 + N(0, nu^2) = a: mean mu + S th (a - th mu) / (b2 + nu^2), covariance independent of a."""
    a, nu = 4.0, 0.3
    along = COVARIANCE @ SLOPE
    b2 = SLOPE @ along
    given = Mixture.gaussian(
        MEAN + along * (a - SLOPE @ MEAN) / (b2 + nu**2), COVARIANCE - torch.outer(along, along) / (b2 + nu**2)
    )
    rule = target(LinearSurrogate(SLOPE, torch.tensor(0.0, dtype=torch.float64)), a, nu)
    guided = corrected(exact(Mixture.gaussian(MEAN, COVARIANCE), process, prediction), rule)
    torch.testing.assert_close(drawn(guided), drawn(exact(given, process, prediction)))


def test_a_classifier_at_scale_one_gives_the_class_of_a_mixture():
    """grad log p(c | x_t) of the exact classifier turns the denoiser of the mixture into that of one component."""
    process, prediction = RectifiedFlow(), Prediction("velocity")
    data, wanted = Mixture.line([0.3, 0.7], [-1.0, 1.5], [0.4, 0.6]), Mixture.line([1.0], [-1.0], [0.4])

    def log_prob(x, alpha, sigma):
        return wanted.log_density(x, alpha, sigma) - data.log_density(x, alpha, sigma)

    guided = corrected(exact(data, process, prediction), classifier(log_prob))
    plain = exact(wanted, process, prediction)
    x, t = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None], torch.tensor(0.6)
    torch.testing.assert_close(guided(x, t), plain(x, t))
    torch.testing.assert_close(drawn(guided, shape=(1,)), drawn(plain, shape=(1,)))


def test_without_the_jacobian_unit_gaussian_data_are_exact_and_others_leave_their_support():
    process, prediction = VPContinuous(), Prediction("epsilon")
    reward = reward_gradient(lambda x: x @ SLOPE, 0.5, through=False)
    unit = Mixture.gaussian(MEAN, torch.ones(3, dtype=torch.float64))
    tilted = Mixture.gaussian(MEAN + 0.5 * SLOPE, torch.ones(3, dtype=torch.float64))
    guided = corrected(exact(unit, process, prediction), reward)
    torch.testing.assert_close(drawn(guided), drawn(exact(tilted, process, prediction)))

    plane = torch.tensor([1.0, 1.0, 1e-8], dtype=torch.float64)  # data lie in the plane x_2 = 0
    flat = exact(Mixture.gaussian(torch.zeros(3), plane), process, prediction)
    kept = corrected(flat, reward_gradient(lambda x: x @ SLOPE, 0.5))
    assert drawn(corrected(flat, reward))[:, 2].abs().max() > 0.01 > 10 * drawn(kept)[:, 2].abs().max()


def test_classifier_free_guidance_is_no_tilt():
    """p = N(0, 1), p(x | c) = N(1, 1/4): the guided ODE ends at 0.5^g, the tilt p^(1-g) p_c^g would not."""
    process, prediction = RectifiedFlow(), Prediction("velocity")
    outer, inner = (exact(Mixture.line([1.0], [m], [s]), process, prediction) for m, s in ((0.0, 1.0), (1.0, 0.5)))
    for scale, tilt in ((2.0, 0.378), (4.0, 0.277)):

        def network(x, time, scale=scale):
            away = outer.network(x, time)
            return away + scale * (inner.network(x, time) - away)

        mixed = Denoiser(network, process, prediction)
        plan = dpm_solver_pp_2m(process, prediction, grids.uniform(process, 400))
        ends = [
            float(sample(plan, mixed.network, seeds=[0], shape=(1,), dtype=torch.float64, state=torch.full((1, 1), z)))
            for z in (0.0, 1.0)
        ]
        assert ends[1] - ends[0] == pytest.approx(0.5**scale, rel=0.02)
        assert abs(ends[1] - ends[0] - tilt) > 0.1


def test_rules_chain_and_leave_the_last_state_of_no_noise_alone():
    process, prediction = RectifiedFlow(), Prediction("velocity")
    plain = exact(Mixture.gaussian(MEAN, COVARIANCE), process, prediction)
    half = reward_gradient(lambda x: x @ SLOPE, 0.5)
    twice = corrected(corrected(plain, half), half)
    x, t = torch.randn(2, 3, dtype=torch.float64), torch.tensor(0.4)
    once = corrected(plain, reward_gradient(lambda x: x @ SLOPE, 1.0))
    torch.testing.assert_close(twice(x, t), once(x, t))
    torch.testing.assert_close(once.raw(x, torch.tensor(0.0)), plain.raw(x, torch.tensor(0.0)))


def test_flows_begin_without_signal():
    """There the covariance is 0 / 0; what is asked instead is off by less than a hundredth."""
    process, prediction = RectifiedFlow(), Prediction("velocity")
    guided = corrected(
        exact(Mixture.gaussian(MEAN, COVARIANCE), process, prediction), reward_gradient(lambda x: x @ SLOPE)
    )
    tilted = exact(Mixture.gaussian(MEAN + COVARIANCE @ SLOPE, COVARIANCE), process, prediction)
    torch.testing.assert_close(drawn(guided, first=1.0), drawn(tilted, first=1.0), atol=0.01, rtol=0)


def test_each_sample_may_have_its_own_time():
    process, prediction = RectifiedFlow(), Prediction("velocity")
    guided = corrected(
        exact(Mixture.gaussian(MEAN, COVARIANCE), process, prediction), reward_gradient(lambda x: x[:, 0])
    )
    x, t = torch.randn(3, 3, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.9])
    together = guided(x, t)
    alone = torch.cat([guided(x[i : i + 1], t[i]) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_rewards_that_cannot_guide_are_refused():
    plain = exact(Mixture.gaussian(MEAN, COVARIANCE), RectifiedFlow(), Prediction("velocity"))
    x, t = torch.randn(2, 3, dtype=torch.float64), torch.tensor(0.4)
    with pytest.raises(FewstepError, match="no gradient"):
        corrected(plain, reward_gradient(lambda x: x.detach()[:, 0]))(x, t)
    with pytest.raises(FewstepError, match="one number per sample"):
        corrected(plain, reward_gradient(lambda x: x))(x, t)
    with pytest.raises(FewstepError, match="positive deviation"):
        target(lambda x: x[:, 0], 1.0, 0.0)
