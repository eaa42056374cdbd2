import math
from itertools import pairwise

import pytest
import torch

from fewstep import solvers
from fewstep.denoiser import Denoiser
from fewstep.diagnostics import equalised_grid, flow, truncation
from fewstep.errors import PlanError
from fewstep.prediction import Prediction
from fewstep.process import VE, Cosine, RectifiedFlow, VPContinuous, VPDiscrete
from fewstep.solvers import grids
from fewstep.testing.mixture import Mixture

GOLDEN = Mixture.line([0.3, 0.5, 0.2], [-2.0, 0.5, 3.0], [0.5, 0.3, 0.8])
GAUSSIAN = Mixture.gaussian([1.5], [0.49])


def perfect(mixture, process, kind):
    return Denoiser(mixture.network(process, Prediction(kind)), process, Prediction(kind))


def first_states(plan, count=64):
    noise = torch.randn(count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return plan.prior_scale * noise


@pytest.mark.parametrize(
    ("process", "kind"),
    [
        (VE(40.0), "edm"),
        (VPDiscrete.from_betas(), "epsilon"),
        (Cosine(), "sample"),
        (RectifiedFlow(3.0), "velocity"),
        (VPContinuous(), "v_prediction"),
    ],
)
def test_the_reference_is_the_exact_flow_both_ways(process, kind):
    start, end = process.time(-1.5), process.time(1.2)
    scales = [(process.alpha(t), process.sigma(t)) for t in (start, end)]
    x = torch.linspace(-3, 3, 25, dtype=torch.float64).unsqueeze(1)
    denoiser = perfect(GOLDEN, process, kind)
    torch.testing.assert_close(flow(denoiser, x, *scales, 40), GOLDEN.flow(x, *scales), atol=2e-5, rtol=0)
    back = flow(denoiser, GOLDEN.flow(x, *scales), scales[1], scales[0], 40)
    torch.testing.assert_close(back, x, atol=5e-5, rtol=0)
    # any multiple of the scales is the same flow
    other = flow(denoiser, 7 * x, tuple(7 * s for s in scales[0]), scales[1], 40)
    torch.testing.assert_close(other, GOLDEN.flow(x, *scales), atol=2e-5, rtol=0)


def test_the_reference_starts_without_signal_and_ends_without_noise():
    process = RectifiedFlow()
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).unsqueeze(1)
    reached = flow(perfect(GOLDEN, process, "velocity"), x, (0.0, 1.0), (1.0, 0.0), 80)
    torch.testing.assert_close(reached, GOLDEN.flow(x, (0.0, 1.0), (1.0, 0.0)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("process", [VPDiscrete.from_betas(), VE(20.0), RectifiedFlow()])
def test_ddim_has_the_local_error_of_the_closed_form(process):
    kind = "velocity" if isinstance(process, RectifiedFlow) else "epsilon"
    last = process.time(3.0)
    grid = grids.given([process.time(lam) for lam in (-2.5, -1.0, 0.2, 1.5)], end=last)
    plan = solvers.ddim(process, Prediction(kind), grid)
    state = first_states(plan)
    found = truncation(plan, perfect(GAUSSIAN, process, kind), state, fine=30)
    levels = [(row.alpha, row.sigma) for row in plan.rows] + [(plan.final_alpha, plan.final_sigma)]
    x, expected = state, []
    for (a, s), (b, r) in pairwise(levels):
        data, noise = GAUSSIAN.estimates(x, a, s)
        step, exact = b * data + r * noise, GAUSSIAN.flow(x, (a, s), (b, r))
        expected.append((step - exact).abs().squeeze(1) / math.hypot(b, r))
        x = step
    torch.testing.assert_close(found.local, torch.stack(expected), rtol=1e-3, atol=1e-7)
    # the flow of a Gaussian is linear, so what is left of each error is its local error, stretched
    spread = [math.sqrt(0.49 * a * a + s * s) for a, s in levels]
    for k, local in enumerate(expected):
        stretch = spread[-1] / spread[k + 1] * math.hypot(*levels[k + 1])
        torch.testing.assert_close(found.propagated[k], local * stretch, rtol=1e-3, atol=1e-7)
    exact = GAUSSIAN.flow(state, levels[0], levels[-1])
    torch.testing.assert_close(found.final, (x - exact).abs().squeeze(1), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver_pp_2m", "unipc", "heun", "dpm_solver_3s", "deis_tab"])
def test_shares_add_up_to_the_final_error_for_every_kind_of_history(solver):
    process = VPDiscrete.from_betas()
    plan = solvers.SOLVERS[solver](process, Prediction(), grids.karras(process, 6, 5.0))
    state, told = first_states(plan, 16), []
    denoiser = perfect(GOLDEN, process, "epsilon")
    found = truncation(plan, denoiser, state, fine=4, watch=lambda done, total: told.append((done, total)))
    assert found.local.shape == found.share.shape == found.propagated.shape == (plan.steps, 16)
    torch.testing.assert_close(found.share.sum(0), torch.ones(16, dtype=torch.float64))
    assert told[-1][0] == told[-1][1] == len(told)
    assert float(found.reference.max()) < 0.05 * float(found.final.max())
    alone = truncation(plan, denoiser, state, fine=4, propagate=False)
    torch.testing.assert_close(alone.local, found.local)
    torch.testing.assert_close(alone.final, found.final)
    assert alone.share is None
    together = truncation(plan, denoiser, state, fine=4, any_batch=True)
    torch.testing.assert_close(together.propagated, found.propagated)


def test_a_stochastic_plan_is_refused():
    process = VPDiscrete.from_betas()
    plan = solvers.ddim(process, Prediction(), grids.trailing(process, 4), eta=1.0)
    with pytest.raises(PlanError, match="stochastic"):
        truncation(plan, perfect(GOLDEN, process, "epsilon"), first_states(plan))


def final_error(plan, process):
    state = torch.linspace(-2.5, 2.5, 101, dtype=torch.float64).unsqueeze(1)
    found = truncation(plan, perfect(GOLDEN, process, "epsilon"), state, propagate=False)
    return float(found.final.square().mean().sqrt())


@pytest.mark.parametrize(("solver", "order", "steps"), [("ddim", 1, 6), ("dpm_solver_pp_2m", 2, 10)])
def test_an_equalised_grid_beats_the_grids_of_the_literature(solver, order, steps):
    process, solve = VPContinuous(), solvers.SOLVERS[solver]
    measured = solve(process, Prediction(), grids.uniform(process, 24))
    denoiser = perfect(GOLDEN, process, "epsilon")
    errors = truncation(measured, denoiser, first_states(measured, 32), fine=2, any_batch=True)
    grid = equalised_grid(process, errors.times, errors.propagated.square().mean(1).sqrt(), steps, order)
    assert len(grid) == steps
    assert float(grid.times[0]) == process.noisiest
    last = process.time(4.0)
    known = [grids.uniform(process, steps), *(g(process, steps, last) for g in (grids.karras, grids.uniform_lambda))]
    ours, *theirs = (final_error(solve(process, Prediction(), g), process) for g in (grid, *known))
    assert ours < 0.9 * min(theirs)


def test_equal_errors_leave_the_grid_as_it_is():
    process = VPContinuous()
    times = [1.0, 0.7, 0.4, 0.2, 0.1]
    grid = equalised_grid(process, times, torch.ones(5), 5)
    torch.testing.assert_close(grid.times, torch.tensor(times, dtype=torch.float64))


@pytest.mark.parametrize("process", [VPDiscrete.from_betas(), RectifiedFlow(3.0), VE(40.0)])
def test_calls_pulled_towards_the_clean_end_stay_apart_and_inside(process):
    times = [process.time(lam) for lam in (-2.0, -1.0, 0.0)]
    grid = equalised_grid(process, times, [0.02, 0.02, 1.0], 6)
    levels = torch.exp(-process.lam(grid.times))
    assert bool((grid.times > 0).all())
    assert int((levels < 1).sum()) == 4  # sqrt(0.02) + sqrt(0.02) of a load of 1.28, in six parts
    assert float(levels[-1]) > 0.05  # not all at no noise
    # a plan that already calls at the cleanest time keeps its calls above it
    cleanest = equalised_grid(process, [*times, 1e-9 if process.sigma(0.0) == 0 else 0.0], [0.1, 0.1, 0.1, 1.0], 4)
    assert float(torch.exp(-process.lam(cleanest.times))[-1]) > 0.01


def test_a_grid_needs_errors_that_mean_something():
    process = VPContinuous()
    with pytest.raises(PlanError, match="one error per time"):
        equalised_grid(process, [1.0, 0.5], torch.ones(5), 4)
    with pytest.raises(PlanError, match="finite"):
        equalised_grid(process, [1.0, 0.5], [0.1, float("nan")], 4)
