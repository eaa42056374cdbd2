"""The default searcher on landscapes whose optimum is known: round bowls and narrow ridges, straight and bent."""

import itertools

import pytest
import torch

from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.schedules.tuning import Family, Problem, searcher
from fewstep.solvers import ddim, grids

PLANS = {k: ddim(RectifiedFlow(), Prediction("velocity"), grids.uniform(RectifiedFlow(), k)) for k in (1, 3, 4)}


class Landscape:
    """-d' H d around a top inside the box, H turned at random, its eigenvalues from 1 to 1 / condition."""

    per_item = True

    def __init__(self, size, condition, seed, bend=0.0, items=8):
        generator = torch.Generator().manual_seed(seed)
        self.size, self.bend = items, bend
        self.turn, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
        self.eigen = torch.logspace(0, -torch.tensor(float(condition)).log10().item(), size, dtype=torch.float64)
        self.top = 1 + 0.26 * (torch.rand(size, generator=generator, dtype=torch.float64) - 0.5)
        self.noise = torch.randn(items, generator=generator, dtype=torch.float64)
        self.asked = 0

    def value(self, theta):
        along = self.turn.T @ (theta - self.top)
        bent = along[0] + self.bend * along[-1] ** 2
        return -100 * (self.eigen[0] * bent**2 + (self.eigen[1:] * along[1:] ** 2).sum())

    def __call__(self, plan, items):
        self.asked += len(items)
        first, last = plan.rows[0], plan.rows[-1]
        numbers = [first.sample_scale, last.sample_scale, first.output_scale, last.output_scale]
        theta = torch.tensor([float(v) for v in (numbers if len(self.top) == 4 else numbers[::2])]).double()
        return self.value(theta) + self.noise[list(items)]


def shortfall(family, condition, seed, budget, bend=0.0, name="coarse-to-fine"):
    """The part of the way from the identity to the top that is left after a search, and what it spent."""
    size = {"ramp-to-one": 2, "ramp": 4}[family]
    landscape = Landscape(size, condition, seed, bend)
    problem = Problem(PLANS[4], Family(family), landscape)
    searcher(name)(problem, budget, seed)
    outcome = problem.outcome()
    assert problem.spent <= budget + 1e-9
    assert landscape.asked == round(problem.spent * landscape.size)
    whole = -float(landscape.value(torch.ones(size).double()))
    return (whole - (outcome.value - outcome.identity_value)) / whole


@pytest.mark.parametrize("bend", [0.0, 2.0])
@pytest.mark.parametrize(("condition", "near"), [(1, 1e-6), (100, 2e-4), (10_000, 2e-3)])
@pytest.mark.parametrize("family", ["ramp-to-one", "ramp"])
def test_narrow_ridges_are_climbed_to_their_top(family, condition, near, bend):
    """A pattern search stops on them with a third of its calls left, up to a tenth below the top."""
    left = [shortfall(family, condition, seed, 120, bend) for seed in range(4)]
    assert sorted(left)[2] < near
    assert max(left) < 0.05


@pytest.mark.parametrize("family", ["ramp-to-one", "ramp"])
def test_small_budgets_are_kept_and_used(family):
    for seed, budget in itertools.product(range(3), (2, 3, 8, 13.25, 24, 40)):
        assert shortfall(family, 10, seed, budget) <= 1.0
    assert sum(shortfall(family, 10, seed, 40) for seed in range(5)) < 0.15 * 5


@pytest.mark.parametrize("name", ["grid", "cma-es", "tpe"])
@pytest.mark.parametrize("budget", [3, 8, 30.5])
def test_no_searcher_spends_more_than_its_budget(name, budget):
    shortfall("ramp", 10, 0, budget, name=name)
