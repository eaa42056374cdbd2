"""The objective of Q-Sched by name, and the test that decides whether the tuned plan is saved."""

from types import SimpleNamespace

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.jobs.q_sched.objective import TuningObjective, verdict
from fewstep.metrics.distances import RbfKernel, mmd2
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.recipes.loader import load
from fewstep.schedules import DistributionMatch
from fewstep.schedules.tuning import JAQ
from fewstep.solvers import ddim, grids

PLAN = ddim(RectifiedFlow(), Prediction("velocity"), grids.uniform(RectifiedFlow(), 2))
BETTER = PLAN.scaled([1.1, 1.0], [1.0, 1.0])
OTHER = ["model=some/pipeline", "evaluation.judge=none"]


def shifted(plan, numbers, strength=1.0):
    """Points (n, 3) around the reference's mean, away from it by what the first sample scale lacks of 1.1."""
    noise = torch.stack([torch.randn(3, generator=torch.Generator().manual_seed(int(n))) for n in numbers])
    return noise + strength * (1.1 - float(plan.rows[0].sample_scale))


def decided(of, **settings):
    recipe = load("q-sched", [f"search.{name}={value}" for name, value in settings.items()]).resolved()
    context = SimpleNamespace(recipe=recipe)
    return verdict(context, TuningObjective("it", of, []), None, PLAN, BETTER)


def matching(strength):
    reference = torch.randn(60, 3, generator=torch.Generator().manual_seed(99)).double()

    def of(sampler, items):
        seeds = [seed for _, seed in items]
        return DistributionMatch(
            lambda plan, numbers: shifted(plan, [seeds[i] for i in numbers], strength),
            lambda x: x, reference, len(items), distance="mmd",
        )  # fmt: skip

    return of


def test_a_plan_that_is_better_on_unseen_items_is_kept_and_one_that_is_not_is_refused():
    better, same, worse = (decided(matching(strength)) for strength in (10.0, 0.0, -0.2))
    assert better["tuned"]
    assert better["gain"]["low"] > 0
    assert not same["tuned"]
    assert same["gain"]["mean"] == 0
    assert not worse["tuned"] or worse["gain"]["low"] > 0


def test_the_test_sees_prompts_and_seeds_that_the_search_did_not():
    asked = []

    def of(sampler, items):
        asked.extend(items)
        return matching(1.0)(sampler, items)

    found = decided(of, count=16)
    recipe = load("q-sched").resolved()
    from fewstep.data.prompts import load_prompts

    used = set(load_prompts(recipe.search.prompts, recipe.search.count))
    assert not used & {prompt for prompt, _ in asked}
    assert not set(found["seeds"]) & set(recipe.search.seeds)
    assert found["unseen_prompts"]


def test_a_list_without_prompts_to_spare_is_drawn_anew():
    found = decided(matching(1.0), count=60)
    assert not found["unseen_prompts"]
    assert found["prompts"] == 32


def test_no_test_saves_the_tuned_plan():
    assert decided(None, held_out=0)["tuned"]


def test_the_squared_mmd_of_a_set_and_of_its_resamples():
    reference = torch.randn(40, 3, generator=torch.Generator().manual_seed(1)).double()
    match = DistributionMatch(shifted, lambda x: x, reference, 24, distance="mmd")
    value = -mmd2(shifted(PLAN, range(24)).double(), reference, RbfKernel.of(reference))
    assert float(match(PLAN, range(24))) == pytest.approx(value)
    estimate, draws = match.resampled(PLAN, range(24), torch.ones(2, 24, dtype=torch.float64))
    assert estimate == pytest.approx(value)
    assert draws.tolist() == pytest.approx([value, value])
    assert float(match(BETTER, range(24))) > value


def test_the_mean_of_jaq_and_of_its_resamples():
    class Mean:
        name, differentiable = "mean", True

        def score(self, images, prompts):
            return images.mean((1, 2, 3))

    def generate(plan, prompts, seeds):
        return torch.stack([torch.full((3, 4, 4), float(seed % 7) / 7) for seed in seeds])

    jaq = JAQ(generate, Mean(), Mean(), ["a", "b", "c"], [1, 2])
    counts = torch.tensor([[1.0] * 6, [6.0, 0, 0, 0, 0, 0]], dtype=torch.float64)
    estimate, draws = jaq.resampled(PLAN, range(6), counts)
    scores = jaq(PLAN, range(6)).double()
    assert estimate == pytest.approx(float(scores.mean()))
    assert draws.tolist() == pytest.approx([float(scores.mean()), float(scores[0])])


def test_auto_is_a_set_of_pictures_and_named_rewards_mean_jaq():
    shipped, other = load("q-sched").resolved(), load("q-sched", OTHER[:1]).resolved()
    assert (shipped.search.objective, other.search.objective) == ("teacher", "full-precision")
    assert shipped.search.features == shipped.rewards.alignment
    assert shipped.search.features not in (shipped.evaluation.judge, *shipped.evaluation.features)
    assert load("q-sched", ["rewards.quality=contrast"]).resolved().search.objective == "jaq"
    assert load("q-sched", ["search.count=3"]).resolved().search.objective == "jaq"  # too few for a set
    assert load("q-sched", ["search.objective=jaq"]).resolved().search.objective == "jaq"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["search.objective=teacher", *OTHER], "needs a teacher"),
        (["search.objective=real", *OTHER], "real pictures"),
        (["search.objective=real", "search.count=3"], "at least 8 calibration items"),
        (["search.features=pixls"], "pixels"),
        (["search.objective=jaq", "search.budget=5"], "one scale costs"),
    ],
)
def test_an_objective_that_lacks_what_it_needs_is_refused(overrides, words):
    with pytest.raises(FewstepError, match=words):
        load("q-sched", overrides).check()
