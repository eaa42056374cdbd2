"""Steering against the tilted density, which is known for mixtures."""

import pytest
import torch

from fewstep.denoiser import Denoiser
from fewstep.errors import FewstepError
from fewstep.executor import sample
from fewstep.guidance import steer
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.solvers import ddim, grids, sde_dpm_solver_pp
from fewstep.testing.mixture import Mixture

PROCESS, VELOCITY = RectifiedFlow(), Prediction("velocity")
DATA = Mixture.line([0.8, 0.2], [-1.0, 1.5], [0.3, 0.4])
EXACT = Denoiser(DATA.network(PROCESS, VELOCITY), PROCESS, VELOCITY)


def plan(steps=30, solver=ddim, **options):
    return solver(PROCESS, VELOCITY, grids.uniform(PROCESS, steps), **({"eta": 1.0} if solver is ddim else options))


def tilted(slope):
    """exp(slope x) makes of w N(m, v) a component of weight ~ w exp(slope m + slope^2 v / 2)."""
    w, m, v = DATA.weights, DATA.means[:, 0], DATA.covariances[:, 0]
    weights = w * (slope * m + slope**2 * v / 2).exp()
    return weights / weights.sum()


@pytest.mark.parametrize("slope", [1.0, -0.5])
def test_particles_converge_to_the_tilted_mixture(slope):
    weights = tilted(slope)
    found, plain = (
        steer(plan(30), EXACT, lambda x, s=s: s * x[:, 0], seeds=range(2048), shape=(1,)).samples[:, 0].double()
        for s in (slope, 0.0)
    )
    right = found > 0.4
    share = (slope * plain).softmax(0)  # the law of this very plan, reweighted
    assert float(right.double().mean()) == pytest.approx(float(share[plain > 0.4].sum()), abs=0.05)
    assert float(right.double().mean()) == pytest.approx(float(weights[1]), abs=0.08)  # with the error of 30 steps


def test_particles_move_within_a_mode_too():
    """exp(x) moves N(0, v) by v; these 60 steps draw v = 0.94^2."""
    one = Denoiser(Mixture.line([1.0], [0.0], [1.0]).network(PROCESS, VELOCITY), PROCESS, VELOCITY)
    found = steer(plan(60), one, lambda x: x[:, 0], seeds=range(1024), shape=(1,)).samples[:, 0]
    assert float(found.mean()) == pytest.approx(0.88, abs=0.25)
    assert float(found.std()) == pytest.approx(0.94, abs=0.12)


def test_a_reward_without_gradient_steers_too():
    """A step: the tilt multiplies the odds of the right mode by e^2, so 1/4 becomes 1.85."""
    reward = lambda x: 2.0 * (x[:, 0] > 0.4).double()  # noqa: E731
    found = steer(plan(), EXACT, reward, seeds=range(2048), shape=(1,))
    odds = 0.25 * 7.389
    assert float((found.samples[:, 0] > 0.4).double().mean()) == pytest.approx(odds / (1 + odds), abs=0.04)
    torch.testing.assert_close(found.rewards, reward(found.samples))


def test_without_reward_it_is_the_executor():
    for chosen in (plan(6), plan(6, sde_dpm_solver_pp)):  # the second remembers outputs
        found = steer(chosen, EXACT, lambda x: 0 * x[:, 0], seeds=range(8), shape=(1,))
        assert torch.equal(found.samples, sample(chosen, EXACT.network, seeds=range(8), shape=(1,)))
        assert not found.resampled.any()
        torch.testing.assert_close(found.effective, torch.full((7,), 8.0))


def test_each_row_asks_the_network_once():
    asked = []

    def network(x, time):
        asked.append(float(time))
        return EXACT.network(x, time)

    steer(plan(5), Denoiser(network, PROCESS, VELOCITY), lambda x: x[:, 0], seeds=range(16), shape=(1,), threshold=1.0)
    assert asked == pytest.approx([1000.0, 800.0, 600.0, 400.0, 200.0])


def test_what_cannot_be_steered_is_refused():
    give = {"seeds": range(8), "shape": (1,)}
    with pytest.raises(FewstepError, match="plan with noise"):
        steer(ddim(PROCESS, VELOCITY, grids.uniform(PROCESS, 4)), EXACT, lambda x: x[:, 0], **give)
    with pytest.raises(FewstepError, match="several particles"):
        steer(plan(4), EXACT, lambda x: x[:, 0], seeds=[0], shape=(1,))
    with pytest.raises(FewstepError, match="does not fit"):
        steer(plan(4), EXACT, lambda x: x, **give)
    with pytest.raises(FewstepError, match="does not fit"):
        steer(plan(4), EXACT, lambda x: x[:, 0] / 0, **give)
