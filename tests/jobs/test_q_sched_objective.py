"""The objective of Q-Sched by name, and the test that decides whether the tuned plan is saved."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fewstep.data import load_emoji
from fewstep.data.prompts import load_prompts
from fewstep.errors import FewstepError
from fewstep.jobs.q_sched import judges, objective
from fewstep.jobs.q_sched.names import beside, plain
from fewstep.jobs.q_sched.objective import TuningObjective, verdict
from fewstep.metrics.distances import RbfKernel, mmd2
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.recipes.loader import load
from fewstep.runs import Run
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

    def of(sampler, items, pictures=None):
        # each prompt's own noise, as a network's would be
        seeds = [seed + 1000 * k for k, (_, seed) in enumerate(items)]
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


@pytest.mark.parametrize("pictures", ["emoji", "none"])
def test_the_test_sees_prompts_and_seeds_that_the_search_did_not(pictures):
    asked, compared = [], []

    def of(sampler, items, pictures=None):
        asked.extend(items)
        compared.append(pictures)
        return matching(1.0)(sampler, items)

    found = decided(of, count=16, pictures=pictures)
    recipe = load("q-sched").resolved()
    used = set(load_prompts(recipe.search.prompts, recipe.search.count))
    held_out = set(load_prompts(recipe.evaluation.prompts))
    assert not (used | held_out) & {prompt for prompt, _ in asked}
    assert not set(found["seeds"]) & set(recipe.search.seeds)
    assert found["unseen_prompts"]
    assert found["prompts"] == (240 if pictures == "emoji" else 44)
    if pictures == "emoji":
        data = load_emoji("train")
        place = data.captions.index(asked[100][0])
        assert bool((compared[0] == data.images[place]).flatten(1).all(1).any())
    else:
        assert compared == [None]


def test_pictures_that_the_search_or_the_evaluation_knows_are_not_asked(tmp_path):
    data = load_emoji("train")
    np.savez(tmp_path / "some.npz", images=data.images[:200].permute(0, 2, 3, 1).numpy(), captions=data.captions[:200])
    asked = []

    def of(sampler, items, pictures=None):
        asked.extend(prompt for prompt, _ in items)
        return matching(1.0)(sampler, items)

    decided(of, pictures=tmp_path / "some.npz", objective="real", prompts=list(data.captions[:16]))
    assert len(set(asked)) == len(asked)
    count = objective.REFERENCE
    searched = {data.captions[i] for i in range(0, 200, 200 // count)[:count]}  # what the search compares with
    assert not set(asked) & (searched | set(data.captions[:16]))


def test_a_list_without_prompts_to_spare_is_drawn_anew():
    found = decided(matching(1.0), count=60, pictures="none", held_out=32)
    assert not found["unseen_prompts"]
    assert found["prompts"] == 32


def test_the_gain_that_the_test_would_find_is_that_of_paired_prompts():
    class Gain:
        """1 + the prompt's own gain where the plan is the better one."""

        name, differentiable = "gain", False

        def score(self, images, prompts):
            own = torch.tensor(
                [torch.randn((), generator=torch.Generator().manual_seed(len(p) + ord(p[0]))) for p in prompts]
            )
            return 1 + own * images[:, 0, 0, 0]

    def generate(plan, prompts, seeds):
        return torch.full((len(seeds), 3, 2, 2), float(plan.rows[0].sample_scale) - 1)

    def of(sampler, items):
        objective = JAQ(generate, Gain(), Gain(), ["a"], [1], k=0.0)
        objective.items = list(items)
        return objective

    recipe = load("q-sched", ["search.objective=jaq"]).resolved()
    found = verdict(SimpleNamespace(recipe=recipe), TuningObjective("jaq", of, []), None, PLAN, BETTER)
    assert found["against"] == "reference of the search"
    kept, used = set(recipe.held_out()), set(recipe.searched())
    left = [prompt for prompt in load_prompts(recipe.search.prompts) if prompt not in used | kept]
    own = 0.1 * (Gain().score(torch.ones(len(left), 3, 1, 1), left) - 1)
    assert found["gain"]["mean"] == pytest.approx(float(own.mean()), rel=1e-4)
    assert found["detectable"] == pytest.approx(2.8 * float(own.std()) / len(left) ** 0.5, rel=0.1)
    assert len(found["seeds"]) == 4


def test_prompts_of_the_search_are_no_prompts_of_the_evaluation():
    prompts = [f"prompt {k}" for k in range(12)]
    told = [f"search.prompts={prompts}", "search.count=4", f"evaluation.prompts={prompts}"]
    recipe = load("q-sched", told).resolved()
    assert recipe.searched() == [f"prompt {k}" for k in (0, 3, 6, 9)]
    assert recipe.held_out() == [f"prompt {k}" for k in (1, 2, 4, 5, 7, 8, 10, 11)]
    with pytest.raises(FewstepError, match=r"search does not use \(found: 3\)"):
        load("q-sched", [*told[::2], "search.count=9"]).check()


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
    assert load("q-sched", [*OTHER, "search.pictures=folder"]).resolved().search.objective == "real"
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


def test_a_pipeline_beside_that_cannot_be_opened_is_named_before_the_work():
    recipe = load("demo", ["evaluation.beside=[no/such/folder]"]).resolved()
    with pytest.raises(FewstepError, match=r"evaluation\.beside cannot be opened") as raised:
        judges.check(recipe)
    assert "evaluation.beside=[]" in raised.value.hint


def test_the_pictures_of_a_pipeline_by_its_path_stay_within_the_run(tmp_path):
    with Run(tmp_path / "run", {}, quiet=True) as run:
        place = run.artifact(f"images/{plain(beside('../models/mine'))}-101.safetensors")
    assert place.parent == tmp_path / "run" / "artifacts" / "images"
    with pytest.raises(FewstepError, match="share their files"):
        load("demo", ["evaluation.beside=[a/b, a-b]"]).check()
    assert plain("quantized + Q-Sched") == "quantized-Q-Sched"
    assert plain("full precision, tuned") == "full-precision-tuned"
