import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.schedules.tuning import SEARCHERS, Family, Problem, searcher
from fewstep.solvers import ddim, grids

PLAN = ddim(RectifiedFlow(), Prediction("velocity"), grids.uniform(RectifiedFlow(), 4))


class Bowl:
    """A quadratic with its top at a known place, plus item noise shared by all candidates (common random numbers)."""

    per_item = True

    def __init__(self, size=16, top=(0.92, 1.08), noise=0.3):
        self.size, self.top, self.asked = size, torch.tensor(top, dtype=torch.float64), 0
        self.noise = noise * torch.randn(size, generator=torch.Generator().manual_seed(0)).double()

    def __call__(self, plan, items):
        self.asked += len(items)
        first = plan.rows[0]
        here = torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in (first.sample_scale, first.output_scale)])
        return -100 * ((here - self.top) ** 2).sum() + self.noise[list(items)]


@pytest.mark.parametrize("name", list(SEARCHERS))
def test_every_searcher_finds_the_top_within_its_budget(name):
    problem = Problem(PLAN, Family("ramp-to-one"), Bowl())
    budget = 625 if name == "grid" else 80
    searcher(name)(problem, budget, 0)
    outcome = problem.outcome()
    assert problem.spent <= budget
    assert outcome.value - outcome.identity_value > 0.8 * 100 * 2 * 0.08**2
    assert torch.tensor(outcome.theta).sub(torch.tensor([0.92, 1.08])).abs().max() < 0.04


@pytest.mark.parametrize("name", ["coarse-to-fine", "cma-es", "gradient"])
def test_wider_families_are_never_worse_than_the_ramp_they_start_from(name):
    narrow = Problem(PLAN, Family("ramp-to-one"), Bowl())
    wide = Problem(PLAN, Family("ramp"), Bowl())
    for problem in (narrow, wide):
        searcher(name)(problem, 90, 0)
    assert wide.outcome().value >= narrow.outcome().value - 0.15


def test_fidelities_share_their_items():
    bowl = Bowl()
    problem = Problem(PLAN, Family("ramp-to-one"), bowl)
    theta = torch.tensor([0.9, 1.0], dtype=torch.float64)
    quarter = problem.score(theta, 0.25)
    assert bowl.asked == 4
    full = problem.score(theta)
    assert bowl.asked == 16  # the four known items were not asked again
    assert problem.score(theta, 0.25) == quarter
    assert full == pytest.approx(float(bowl(PLAN.scaled([0.9] + [1.0] * 3, [1.0] * 4), range(16)).mean()), abs=1e-9)
    assert problem.spent == pytest.approx(1.0)


@pytest.mark.parametrize("name", list(SEARCHERS))
def test_a_killed_search_replays_its_log_and_ends_alike(name, tmp_path):
    log = tmp_path / "scores.jsonl"
    first = Problem(PLAN, Family("ramp"), Bowl(), log=log)
    searcher(name)(first, 40, 3)
    wanted = first.outcome()
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[: len(lines) // 2]) + "\n" + lines[-1][:17])  # killed in the middle of a line
    bowl = Bowl()
    again = Problem(PLAN, Family("ramp"), bowl, log=log)
    searcher(name)(again, 40, 3)
    found = again.outcome()
    assert (found.theta, found.value, found.spent) == (wanted.theta, wanted.value, wanted.spent)
    if name != "gradient":  # a gradient is not a score: it is computed again
        assert 0 < bowl.asked < 16 * len(lines)
    assert log.read_text().splitlines() == lines


def test_outcome_reports_the_paired_gain_of_every_item():
    problem = Problem(PLAN, Family("ramp-to-one"), Bowl())
    searcher("coarse-to-fine")(problem, 60, 0)
    outcome = problem.outcome()
    assert len(outcome.gain) == 16
    assert sum(outcome.gain) / 16 == pytest.approx(outcome.value - outcome.identity_value)
    assert (
        torch.tensor(outcome.gain, dtype=torch.float64).std() < 1e-9
    )  # common random numbers cancel the item noise exactly


def test_set_level_objectives_pay_for_the_whole_set():
    class Level:
        size, per_item = 10, False

        def __call__(self, plan, items):
            return torch.tensor(float(len(items)))

    problem = Problem(PLAN, Family("ramp-to-one"), Level())
    assert problem.score(torch.ones(2), 0.5) == 5.0
    assert problem.score(torch.ones(2)) == 10.0
    assert problem.spent == pytest.approx(1.5)
    assert problem.outcome().gain is None


def test_numbers_that_change_no_row_make_no_new_plan():
    """One row has one pair of scalars: of the four numbers of a ramp two say nothing, and are not paid for."""
    bowl = Bowl()
    problem = Problem(ddim(RectifiedFlow(), Prediction("velocity"), grids.uniform(RectifiedFlow(), 1)), Family(), bowl)
    scores = {problem.score(torch.tensor([0.9, last, 1.1, 2 - last]).double()) for last in (0.8, 0.95, 1.0, 1.2)}
    assert (len(scores), bowl.asked, problem.spent) == (1, 16, 1.0)
    assert problem.score(torch.tensor([0.91, 1.0, 1.1, 1.0]).double()) not in scores


def test_scores_that_are_no_numbers_never_win():
    class Broken(Bowl):
        def __call__(self, plan, items):
            value = super().__call__(plan, items)
            return value * float("nan") if float(plan.rows[0].sample_scale) > 1 else value

    problem = Problem(PLAN, Family("ramp-to-one"), Broken())
    searcher("coarse-to-fine")(problem, 60, 0)
    outcome = problem.outcome()
    assert outcome.value > outcome.identity_value
    assert outcome.theta[0] <= 1


@pytest.mark.parametrize(
    ("value", "words"), [(2.0, "every candidate has the same score"), (float("nan"), "no finite score")]
)
def test_an_objective_that_tells_nothing_apart_is_refused(value, words):
    class Flat(Bowl):
        def __call__(self, plan, items):
            return torch.full((len(items),), value)

    with pytest.raises(FewstepError, match=words):
        searcher("coarse-to-fine", widen=True)(Problem(PLAN, Family("ramp-to-one"), Flat()), 60, 0)


def test_set_level_scores_are_paid_for_again_in_a_replay(tmp_path):
    class Level:
        size, per_item = 10, False

        def __call__(self, plan, items):
            return torch.tensor(float(len(items)))

    spent = []
    for _ in range(2):
        problem = Problem(PLAN, Family("ramp-to-one"), Level(), log=tmp_path / "log.jsonl")
        problem.score(torch.ones(2))
        spent.append(problem.spent)
    assert spent == [1.0, 1.0]


def test_mistakes():
    with pytest.raises(FewstepError, match="coarse-to-fine"):
        searcher("coarse-to-fin")
    with pytest.raises(FewstepError, match="at least 2"):
        searcher("coarse-to-fine")(Problem(PLAN, Family(), Bowl()), 1.5, 0)
    bowl = Bowl()
    bowl.size = 0
    with pytest.raises(FewstepError, match="no items"):
        Problem(PLAN, Family(), bowl)


@pytest.mark.parametrize("text", ["my notes", '{"theta": 3}\n{"theta": [1', "{}\n", '[1]\n{"theta": ['])
def test_a_log_that_is_another_file_stays_as_it_is(tmp_path, text):
    log = tmp_path / "notes.txt"
    log.write_text(text)
    with pytest.raises(FewstepError, match="no scores"):
        Problem(PLAN, Family("ramp"), Bowl(), log=log)
    assert log.read_text() == text


@pytest.mark.parametrize("name", ["coarse-to-fine", "tpe"])
def test_a_top_beyond_the_edge_is_reached_in_a_wider_box_within_the_budget(name):
    top = (0.72, 1.1)
    held, wide = (Problem(PLAN, Family("ramp-to-one"), Bowl(top=top)) for _ in range(2))
    searcher(name)(held, 60, 0)
    searcher(name, widen=True)(wide, 60, 0)
    assert held.outcome().on_boundary
    assert not wide.outcome().on_boundary
    assert wide.spent <= 60
    assert torch.tensor(wide.outcome().theta).sub(torch.tensor(top)).abs().max() < 0.04


def test_a_box_that_holds_the_top_is_not_widened():
    problem = Problem(PLAN, Family("ramp-to-one"), Bowl())
    searcher("coarse-to-fine", widen=True)(problem, 60, 0)
    assert (problem.family.low, problem.family.high) == (0.8, 1.2)
    assert all(0.8 <= v <= 1.2 for scored in problem.history for v in scored.theta)
