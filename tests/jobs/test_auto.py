"""`fewstep auto`: the front is that of the definition, budgets are met or refused with the nearest that can be."""

import dataclasses
import itertools
import random

import pytest
import torch

import fewstep as fs
from fewstep import recipes
from fewstep.errors import FewstepError
from fewstep.files import read_json
from fewstep.jobs.auto import job
from fewstep.jobs.auto.context import GUIDED, AutoContext, guided, timing_spread
from fewstep.jobs.auto.points import Point, front, knee, meeting
from fewstep.jobs.auto.recipe import parse_time
from fewstep.pipelines.scheduler import PlanScheduler
from fewstep.plan import Plan
from fewstep.quant import QuantLayer
from fewstep.quant.steps import PerStepLayer
from fewstep.runs import Run
from tests.pipelines import tiny_pipelines

PROMPTS = ["a b", "c d e", "f", "g h"]
SMALL = {
    "space.steps": [1, 2], "space.solvers": ["ddim"], "space.parts": ["none"], "space.searched_times": False,
    "space.schemes": ["none", "w4a8row", "w4a8row int8", "mixed 5"], "space.layer_seconds": 0,
    "space.q_sched": 6, "search.reference_steps": 6, "search.rounds": 3, "evaluation.items": 4,
    "evaluation.pictures": 2, "evaluation.conditions": ["i j", "k", "l m", "n"],
}  # fmt: skip

BARE = {"space.schemes": ["none"], "space.steps": [1]}


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
    with pytest.raises(FewstepError, match="latency"):
        recipes.resolve({"kind": "auto", "model": "m", "latency": "fast"})
    with pytest.raises(FewstepError, match="memory"):
        recipes.resolve({"kind": "auto", "model": "m", "memory": "little"})
    with pytest.raises(FewstepError, match=r"space\.schemes"):
        recipes.resolve({"kind": "auto", "model": "m", "space": {"schemes": ["w99"]}})
    with pytest.raises(FewstepError, match=r"no int8 product .* w4a8row int8"):
        recipes.resolve({"kind": "auto", "model": "m", "space": {"schemes": ["w4a8 int8"]}})
    with pytest.raises(FewstepError, match=r"mixed 4\.5"):
        recipes.resolve({"kind": "auto", "model": "m", "space": {"schemes": ["mixed few"]}})
    with pytest.raises(FewstepError, match=r"space\.parts"):
        recipes.resolve({"kind": "auto", "model": "m", "space": {"parts": ["mixed 4.5"]}})
    assert timing_spread([1.0, 1.0, 1.0, 1.0]) == 0
    assert timing_spread([1.0, 2.0, 3.0, 4.0]) > 0.5


def test_a_pipeline_is_chosen_for_saved_and_goes_on(tmp_path, monkeypatch):
    pipe = tiny_pipelines.one_block_diffusion(tmp_path / "tokens")
    pipe.set_progress_bar_config(disable=True)
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    told = {"prompts": PROMPTS, "steps": 2, "items": 4, "guidance": 3.0, "out": tmp_path / "run", "settings": SMALL}

    def ask():
        return fs.auto(pipe, progress=False, **told)

    best = ask()
    assert all(torch.equal(v, before[k]) for k, v in pipe.unet.state_dict().items())
    assert not isinstance(pipe.scheduler, PlanScheduler)
    assert isinstance(best.scheduler, PlanScheduler)
    results = read_json(tmp_path / "run" / "results.json")
    costs = results["costs"]
    assert costs["call"].keys() == {"none", "w4a8row", "w4a8row int8"}, "layers are not measured in no time"
    assert costs["size"]["w4a8row"] <= costs["size"]["w4a8row int8"] < 0  # layers that are too small keep nothing
    assert {name.partition(GUIDED)[2] for name in results["plans"]} == {"", "falling", "rising"}
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
        fs.auto(pipe, prompts=PROMPTS, steps=2, items=4, memory="1kB", progress=False, settings=SMALL | BARE)
    monkeypatch.setattr(job, "timing_spread", lambda milliseconds: 0.87)
    with pytest.raises(FewstepError, match=r"timings spread by 87%.*latency out"):
        fs.auto(pipe, prompts=PROMPTS, steps=2, items=4, latency="1s", progress=False, settings=SMALL | BARE)


def test_a_scheme_for_every_layer_is_one_of_the_choices(tmp_path):
    recipe = recipes.resolve({"kind": "auto", "model": "m", "search": {"items": 4}})
    with Run(tmp_path / "run", recipe.plain(), quiet=True) as run:
        context = AutoContext.open(recipe, run, pipe=tiny_pipelines.quiet(tiny_pipelines.dit(tmp_path)))
        assert context.seconds_per_layer() > 0
        found = context.low("mixed 5", "none")["transformer"]
    layers = [m for m in found.modules() if isinstance(m, QuantLayer) and m.kind != "Embedding"]
    assert 4 < sum(8 * m.weight_bytes() for m in layers) / sum(m.weight_shape.numel() for m in layers) <= 5
    assert len({str(module.scheme) for module in layers}) > 1


def test_memory_alone_leaves_time_to_choose():
    from fewstep.jobs.auto.job import _chosen

    points = [point(1, 100, 0.1), point(9, 10, 0.15), point(1, 1, 1.0)]
    recipe = recipes.resolve({"kind": "auto", "model": "m", "memory": "1GB"})
    assert _chosen(recipe, points) == points[1]  # 9 bytes cost nothing within a gigabyte
    both = dataclasses.replace(points[0], distance=0.05)
    recipe = recipes.resolve({"kind": "auto", "model": "m", "memory": "1GB", "latency": "1s"})
    assert _chosen(recipe, [both, *points[1:]]) == both


def test_guidance_that_changes_keeps_its_mean_and_its_length():
    from fewstep.prediction import Prediction
    from fewstep.process import VPDiscrete
    from fewstep.solvers import SOLVERS, grids

    process = VPDiscrete.from_betas()
    plan = SOLVERS["ddim"](process, Prediction(), grids.uniform(process, 5))
    falling, rising = (guided(plan, 3.0, law) for law in ("falling", "rising"))
    scales = [row.guidance for row in falling.rows]
    assert scales == pytest.approx([4.0, 3.5, 3.0, 2.5, 2.0])
    assert [row.guidance for row in rising.rows] == pytest.approx(scales[::-1])
    assert [row.output for row in falling.rows] == [row.output for row in plan.rows]


@pytest.mark.parametrize("high", [-0.5, 0.5])
def test_bits_per_step_are_kept_where_they_are_nearer(tmp_path, monkeypatch, high):
    from fewstep.jobs.auto import refine
    from fewstep.jobs.quantize import per_step

    numbers = iter([*range(6), 1.0, 0.5, 0.2])  # two rows on three rungs, one scheme, the choice, more bits
    monkeypatch.setattr(per_step, "choose", lambda *given: ["more", "fewer"])
    monkeypatch.setattr(per_step, "_error", lambda found, truth: next(numbers))
    monkeypatch.setattr(refine, "_gain", lambda *given: {"mean": -1.0, "low": -2.0, "high": high})
    space = {"steps": [2], "solvers": ["ddim"], "searched_times": False, "q_sched": 0}
    told = {"kind": "auto", "model": "m", "space": space, "search": {"items": 4, "conditions": PROMPTS}}
    recipe = recipes.resolve(told)
    with Run(tmp_path / "run", recipe.plain(), quiet=True) as run:
        context = AutoContext.open(recipe, run, pipe=tiny_pipelines.one_block_diffusion(tmp_path / "tokens"))
        models, plan, added = refine.refined(context, Point("ddim 2", 2, "w4a8", "none", 0, 0))
        plain = context.low("w4a8", "none")
        sizes = [context.size(one) for one in (plain, models)]
        pictures = context.searched.draw(context.sampler(**models), plan)
    stepped = [module for module in models["unet"].modules() if isinstance(module, PerStepLayer)]
    if high > 0:
        assert models["unet"] is plain["unet"]
        assert not added["bits"]["kept"]
        assert "no nearer" in added["bits"]["reason"]
        return
    assert added["bits"]["kept"]
    assert [row.network for row in plan.rows] == ["bits:1", "bits:0"]
    assert {tuple(str(option.scheme) for option in module.options) for module in stepped} == {("w4a4", "w4a16")}
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)
    assert pictures.isfinite().all()
