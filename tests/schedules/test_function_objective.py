"""`Problem.of`: a search over any function of a plan, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.schedules.tuning import SEARCHERS, Family, Problem, searcher
from fewstep.solvers import ddim, grids

PLAN = ddim(RectifiedFlow(), Prediction("velocity"), grids.uniform(RectifiedFlow(), 4))
TOP = (0.92, 1.08)


def bowl(plan):
    """-100 |(s0, m0) - TOP|^2, differentiable in the plan's scalars."""
    row = plan.rows[0]
    here = [torch.as_tensor(v, dtype=torch.float64) for v in (row.sample_scale, row.output_scale)]
    return -100 * sum((v - top) ** 2 for v, top in zip(here, TOP, strict=True))


class Counted:
    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, plan):
        self.calls += 1
        return self.function(plan)


@pytest.mark.parametrize("name", list(SEARCHERS))
@pytest.mark.parametrize("kind", ["tensor", "items"])
def test_every_searcher_finds_the_top_of_a_function(name, kind):
    offsets = torch.linspace(-1, 1, 5, dtype=torch.float64)
    function = Counted(bowl if kind == "tensor" else lambda plan: bowl(plan) + offsets)
    problem = Problem.of(PLAN, Family("ramp-to-one"), function)
    searcher(name)(problem, 625 if name == "grid" else 80, 0)
    outcome = problem.outcome()
    assert np.abs(np.subtract(outcome.theta, TOP)).max() < 0.04
    assert outcome.identity_value == pytest.approx(-100 * (0.08**2 + 0.08**2))
    if name == "gradient":  # a call with a gradient counts as three
        assert function.calls < problem.spent
    else:
        assert function.calls == pytest.approx(problem.spent)  # no look at a part of the items is sold as cheaper
    if kind == "tensor":
        assert outcome.gain is None
    else:
        assert outcome.gain == pytest.approx([outcome.value - outcome.identity_value] * 5)


@pytest.mark.parametrize(
    "given", [float, lambda value: [value] * 3, lambda value: np.full(3, value), lambda value: value.float()]
)
def test_numbers_lists_arrays_and_tensors_are_scores(given):
    problem = Problem.of(PLAN, Family("ramp-to-one"), lambda plan: given(bowl(plan)))
    assert problem.score(torch.tensor(TOP, dtype=torch.float64)) == pytest.approx(0, abs=1e-9)


def test_the_first_call_is_not_repeated():
    function = Counted(bowl)
    problem = Problem.of(PLAN, Family("ramp-to-one"), function)
    problem.score(torch.ones(2))
    assert (function.calls, problem.spent) == (1, 1.0)


def test_a_killed_search_of_a_function_goes_on(tmp_path):
    log = tmp_path / "scores.jsonl"
    outcomes, calls = [], []
    for _ in range(2):
        function = Counted(lambda plan: [bowl(plan), 2 * bowl(plan)])
        problem = Problem.of(PLAN, Family("ramp-to-one"), function, log=log)
        searcher("coarse-to-fine")(problem, 30, 0)
        outcomes.append(problem.outcome())
        calls.append(function.calls)
    assert outcomes[0] == outcomes[1]
    assert calls[0] > 20
    assert calls[1] == 1  # to see what the function gives


@pytest.mark.parametrize("wrong", [None, "good", [], [[1.0]], torch.zeros(2, 2), torch.zeros(0), 1j])
def test_what_is_no_score_is_refused(wrong):
    with pytest.raises(FewstepError, match="must give a number, or a list of numbers"):
        Problem.of(PLAN, Family("ramp-to-one"), lambda plan: wrong)


def test_scores_of_another_number_are_refused():
    problem = Problem.of(PLAN, Family("ramp-to-one"), lambda plan: [1.0] if plan is PLAN else [1.0, 2.0])
    with pytest.raises(FewstepError, match="differ in number"):
        problem.score(torch.tensor([0.9, 1.0]))


def test_a_search_by_gradient_needs_one():
    problem = Problem.of(PLAN, Family("ramp-to-one"), lambda plan: float(bowl(plan)))
    with pytest.raises(FewstepError, match="needs scores with a gradient"):
        searcher("gradient")(problem, 30, 0)
