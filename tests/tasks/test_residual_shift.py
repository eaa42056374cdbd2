"""Residual shifting against its own equations, and every solver on it against the exact flow of a Gaussian."""

import pytest
import torch

from fewstep.errors import FewstepError, PlanError
from fewstep.executor import sample
from fewstep.plan import RunState
from fewstep.prediction import Prediction
from fewstep.process import ResidualShift
from fewstep.solvers import SOLVERS, grids
from fewstep.tasks.restoration import anchored, restored
from fewstep.testing.mixture import Mixture

FOUR = ResidualShift(steps=4, least_noise=0.2)
SAMPLE = Prediction("sample")
Y = torch.tensor([[1.5, -0.7, 0.2]]).double()
RESIDUAL = Mixture.gaussian([0.3, -0.2, 0.1], [0.2, 0.4, 0.1])


def exact(process, kind="sample"):
    """The exact network on pictures: x0 = y + residual."""
    prediction = Prediction(kind)
    inner = RESIDUAL.network(process, prediction)

    def network(x, time):
        t = process.from_network_time(torch.as_tensor(time).double())
        shift, _ = prediction.weights(process.alpha(t), process.sigma(t))
        return inner(x - Y, time) + shift * Y

    return network


def grid(process):
    return grids.given(range(process.steps - 1, -1, -1))


def test_the_published_schedules():
    """sqrt(eta) by the paper's settings, worked out by hand from its formula b^beta."""
    for process, found in ((FOUR, [0.1, 0.520, 0.761, 0.990]), (ResidualShift(), [0.02, 0.117, 0.176, 0.234])):
        times = torch.arange(4).double()
        root = process.sigma(times) / process.kappa
        torch.testing.assert_close(root, torch.tensor(found).double(), rtol=0, atol=6e-4)
        torch.testing.assert_close(process.alpha(times), 1 - root**2)
        torch.testing.assert_close(process.time(process.lam(times)), times, rtol=1e-6, atol=1e-6)


def test_rows_are_the_posterior_and_chained_transitions_have_the_marginals():
    eta = (FOUR.sigma(torch.arange(4).double()) / 2) ** 2
    plan = anchored(SOLVERS["residual_shift"](FOUR, SAMPLE, grid(FOUR)))
    for k, row in enumerate(plan.rows):
        now, after = float(eta[3 - k]), float(eta[2 - k]) if k < 3 else 0.0
        assert row.state.get(k, 0.0) == pytest.approx(after / now, abs=1e-12)
        assert row.output[k] == pytest.approx((now - after) / now)
        assert row.noise == pytest.approx(2 * (after / now * (now - after)) ** 0.5, abs=1e-12)
        assert row.anchor == pytest.approx(0, abs=1e-12)  # y is carried by the state
    # q(x_{t-1} | x_t, x0, y) by conditioning the joint Gaussian of the transition
    x0, y, kappa = 0.4, -1.1, 2.0
    for t in (1, 2, 3):
        before, now = float(eta[t - 1]), float(eta[t])
        mean = [(1 - e) * x0 + e * y for e in (before, now)]
        gain = before / now  # Cov[x_{t-1}, x_t] = kappa^2 eta_{t-1}
        x = 0.9
        conditional = mean[0] + gain * (x - mean[1]), kappa**2 * before * (1 - gain)
        row = plan.rows[3 - t]
        assert row.state[3 - t] * x + row.output[3 - t] * x0 == pytest.approx(conditional[0])
        assert row.noise**2 == pytest.approx(conditional[1])


def test_ddim_on_the_residual_is_the_deterministic_step_of_sinsr():
    eta = (FOUR.sigma(torch.arange(4).double()) / 2) ** 2
    plan = anchored(SOLVERS["ddim"](FOUR, SAMPLE, grid(FOUR)))
    for k, row in enumerate(plan.rows):
        now, after = float(eta[3 - k]), float(eta[2 - k]) if k < 3 else 0.0
        m, j = (after / now) ** 0.5, after - (after * now) ** 0.5
        assert row.state.get(k, 0.0) == pytest.approx(m, abs=1e-12)
        assert row.anchor == pytest.approx(j, abs=1e-12)
        assert row.output[k] == pytest.approx(1 - after + (after * now) ** 0.5 - m, abs=1e-12)


KINDS = ("sample", "epsilon", "v_prediction", "velocity")
USABLE = [n for n, make in SOLVERS.items() if n not in ("lcm", "residual_shift")]


@pytest.mark.parametrize("name", USABLE)
def test_anchored_rows_equal_the_plan_of_the_residual_for_every_solver_and_prediction(name):
    for kind in KINDS:
        prediction = Prediction(kind)
        plan = SOLVERS[name](ResidualShift(), prediction, grids.given([13.0, 8.0, 4.0, 1.5]))
        state = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        moved = anchored(plan)
        scale = plan.rows[0].input_scale
        options = {"seeds": range(5), "shape": (3,), "dtype": torch.float64}
        inner = RESIDUAL.network(ResidualShift(), prediction)
        alone = sample(plan, inner, start=RunState({0: state / scale}), **options)
        start = RunState({0: Y + state})
        found = sample(moved, exact(ResidualShift(), kind), start=start, anchor=Y.expand(5, -1), **options)
        torch.testing.assert_close(found, Y + alone, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpm_solver_pp_2m", "unipc", "deis_log_rho"])
def test_every_solver_reaches_the_same_limit_of_the_flow(name):
    process = ResidualShift()
    times = process.time(torch.linspace(float(process.lam(14.0)), float(process.lam(0.0)), 160).double())
    times[0], times[-1] = 14.0, 0.0
    plan = anchored(SOLVERS[name](process, SAMPLE, grids.given(times.tolist())))
    found = restored(plan, exact(process), Y.expand(4, -1), seeds=range(4))
    noise = torch.stack([torch.randn(3, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]).double()
    alpha, sigma = process.alpha(14.0), process.sigma(14.0)
    end = RESIDUAL.flow(sigma * noise, (alpha, sigma), (1.0, 0.0))
    torch.testing.assert_close(found, Y + end, rtol=0.02, atol=0.02)


def test_four_ancestral_steps_have_the_mean_of_the_posterior_and_less_than_its_variance():
    """The sampler follows the linear recursion: mean exact but for the residual left at the start, variance below."""
    plan = anchored(SOLVERS["residual_shift"](FOUR, SAMPLE, grid(FOUR)))
    found = restored(plan, exact(FOUR), Y.expand(4000, -1), seeds=range(4000))
    mean, variance = torch.zeros(3).double(), torch.full((3,), float(FOUR.sigma(3.0)) ** 2).double()
    prior_mean, prior = RESIDUAL.mean(), RESIDUAL.covariance().diagonal()
    for k, row in enumerate(plan.rows):
        gain = row.alpha * prior / (row.alpha**2 * prior + row.sigma**2)
        step = row.state.get(k, 0.0) + row.output[k] * gain
        mean = step * mean + row.output[k] * (1 - row.alpha * gain) * prior_mean
        variance = step**2 * variance + row.noise**2
    torch.testing.assert_close(found.mean(0), Y[0] + mean, rtol=0, atol=0.03)
    torch.testing.assert_close(found.var(0), variance, rtol=0.1, atol=0)
    assert bool((variance < 0.5 * prior).all())


def test_what_cannot_be_anchored_is_refused():
    edm = SOLVERS["ddim"](FOUR, Prediction("edm"), grid(FOUR))
    with pytest.raises(PlanError, match="cannot be anchored"):
        anchored(edm)
    with pytest.raises(PlanError, match="end in clean data"):
        anchored(SOLVERS["euler"](FOUR, SAMPLE, grids.given([3.0, 1.0], end=0.0)))
    with pytest.raises(PlanError, match="one seed"):
        restored(anchored(SOLVERS["ddim"](FOUR, SAMPLE, grid(FOUR))), exact(FOUR), Y, seeds=[0, 1])
    with pytest.raises(FewstepError, match="no schedule"):
        ResidualShift(kappa=-1.0)
