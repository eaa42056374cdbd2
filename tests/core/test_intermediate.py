import math

import pytest
import torch

from fewstep.errors import PlanError
from fewstep.executor import sample
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import VE, RectifiedFlow, VPContinuous
from fewstep.solvers import Grid, amed, dpm_solver_2s, grids
from fewstep.testing.mixture import Mixture
from tests.core.toys import golden, levels

EPSILON, VP = Prediction("epsilon"), VPContinuous()


def grid_of(process, lam):
    times = process.time(torch.as_tensor(lam, dtype=torch.float64))
    return Grid(times[:-1], float(times[-1]))


def coefficients(plan):
    """Every number that is not rounding under its name."""
    return [{n: v for n, v in row.coefficients() if abs(v) > 1e-12} for row in plan.rows]


@pytest.mark.parametrize("process", [VP, RectifiedFlow(3.0), VE()], ids=repr)
def test_the_middle_is_dpm_solver_2(process):
    ours = amed(process, EPSILON, grid_of(process, [-2.0, -0.7, 0.5, 2.0]))
    theirs = dpm_solver_2s(process, EPSILON, grid_of(process, [-2.0, -1.35, -0.7, -0.1, 0.5, 1.25, 2.0]))
    assert ours.steps == theirs.steps == 6
    for mine, wanted in zip(coefficients(ours), coefficients(theirs), strict=True):
        assert mine == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("place", "order"), [(0.5, 2), (0.9, 1)])
def test_order_of_convergence(place, order):
    m, x = golden(), torch.linspace(-2, 2, 9).double().reshape(9, 1)
    errors = []
    for steps in (42, 84):
        plan = amed(VP, EPSILON, grid_of(VP, torch.linspace(-2, 2, steps + 1)), places=[place] * steps)
        end = sample(plan, m.network(VP, EPSILON), seeds=range(9), shape=(1,), state=x, dtype=torch.float64)
        wanted = m.flow(x, *(levels(VP, VP.time(at)) for at in (-2.0, 2.0)))
        errors.append(float((end - wanted).abs().max()))
    assert math.log2(errors[0] / errors[1]) > order - 0.15
    assert (errors[1] < 0.01) is (place == 0.5)


def test_place_scale_and_time_scale_do_what_they_say():
    """One step of VE, written out: d at the middle sigma^r, x + c (sigma' - sigma) d; the network is told a sigma_m."""
    process = VE()
    told = []

    def network(x, time):
        told.append(float(time))
        return torch.tanh(x) + 0.1 * torch.sin(3 * time)

    plan = amed(
        process, EPSILON, Grid(torch.tensor([5.0]).double(), 0.5), places=[0.3], scales=[1.01], time_scales=[1.1]
    )
    x = torch.tensor([[0.7]]).double()
    found = sample(plan, network, seeds=[0], shape=(1,), state=x, dtype=torch.float64)
    middle = 5.0**0.7 * 0.5**0.3
    at_middle = x + (middle - 5.0) * (torch.tanh(x) + 0.1 * math.sin(3 * math.log(5.0) / 4))
    wanted = x + 1.01 * (0.5 - 5.0) * (torch.tanh(at_middle) + 0.1 * math.sin(3 * math.log(1.1 * middle) / 4))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert told[1] == pytest.approx(math.log(1.1 * middle) / 4, rel=1e-12)


@pytest.mark.parametrize("process", [VP, RectifiedFlow(2.0), VE(5.0)], ids=repr)
def test_gradients_are_those_of_finite_differences(process):
    """Through the network's time too: place, scale and time scale of every step."""
    grid = grid_of(process, [-1.5, -0.4, 0.6, 1.5])

    def network(x, time):
        return torch.tanh(1.3 * x + 0.2) + 0.3 * torch.sin(time / 50)

    def end(numbers):
        plan = amed(process, EPSILON, grid, places=numbers[0], scales=numbers[1], time_scales=numbers[2])
        start = torch.linspace(-2, 2, 5).double().reshape(5, 1)
        return sample(plan, network, seeds=range(5), shape=(1,), state=start, dtype=torch.float64).square().sum()

    numbers = torch.tensor([[0.4, 0.5, 0.6], [1.0, 1.01, 0.99], [1.0, 0.98, 1.03]]).double().requires_grad_()
    (gradient,) = torch.autograd.grad(end(numbers), numbers)
    with torch.no_grad():
        steps = 1e-6 * torch.eye(9).double().reshape(9, 3, 3)
        expected = torch.stack([(end(numbers + d) - end(numbers - d)) / 2e-6 for d in steps]).reshape(3, 3)
    assert bool((gradient.abs() > 1e-5).all())
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_a_clean_end_is_one_call_and_the_plan_can_be_saved(tmp_path):
    grid = grids.given([0.9, 0.5, 0.1])
    plan = amed(VP, EPSILON, grid, places=[0.4, 0.6])
    assert plan.steps == 5
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    point = Mixture.gaussian([0.7, -1.3], [0.0, 0.0])
    start = plan.rows[0].alpha * point.means + plan.rows[0].sigma * torch.tensor([[0.4, -0.9]]).double()
    end = sample(plan, point.network(VP, EPSILON), seeds=[0], shape=(2,), state=start, dtype=torch.float64)
    torch.testing.assert_close(end, point.means, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"places": [0.5]}, "places must be 2"), ({"places": [0.5, 1.0]}, "between 0 and 1"),
        ({"scales": [1.0, 0.0]}, "scales must be positive"), ({"time_scales": [1.0, math.nan]}, "time_scales"),
    ],
)  # fmt: skip
def test_mistakes_are_named(options, named):
    with pytest.raises(PlanError, match=named):
        amed(VP, EPSILON, grids.given([0.9, 0.5, 0.1]), **options)


def test_pure_noise_is_refused():
    with pytest.raises(PlanError, match="infinite"):
        amed(RectifiedFlow(), Prediction("velocity"), grids.uniform(RectifiedFlow(), 3))
