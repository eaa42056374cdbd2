"""`fewstep auto`: the front is that of the definition, budgets are met or refused with the nearest that can be."""

import dataclasses
import itertools
import random

import pytest
import torch

import fewstep as fs
from fewstep import recipes
from fewstep.errors import FewstepError, RecipeError
from fewstep.files import read_json
from fewstep.jobs.auto.context import timing_spread
from fewstep.jobs.auto.points import Point, front, knee, meeting
from fewstep.jobs.auto.recipe import parse_time
from fewstep.pipelines.scheduler import PlanScheduler
from fewstep.plan import Plan
from fewstep.quant import QuantLayer
from tests.pipelines import tiny_pipelines

PROMPTS = ["a b", "c d e", "f", "g h"]
SMALL = {
    "space.steps": [1, 2], "space.solvers": ["own", "ddim"], "space.schemes": ["none", "w8a8", "w4a8"],
    "space.q_sched": 6, "search.reference_steps": 6, "search.rounds": 3, "evaluation.items": 4,
    "evaluation.pictures": 2, "evaluation.conditions": ["i j", "k", "l m", "n"],
}  # fmt: skip


def point(size, time, distance):
    return Point("p", 1, "none", "none", size, time, distance)


def test_the_front_holds_what_nothing_beats_and_all_of_it():
    numbers = random.Random(0)
    for _ in range(50):
        points = [point(*(numbers.randrange(4) for _ in range(3))) for _ in range(12)]
        kept = front(points)
        for one in points:
            beaten = any(
                all(a <= b for a, b in zip(o.costs(), one.costs(), strict=True)) and o.costs() != one.costs()
                for o in points
            )
            assert beaten != any(one.costs() == k.costs() for k in kept)
        assert len({k.costs() for k in kept}) == len(kept)
        assert [k.distance for k in kept] == sorted(k.distance for k in kept)


def test_the_knee_is_where_one_would_see_it():
    curve = [point(0, x, 1 / x) for x in (0.1, 0.2, 0.5, 1, 2, 5, 10)]
    assert knee(curve).milliseconds == 1
    assert knee([point(5, 5, 5)]) == point(5, 5, 5)


def test_budgets_that_nothing_meets_are_answered_with_the_nearest():
    points = [point(1e6, 100, 1), point(4e6, 10, 1), point(2e6, 30, 0)]
    assert meeting(points, 3e6, 50) == [points[2]]
    with pytest.raises(FewstepError, match=r"smallest needs 1MB .* fastest 10ms .* nearest to both .* 2MB and 30ms"):
        meeting(points, 1.5e6, 20)


def test_times_and_sizes_are_read_or_refused_by_name():
    assert [parse_time(t) for t in ("200ms", "1.5 s", "80")] == [200, 1500, 80]
    with pytest.raises(RecipeError, match="latency"):
        recipes.resolve({"kind": "auto", "model": "m", "latency": "fast"})
    with pytest.raises(RecipeError, match="memory"):
        recipes.resolve({"kind": "auto", "model": "m", "memory": "little"})
    with pytest.raises(RecipeError, match=r"space\.schemes"):
        recipes.resolve({"kind": "auto", "model": "m", "space": {"schemes": ["w99"]}})
    assert timing_spread([1.0, 1.0, 1.0, 1.0]) == 0
    assert timing_spread([1.0, 2.0, 3.0, 4.0]) > 0.5


def test_a_pipeline_is_chosen_for_saved_and_goes_on(tmp_path):
    pipe = tiny_pipelines.stable_diffusion(tmp_path / "tokens")
    pipe.set_progress_bar_config(disable=True)
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    ask = lambda **more: fs.auto(pipe, prompts=PROMPTS, steps=2, items=4, out=tmp_path / "run", progress=False,  # noqa: E731
                                 settings=SMALL, **more)  # fmt: skip
    best = ask()
    assert all(torch.equal(v, before[k]) for k, v in pipe.unet.state_dict().items())
    assert not isinstance(pipe.scheduler, PlanScheduler)
    assert isinstance(best.scheduler, PlanScheduler)
    results = read_json(tmp_path / "run" / "results.json")
    points = [Point(**values) for values in results["front"]]
    for a, b in itertools.permutations(points, 2):
        assert not a.beats(b)
    chosen = points[results["chosen"]]
    assert any(isinstance(m, QuantLayer) for m in best.unet.modules()) == (chosen.scheme != "none")
    for k, known in enumerate(points):
        assert Plan.load(tmp_path / "run" / "artifacts" / "front" / f"{k}.json").steps == known.steps
    # a full-precision point with the reference's own steps would have distance 0: fewer steps have more
    assert all(0 <= p.distance < 10 for p in points)
    opened = fs.load(tmp_path / "run")
    same = [fs.generate(p, PROMPTS[0], seeds=[3]) for p in (opened, best)]
    torch.testing.assert_close(*same, atol=1e-5, rtol=0)
    assert fs.generate(ask(), PROMPTS[0], seeds=[3]).equal(same[1])  # every unit is kept
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Why this point" in report
    with pytest.raises(FewstepError, match="nothing meets the budgets"):
        fs.auto(pipe, prompts=PROMPTS, steps=2, items=4, memory="1kB", progress=False, settings=SMALL)


def test_memory_alone_leaves_time_to_choose():
    from fewstep.jobs.auto.job import _chosen

    points = [point(1, 100, 0.1), point(9, 10, 0.15), point(1, 1, 1.0)]
    recipe = recipes.resolve({"kind": "auto", "model": "m", "memory": "1GB"})
    assert _chosen(recipe, points) == points[1]  # 9 bytes cost nothing within a gigabyte
    both = dataclasses.replace(points[0], distance=0.05)
    recipe = recipes.resolve({"kind": "auto", "model": "m", "memory": "1GB", "latency": "1s"})
    assert _chosen(recipe, [both, *points[1:]]) == both
