import math

import pytest
import torch

from fewstep.errors import PlanError
from fewstep.prediction import Prediction
from fewstep.process import VE, RectifiedFlow, VPDiscrete
from fewstep.solvers import FACTS, SOLVERS, dpm_solver_pp_2m, grids

SD = VPDiscrete.from_betas("scaled_linear", beta_start=0.00085, beta_end=0.012)
TABLE = [
    ("StableDiffusion", 8, {}, (999, 857.3, 719.4, 585.9, 457.2, 334.3, 218.7, 112.7, 22.7),
     (14.615, 6.712, 3.608, 2.172, 1.404, 0.937, 0.617, 0.373, 0.147)),
    ("StableDiffusion", 6, {}, (999, 809.6, 627.3, 453.5, 290.4, 141.7, 18.3),
     (14.615, 5.341, 2.523, 1.388, 0.805, 0.437, 0.132)),
    ("StableDiffusionXL", 6, {}, (999, 809.6, 627.3, 453.5, 290.4, 141.7, 18.3),
     (14.615, 5.341, 2.523, 1.388, 0.805, 0.437, 0.132)),
    ("StableDiffusion", 5, {}, (999, 772.5, 556.7, 354.2, 170.0, 18.3), (14.615, 4.519, 1.962, 1.001, 0.502, 0.132)),
    ("StableDiffusionXL", 5, {}, (999, 772.5, 556.7, 354.2, 170.0, 18.3), (14.615, 4.519, 1.962, 1.001, 0.502, 0.132)),
    ("StableDiffusion", 4, {}, (999, 760.7, 534.4, 323.4, 134.0), (14.615, 4.293, 1.817, 0.902, 0.420)),
    ("StableDiffusionXL", 4, {}, (999, 717.5, 453.5, 213.9, 18.3), (14.615, 3.579, 1.388, 0.605, 0.132)),
    ("StableDiffusionXL", 8, {}, (999, 852.3, 709.7, 571.8, 439.2, 313.0, 194.9, 88.2, 3.2),
     (14.615, 6.548, 3.467, 2.067, 1.324, 0.871, 0.560, 0.317, 0.060)),
]  # fmt: skip
"""Recomputed from the formulas of the published code by an independent implementation."""


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize(("model", "steps", "options", "times", "sigmas"), TABLE)
def test_golden_grids(model, steps, options, times, sigmas, parity):
    grid = grids.truncated(SD, steps, model, parity=parity, **options)
    found = [*grid.times.tolist(), grid.end]
    assert len(grid) == steps
    assert found == pytest.approx(times, abs=0.051)  # 323.34990 in float64 stands in the table as 323.4
    ratio = [float(torch.exp(-SD.lam(torch.tensor(t).double()))) for t in found]
    assert ratio == pytest.approx(sigmas, abs=5.1e-4)


def test_the_variants_without_the_full_trick():
    """A cut one level earlier stops at more noise."""
    for model, cut, time, sigma in (("StableDiffusion", 8, 77.6, 0.293), ("StableDiffusionXL", 9, 14.6, 0.118)):
        grid = grids.truncated(SD, 8, model, cut=cut)
        assert round(grid.end, 1) == time
        assert math.exp(-SD.lam(grid.end)) == pytest.approx(sigma, abs=5.1e-4)


def test_parity_means_sigmas_of_a_table_linear_in_abar():
    grid = grids.truncated(SD, 8, "StableDiffusionXL", parity=True)
    plain = grids.truncated(SD, 8, "StableDiffusionXL")
    t = plain.end
    low, bar = math.floor(t), SD.alphas_cumprod
    mixed = bar[low] + (t - low) * (bar[low + 1] - bar[low])
    assert math.exp(-SD.lam(grid.end)) == pytest.approx(math.sqrt((1 - mixed) / mixed), rel=1e-10)
    assert grid.end != t
    assert grid.end == pytest.approx(t, abs=5e-3)


def test_a_plan_stops_at_the_noise_it_was_told():
    plan = dpm_solver_pp_2m(SD, Prediction("epsilon"), grids.truncated(SD, 6), lower_order_final=False)
    assert plan.final_sigma / plan.final_alpha == pytest.approx(0.132, abs=5e-4)
    assert 0 in plan.rows[1].output  # second order
    assert 4 in plan.rows[5].output


def test_other_step_counts_follow_the_rule_of_the_code():
    grid = grids.truncated(SD, 7)
    levels = [14.6146, 0.0292]
    ends = [v ** (1 / 10) for v in levels]
    wanted = (ends[0] + 7 / 11 * (ends[1] - ends[0])) ** 10
    assert math.exp(-SD.lam(grid.end)) == pytest.approx(wanted, rel=2e-3)


def test_mistakes_are_named():
    with pytest.raises(PlanError, match="discrete"):
        grids.truncated(VE(), 6)
    with pytest.raises(PlanError, match="Did you mean 'StableDiffusion"):
        grids.truncated(SD, 6, "StableDifusion")
    with pytest.raises(PlanError, match="cut"):
        grids.truncated(SD, 12)
    with pytest.raises(PlanError, match="infinite"):
        grids.truncated(VPDiscrete((0.9, 0.5, 0.0)), 2)


# --- what no grid and no solver can do ---------------------------------------------------------------------------

FLOW = RectifiedFlow()
ZERO_SNR = VPDiscrete((0.9, 0.6, 0.3, 0.0))
IN_SIGMA = ("euler", "euler_ancestral", "lms", "heun", "rho_rk")


@pytest.mark.parametrize("kind", ["epsilon", "score"])
@pytest.mark.parametrize("name", sorted(set(SOLVERS) - {"lcm"}))
def test_noise_predictions_cannot_start_without_signal(name, kind):
    for process in (FLOW, ZERO_SNR):
        grid = grids.uniform(process, 3) if process is FLOW else grids.trailing(process, 3)
        with pytest.raises(PlanError, match="zero terminal SNR|infinite") as refused:
            SOLVERS[name](process, Prediction(kind), grid)
        assert refused.value.hint


@pytest.mark.parametrize("name", IN_SIGMA)
def test_solvers_in_sigma_cannot_start_at_pure_noise(name):
    with pytest.raises(PlanError, match="zero terminal SNR"):
        SOLVERS[name](FLOW, Prediction("velocity"), grids.uniform(FLOW, 3))


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_times_outside_of_the_process_are_refused(name):
    with pytest.raises(PlanError, match="Stay between 0 and 999"):
        SOLVERS[name](SD, Prediction("epsilon"), grids.given([900.0, 300.0, -5.0], end=-10.0))
    if not FACTS[name].discrete:
        with pytest.raises(PlanError, match="clean data"):
            SOLVERS[name](FLOW, Prediction("velocity"), grids.given([0.9, 0.3, 0.0]))
        with pytest.raises(PlanError, match="Stay between 0 and 20"):
            SOLVERS[name](VE(20.0), Prediction("edm"), grids.given([20.09, 4.0, 0.1]))
        with pytest.raises(PlanError, match="Stay between 0 and 1"):
            SOLVERS[name](FLOW, Prediction("velocity"), grids.given([0.9, 0.3], end=-0.1))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: grids.given([900.0, 500.0, 500.0]), "fall strictly"),
        (lambda: grids.given([500.0, 900.0]), "fall strictly"),
        (lambda: grids.given([900.0, math.nan]), "fall strictly"),
        (lambda: grids.given([math.nan]), "fall strictly"),
        (lambda: grids.given([900.0], end=math.nan), "fall strictly"),
        (lambda: grids.given([]), "fall strictly"),
        (lambda: grids.trailing(SD, 0), "steps"),
        (lambda: grids.trailing(SD, 2.5), "whole number"),
        (lambda: grids.trailing(SD, 1001), "1000 times"),
        (lambda: grids.karras(SD, 4, 0.0, rho=0.0), "rho must be positive"),
        (lambda: grids.polynomial(SD, 4, 1.0, power=0.0), "power must be positive"),
        (lambda: grids.shifted(FLOW, 4, shift=0.0), "shift must be positive"),
        (lambda: SOLVERS["ddim"](SD, Prediction("epsilon"), grids.trailing(SD, 3), eta=1.5), "eta"),
        (lambda: SOLVERS["tcd"](SD, Prediction("epsilon"), grids.trailing(SD, 3), eta=-0.5), "eta"),
    ],
)
def test_grids_and_options_that_cannot_be(make, named):
    with pytest.raises(PlanError, match=named):
        make()
