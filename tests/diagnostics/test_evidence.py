"""The evidence bound of a plan on Gaussians: its terms by hand, its limit, and what it refuses."""

import itertools
import math

import pytest
import torch

from fewstep.diagnostics import evidence_bound
from fewstep.errors import FewstepError, PlanError
from fewstep.prediction import Prediction
from fewstep.process import VPContinuous, VPDiscrete
from fewstep.solvers import SOLVERS, grids
from fewstep.testing.mixture import Mixture

PROCESS, PREDICTION = VPContinuous(), Prediction("v_prediction")
MEAN, VARIANCE, COUNT = 0.3, 0.4, 4000
DATA = Mixture.gaussian([MEAN], [VARIANCE])
X = DATA.sample(COUNT, seed=1)


def plan_of(steps, name="ddim", **options):
    grid = grids.uniform_lambda(PROCESS, steps, 0.01, first=1.0)
    return SOLVERS[name](PROCESS, PREDICTION, grid, **options)


def bound(plan, data=DATA, x=X, **options):
    return evidence_bound(plan, data.network(PROCESS, PREDICTION), x, seeds=range(len(x)), **options)


def near(found, wanted):
    """A mean over samples within five of its standard errors."""
    assert float(found.mean()) == pytest.approx(wanted, abs=5 * float(found.std()) / len(found) ** 0.5 + 1e-9)


@pytest.mark.parametrize("name", ["ddim", "euler_ancestral"])
def test_every_term_of_ancestral_sampling_by_hand(name):
    plan = plan_of(5, name, **({"eta": 1.0} if name == "ddim" else {}))
    found = bound(plan)
    times = plan.rows
    levels = [(PROCESS.alpha(r.time), PROCESS.sigma(r.time)) for r in times]
    errors = [VARIANCE * s**2 / (a**2 * VARIANCE + s**2) for a, s in levels]  # E (x - x0)^2
    for k, ((a, s), (b, r)) in enumerate(itertools.pairwise(levels)):
        # the sampler's law has the posterior's variance; their means differ by w (x - x0)
        variance = r**2 * (1 - (a * r / (b * s)) ** 2)
        w = b - a * (a / b) * r**2 / s**2
        near(found.steps[:, k], w**2 * errors[k] / (2 * variance))
    a, s = levels[0]
    scale = (s / a if name == "euler_ancestral" else 1.0, plan.prior_scale)
    shown = (1.0 if name == "euler_ancestral" else a) ** 2 * (VARIANCE + MEAN**2)
    own = s / a if name == "euler_ancestral" else s
    near(found.prior, math.log(scale[1] / own) + (own**2 + shown) / (2 * scale[1] ** 2) - 0.5)
    a, s = levels[-1]
    width = (s / a) ** 2
    near(found.data, 0.5 * errors[-1] / width + 0.5 * math.log(2 * math.pi * width))
    assert torch.allclose(found.bits_per_dimension, found.nats / math.log(2))


def test_the_bound_lies_above_the_entropy_and_comes_down_to_it():
    entropy = 0.5 * math.log(2 * math.pi * math.e * VARIANCE)
    few = X[:1000]
    exact = -DATA.log_density(few).mean()
    gaps = []
    for steps in (4, 16, 100):
        found = bound(plan_of(steps, eta=1.0), x=few).nats
        gaps.append(float(found.mean() - exact))
        assert float(found.mean()) > entropy - 0.1
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 0.1 * gaps[0]


def test_data_that_the_network_knows_cost_the_prior_and_the_last_law_alone():
    point = Mixture.gaussian([0.5], [0.0])
    plan = plan_of(6, eta=1.0)
    found = bound(plan, point, torch.full((10, 1), 0.5).double(), std=0.1)
    assert float(found.steps.abs().max()) < 1e-9
    assert found.data.tolist() == pytest.approx([math.log(0.1 * math.sqrt(2 * math.pi))] * 10)


def test_levels_are_probabilities_and_the_same_as_densities_where_they_are_fine():
    plan = plan_of(8, eta=1.0)
    x = (X.clamp(-1, 1) * 2048).round() / 2048
    inside = x[x.abs().flatten() < 0.9]
    fine, density = bound(plan, x=inside, levels=4097), bound(plan, x=inside)
    torch.testing.assert_close(fine.data, density.data - math.log(1 / 2048), rtol=0, atol=1e-3)
    few = bound(plan, x=torch.tensor([[-1.0], [0.0], [1.0]]).double(), levels=3)
    assert bool((few.data >= 0).all())


def test_a_discrete_process_and_several_seeds_of_one_sample():
    process = VPDiscrete.from_betas()
    plan = SOLVERS["ddim"](process, PREDICTION, grids.trailing(process, 10), eta=1.0)
    x = torch.full((50, 1), 0.2).double()
    found = evidence_bound(plan, DATA.network(process, PREDICTION), x, seeds=range(50))
    assert float(found.nats.std()) > 0
    assert bool(found.nats.isfinite().all())


def test_plans_without_a_law_are_refused():
    with pytest.raises(PlanError, match="no noise"):
        bound(plan_of(4))
    with pytest.raises(PlanError, match="own state"):
        bound(plan_of(4, "sde_dpm_solver_pp"))
    with pytest.raises(PlanError, match="ends at the data"):
        bound(SOLVERS["ddim"](PROCESS, PREDICTION, grids.given([1.0, 0.5], end=0.1), eta=1.0))
    with pytest.raises(PlanError, match="noise level"):
        bound(SOLVERS["predictor_corrector"](PROCESS, PREDICTION, grids.given([0.9, 0.5])))
    with pytest.raises(FewstepError, match="seed"):
        evidence_bound(plan_of(4, eta=1.0), DATA.network(PROCESS, PREDICTION), X, seeds=[0])
    with pytest.raises(FewstepError, match="levels"):
        bound(plan_of(4, eta=1.0), levels=1)
