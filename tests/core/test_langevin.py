"""Langevin steps and predictor-corrector sampling of Gaussians: every law is known."""

import pytest
import torch

from fewstep.errors import PlanError
from fewstep.executor import sample
from fewstep.prediction import Prediction
from fewstep.process import VE, RectifiedFlow, VPContinuous
from fewstep.solvers import grids
from fewstep.solvers.langevin import predictor_corrector
from fewstep.testing.mixture import Mixture

MEAN, VARIANCE, SNR = 0.7, 0.3, 0.3
DATA = Mixture.gaussian([MEAN], [VARIANCE])
VELOCITY = Prediction("v_prediction")


def run(plan, process, count, until=None):
    network = DATA.network(process, VELOCITY)
    return sample(plan, network, seeds=range(count), shape=(1,), until=until, dtype=torch.float64)


def moments(plan, process, until):
    """Mean and variance after each row, by the linear recursion of a Gaussian: x0 = gain x + rest."""
    mean, variance = 0.0, plan.prior_scale**2
    for row in plan.rows[:until]:
        alpha, sigma = row.alpha, row.sigma
        total = alpha**2 * VARIANCE + sigma**2
        gain = alpha * VARIANCE / total
        a, b = VELOCITY.weights(alpha, sigma)  # v = a x0 + b eps
        slope_v = float(a) * gain + float(b) * (1 - alpha * gain) / sigma
        rest_v = (float(a) - float(b) * alpha / sigma) * (1 - alpha * gain) * MEAN
        k = plan.rows.index(row)
        slope = row.state.get(k, 0.0) + row.output.get(k, 0.0) * slope_v
        mean = slope * mean + row.output.get(k, 0.0) * rest_v
        variance = slope**2 * variance + row.noise**2
    return mean, variance


@pytest.mark.parametrize("euler", [True, False])
def test_langevin_steps_settle_at_their_known_law(euler):
    """Euler-Maruyama on N(m, v): mean m, variance v / (1 - e / 2v); the other one by its own fixed point."""
    process, t, steps = VPContinuous(), 0.3, 200
    plan = predictor_corrector(process, VELOCITY, grids.given([0.5, t]), corrections=steps, snr=SNR, euler=euler)
    alpha, sigma = process.alpha(t), process.sigma(t)
    v, e = alpha**2 * VARIANCE + sigma**2, 2 * SNR**2 * sigma**2
    kept = (1 - 4 * SNR**2) ** 0.5
    slope = 1 - (1 - kept) * sigma**2 / v
    settled = v / (1 - e / (2 * v)) if euler else 4 * SNR**2 * sigma**2 / (1 - slope**2)
    mean, variance = moments(plan, process, steps + 1)
    assert (mean, variance) == pytest.approx((alpha * MEAN, settled), rel=1e-6)
    found = run(plan, process, 800, until=steps + 1)
    assert float(found.mean()) == pytest.approx(alpha * MEAN, abs=5 * (settled / 800) ** 0.5)
    assert float(found.var()) == pytest.approx(settled, rel=0.25)


def test_both_steps_agree_as_they_shrink():
    plans = [
        [predictor_corrector(VPContinuous(), VELOCITY, grids.given([0.9, 0.5]), snr=r, euler=e) for e in (True, False)]
        for r in (0.1, 0.05)
    ]
    gaps = [abs(one.rows[1].output[1] - other.rows[1].output[1]) for one, other in plans]
    assert gaps[0] / gaps[1] == pytest.approx(16, rel=0.1)  # c^4


@pytest.mark.parametrize("process", [VPContinuous(), RectifiedFlow(), VE()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("predictor", ["ancestral", "ode"])
def test_a_corrector_repairs_the_variance_that_few_steps_lose(process, predictor):
    """The law of the whole plan follows the recursion, and is nearer to the data with corrections than without."""
    times = [share * process.noisiest for share in (0.99, 0.6, 0.3, 0.1)]

    def end(corrections):
        plan = predictor_corrector(
            process, VELOCITY, grids.given(times), corrections=corrections, snr=0.4, predictor=predictor
        )
        return plan, moments(plan, process, plan.steps - 1), plan.rows[-1]

    misses = []
    for corrections in (1, 4, 60):
        plan, (mean, variance), last = end(corrections)
        assert plan.steps == len(times) + 3 * corrections
        target = last.alpha**2 * VARIANCE + last.sigma**2
        misses.append(abs(variance / target - 1))
        assert abs(mean - last.alpha * MEAN) < 0.25 * target**0.5
    assert misses[2] < misses[0]
    plan, (mean, variance), _ = end(2)
    found = run(plan, process, 4000, until=plan.steps - 1)
    assert float(found.mean()) == pytest.approx(mean, abs=5 * (variance / 4000) ** 0.5)
    assert float(found.var()) == pytest.approx(variance, rel=0.12)


def test_annealed_langevin_dynamics_holds_the_state_between_levels():
    process = VE()
    plan = predictor_corrector(process, VELOCITY, grids.given([5.0, 2.0, 0.5]), corrections=2, predictor="hold")
    for k, row in enumerate(plan.rows):
        if k in (0, 3):
            assert dict(row.state) == pytest.approx({k: 1.0})
            assert not row.output
            assert row.noise == 0
    assert plan.rows[-1].noise == 0
    assert plan.final_sigma == 0


@pytest.mark.parametrize(
    "settings", [{"corrections": 0}, {"snr": 0.6}, {"snr": 0.0}, {"predictor": "none"}, {"predictor": "hold"}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(PlanError):
        predictor_corrector(VPContinuous(), VELOCITY, grids.given([0.5]), **settings)
