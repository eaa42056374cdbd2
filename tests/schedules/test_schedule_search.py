import functools

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.executor import sample
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import VPContinuous
from fewstep.schedules import (
    METHODS,
    Candidate,
    DistributionMatch,
    EvaluationPool,
    ModelInfo,
    SearchTask,
    TeacherMatch,
    Trajectory,
    descend,
    learn_grid,
    learn_scales,
    s3,
    search_method,
)
from fewstep.schedules.learnable import detached
from fewstep.schedules.predictor import Predictor
from fewstep.schedules.space import ScheduleSpace
from fewstep.solvers import SOLVERS, Decision, ddim, grids, unipc
from fewstep.testing.mixture import Mixture
from tests import processes

MIXTURE = Mixture.line([0.3, 0.5, 0.2], [-2.0, 0.5, 3.0], [0.5, 0.3, 0.8])
PROCESS, EPSILON = VPContinuous(), Prediction()
MODEL = ModelInfo(PROCESS, EPSILON)
NETWORK = MIXTURE.network(PROCESS, EPSILON)


def objective(first=0, count=48):
    fine = unipc(PROCESS, EPSILON, grids.uniform(PROCESS, 60))
    seen = Trajectory.follow(fine, NETWORK, seeds=range(first, first + count), shape=(1,))
    return TeacherMatch(
        lambda plan, items: sample(plan, NETWORK, seeds=[first + i for i in items], shape=(1,)), seen.final
    ), seen


KNOWN, TRAJECTORY = objective()
HELD_OUT, _ = objective(1000, 200)


def task(steps=4, budget=60, **options):
    return SearchTask(MODEL, steps, KNOWN, TRAJECTORY, budget=budget, **options)


def held_out(plan):
    with torch.no_grad():
        return float(HELD_OUT(plan, range(HELD_OUT.size)).mean())


@functools.cache
def found_by(name):
    """What a search finds in 150 evaluations."""
    return search_method(name)(task(budget=150))


def usual(steps):
    """The best of the usual solvers on even times, on the held-out items themselves."""
    names = ("ddim", "dpm_solver_pp_2m", "unipc", "deis_tab", "dpm_solver")
    return max(held_out(SOLVERS[n](PROCESS, EPSILON, grids.uniform(PROCESS, steps))) for n in names)


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("gits", "amed", "autodiffusion", "random")])
def test_searches_beat_every_usual_solver_on_noise_they_never_saw(name):
    found = found_by(name)
    assert found.plan.steps == 4
    assert held_out(found.plan) > usual(4)


@pytest.mark.usefixtures("quick_predictor")
@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_to_its_evaluations_and_saves(name, tmp_path):
    steps = 4 if name != "amed" else 5
    job, asked = task(steps, budget=60), 0

    class Counted:
        size, per_item = KNOWN.size, True

        def __call__(self, plan, items):
            nonlocal asked
            asked += len(items) * (3 if torch.is_grad_enabled() else 1)
            return KNOWN(plan, items)

    job.objective = Counted()
    found = search_method(name)(job)
    assert asked / KNOWN.size <= 60.01
    assert asked / KNOWN.size == pytest.approx(found.spent, abs=0.51)
    assert found.plan.steps == steps
    assert found.value == pytest.approx(task().value(found.plan), abs=1e-6)
    assert found.spent <= 60
    found.plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == found.plan
    assert found.plan.origin["search"] == name.replace("random", "random_search")


def test_the_gradient_of_a_grid_is_that_of_finite_differences():
    learnable = learn_grid(PROCESS, EPSILON, unipc, grids.uniform(PROCESS, 4))

    def loss(gaps, network_times):
        plan = learnable.build({"gaps": gaps, "network_times": network_times})
        x = sample(plan, NETWORK, seeds=range(4), shape=(1,), dtype=torch.float64)
        return x.square().mean()

    start = [learnable.start[name].clone().requires_grad_(True) for name in ("gaps", "network_times")]
    slopes = torch.autograd.grad(loss(*start), start)
    for which, slope in enumerate(slopes):
        for k in range(len(slope)):
            values = []
            for sign in (1, -1):
                moved = [p.detach().clone() for p in start]
                moved[which][k] += sign * 1e-5
                values.append(float(loss(*moved)))
            assert float(slope[k]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-8)


def test_a_learned_grid_starts_as_the_grid_it_is_given():
    grid = grids.uniform(PROCESS, 5)
    learnable = learn_scales(learn_grid(PROCESS, EPSILON, ddim, grid))
    rows, wanted = detached(learnable.build(learnable.start)).rows, ddim(PROCESS, EPSILON, grid).rows
    for ours, theirs in zip(rows, wanted, strict=True):
        assert dict(ours.coefficients()) == pytest.approx(dict(theirs.coefficients()), abs=1e-12)


def test_a_descent_keeps_the_best_plan_of_the_items_it_did_not_learn_from():
    learnable = learn_grid(PROCESS, EPSILON, unipc, grids.uniform(PROCESS, 4))
    found = descend(learnable, KNOWN, rounds=40)
    assert found.value == max(value for _, value in found.history)
    assert found.value > found.history[0][1]


def test_a_killed_descent_goes_on_to_the_same_result(tmp_path):
    learnable = learn_scales(learn_grid(PROCESS, EPSILON, unipc, grids.uniform(PROCESS, 4)))
    whole = descend(learnable, KNOWN, rounds=30, look_every=7)

    def kill(k, value):
        if k == 14:
            raise KeyboardInterrupt

    file = tmp_path / "descent.safetensors"
    with pytest.raises(KeyboardInterrupt):
        descend(learnable, KNOWN, rounds=30, look_every=7, checkpoint=file, watch=kill)
    looked = []
    again = descend(learnable, KNOWN, rounds=30, look_every=7, checkpoint=file, watch=lambda k, v: looked.append(k))
    assert looked == [21, 28, 30]
    assert again.history == whole.history
    assert again.plan == whole.plan


def pool(score, path=None, **options):
    return EvaluationPool(score, storage=path, **options)


@pytest.fixture
def quick_predictor(monkeypatch):
    """S3's, trained for few rounds: where what it bets on is not the question."""
    trained = Predictor.trained
    monkeypatch.setattr(Predictor, "trained", classmethod(lambda cls, *given: trained(*given, rounds=20)))


@pytest.mark.usefixtures("quick_predictor")
def test_a_killed_search_goes_on_to_the_same_result(tmp_path):
    space, asked = ScheduleSpace(MODEL, 4, last=0.02), []

    def score(candidate):
        asked.append(candidate.key)
        return task().score(candidate)

    whole = pool(score, tmp_path / "whole.journal")
    s3(space, whole, 36, stage=12)
    asked.clear()

    def killed(candidate):
        if len(asked) == 29:
            raise KeyboardInterrupt
        return score(candidate)

    with pytest.raises(KeyboardInterrupt):
        s3(space, pool(killed, tmp_path / "killed.journal"), 36, stage=12)
    again = pool(score, tmp_path / "killed.journal")
    assert len(again) == 29
    s3(space, again, 36, stage=12)
    assert [e.candidate.key for e in again.entries()] == [e.candidate.key for e in whole.entries()]
    assert len(asked) == 36  # nothing was evaluated twice


def _work(storage, seed):
    s3(ScheduleSpace(MODEL, 3, last=0.02), EvaluationPool(task(3).score, storage=storage), 30, seed=seed, stage=12)


@pytest.mark.usefixtures("quick_predictor")
def test_schedules_that_are_one_plan_are_evaluated_once():
    """Of 75 looks at two-step schedules only 20 were different plans."""
    space, plans = ScheduleSpace(MODEL, 2, frozenset({"strategy"}), last=0.02), []

    def score(candidate):
        plans.append(candidate.folded(MODEL))
        return task(2).score(candidate)

    filled = EvaluationPool(score, key=lambda candidate: candidate.folded(MODEL))
    s3(space, filled, 40, stage=12)
    assert len(set(plans)) == len(plans) == len(filled) <= 40
    order = [Candidate((1.0, 0.5), (Decision(order=k), Decision(order=2))) for k in (1, 2, 4)]
    assert len({c.key for c in order}) == 3
    assert len({c.folded(MODEL) for c in order}) == 1
    assert Candidate((1.0, 0.4), order[0].decisions).folded(MODEL) != order[0].folded(MODEL)


def test_workers_share_a_storage(tmp_path):
    storage = f"sqlite:///{tmp_path}/search.db"
    len(EvaluationPool(task(3).score, storage=storage))  # the tables are made before the workers start
    workers = [processes.start(_work, storage, k) for k in range(2)]
    for worker in workers:
        worker.join()
    assert [w.exitcode for w in workers] == [0, 0]
    shared = EvaluationPool(task(3).score, storage=storage)
    assert 30 <= len(shared) <= 32
    assert {e.origin for e in shared.entries()} == {"design", "s3"}


def test_a_storage_of_another_search_is_refused(tmp_path):
    EvaluationPool(task().score, storage=tmp_path / "a.journal", task="four steps")
    with pytest.raises(FewstepError, match="another search"):
        EvaluationPool(task().score, storage=tmp_path / "a.journal", task="five steps")
    with pytest.raises(FewstepError, match="cannot open"):
        EvaluationPool(task().score, storage="nonsense://here")


def test_the_predictor_learns_the_order_of_schedules():
    """Ranks schedules it never saw, where the value is a plain function of the schedule."""
    import random

    space, rng = ScheduleSpace(MODEL, 4, last=0.02), random.Random(0)

    def value(candidate):
        return -abs(candidate.times[1] - 0.5) + 0.3 * (candidate.decisions[2].order == 2)

    seen = [space.draw(rng) for _ in range(120)]
    memory = pool(value)
    for candidate in seen[:80]:
        memory.score(candidate)
    predictor = Predictor.trained(space, memory.entries(), seed=0)
    fresh = seen[80:]
    guesses, truth = predictor.scores(fresh), torch.tensor([value(c) for c in fresh])
    right = (guesses.unsqueeze(1) > guesses.unsqueeze(0)) == (truth.unsqueeze(1) > truth.unsqueeze(0))
    assert float(right.float().mean()) > 0.75


def test_evolution_beats_chance_at_equal_cost():
    assert found_by("s3").value > found_by("random").value


def test_a_schedule_that_gives_nan_is_the_worst_not_an_end():
    bad = Candidate((1.0, 0.5), (Decision(order=1),) * 2)
    broken = TeacherMatch(lambda plan, items: torch.full((len(items), 1), float("nan")), KNOWN.target)
    job = SearchTask(MODEL, 2, broken, TRAJECTORY, budget=20)
    assert job.score(bad) < -1e5
    with pytest.raises(FewstepError, match="can be run"):
        search_method("s3")(job)


def test_sets_are_compared_by_the_frechet_distance():
    target = MIXTURE.sample(400).float()
    match = DistributionMatch(KNOWN.generate, lambda x: x, target, 48)
    good, bad = (unipc(PROCESS, EPSILON, grids.uniform(PROCESS, n)) for n in (20, 1))
    assert float(match(good, range(48))) > float(match(bad, range(48)))
    found = search_method("autodiffusion")(SearchTask(MODEL, 3, match, TRAJECTORY, budget=20))
    assert found.plan.steps == 3
    with pytest.raises(FewstepError, match="gradient"):
        search_method("ld3")(SearchTask(MODEL, 3, match, TRAJECTORY, budget=20))


def test_amed_learns_at_even_and_odd_counts():
    """An even count takes the analytic first step; both end nearer than the midpoint solver that they start from."""
    for steps in (4, 5):
        found = search_method("amed")(task(steps, budget=40))
        assert found.plan.steps == steps
        assert found.value > found.history[0][1]


def test_hopeless_requests_are_named():
    with pytest.raises(FewstepError, match="three steps"):
        search_method("amed")(task(1))
    with pytest.raises(FewstepError, match="no gradient step"):
        search_method("ld3")(task(budget=5))
    with pytest.raises(FewstepError, match="ld3"):
        search_method("ld4")
