"""`fewstep search` end to end on tiny random-weight pipelines of every kind of condition."""

import json

import pytest
import torch
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.errors import FewstepError
from fewstep.files import read_json
from fewstep.jobs.search import baselines, run
from fewstep.jobs.search.baselines import diffusers_plans
from fewstep.pipelines import PipelineSampler, load_pipeline, save_pipeline
from fewstep.plan import Plan
from fewstep.recipes.loader import load
from fewstep.runs import Run
from tests.pipelines import tiny_pipelines as tiny

SMALL = [
    "steps=3", "teacher.steps=8", "search.items=4", "search.budget=16", "evaluation.items=4", "evaluation.seeds=[7, 8]",
    "evaluation.pictures=2", "evaluation.baselines=false",
]  # fmt: skip


def settings(kind, folder, *more):
    save_pipeline(tiny.MAKERS[kind](folder), folder / "model")
    call = json.dumps(tiny.CALLS.get(kind, {}))
    return [f"model={folder / 'model'}", f"call={call}", *SMALL, *more]


def execute(folder, overrides):
    recipe = load("schedule", overrides)
    with Run(folder, recipe.plain(), quiet=True) as directory:
        return run(recipe, directory)


@pytest.mark.parametrize(
    ("kind", "method"), [("sd", "joint"), ("dit", "s3"), ("ddim", "ld3"), ("flux", "gits"), ("sd3", "autodiffusion")]
)
def test_a_search_leaves_a_pipeline_that_follows_its_plan(kind, method, tmp_path):
    report = execute(tmp_path / "run", settings(kind, tmp_path, f"search.method={method}", "guidance=1.0"))
    assert report.read_text().count("<section") >= 5
    results = read_json(tmp_path / "run" / "results.json")
    assert results["search"]["network_calls"] > 0
    found = results["evaluation"]["systems"]["searched"]
    assert len(found["seeds"]) == 2
    assert 0 < found["mean"] < 10
    plan = Plan.load(tmp_path / "run" / "artifacts" / "plan.json")
    again = load_pipeline(tmp_path / "run" / "artifacts" / "pipeline")
    assert again.scheduler.plan == plan
    model = load_pipeline(tmp_path / "model")
    call = tiny.CALLS.get(kind, {})
    kinds = tiny.conditions(kind, 2)
    images = [PipelineSampler(pipe, 1.0, call)(plan, kinds, [0, 1]) for pipe in (model, again)]
    assert torch.equal(*images)


def test_the_same_command_repeats_nothing(tmp_path):
    overrides = settings("ddim", tmp_path, "search.method=gits", "guidance=1.0")
    execute(tmp_path / "run", overrides)
    times = {f: f.stat().st_mtime_ns for f in (tmp_path / "run" / "units").iterdir()}
    execute(tmp_path / "run", overrides)
    assert times == {f: f.stat().st_mtime_ns for f in (tmp_path / "run" / "units").iterdir()}


def test_q_sched_and_the_baselines_join_the_table(tmp_path, monkeypatch):
    every = baselines._DISCRETE  # all of them are read below
    monkeypatch.setattr(baselines, "_DISCRETE", {name: every[name] for name in ("DDIM", "UniPC")})
    more = ["search.method=gits", "search.q_sched=12", "evaluation.baselines=true", "guidance=1.0"]
    overrides = settings("sd", tmp_path, *more)
    execute(tmp_path / "run", overrides)
    results = read_json(tmp_path / "run" / "results.json")
    systems = results["evaluation"]["systems"]
    assert {"searched", "searched + Q-Sched", "the pipeline's own", "DDIM", "UniPC"} <= set(systems)
    best = results["evaluation"]["best_baseline"]
    assert set(results["evaluation"]["differences"]) == {f"searched - {best}", f"searched + Q-Sched - {best}"}
    assert results["search"]["q_sched"]["value"] >= results["search"]["value"] - 1e-6
    execute(tmp_path / "run", overrides)  # a finished run is read, its tuned plan is not in the way
    assert read_json(tmp_path / "run" / "results.json")["evaluation"] == results["evaluation"]


def test_a_distribution_is_searched_by_evolution(tmp_path):
    more = ["search.method=random", "search.objective=distribution", "search.items=8", "guidance=1.0"]
    execute(tmp_path / "run", settings("ddim", tmp_path, *more))
    assert read_json(tmp_path / "run" / "results.json")["search"]["value"] < 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("search.method=gid", "gits"),
        ("search.solver=heun", "must be one of"),
        ("teacher.steps=3", "must exceed"),
        ("teacher.solver=lcm", "must be one of"),
        ("search.budget=0", "greater than or equal to 1"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(FewstepError, match=message):
        load("schedule", [*SMALL, change])


def test_the_command_line_makes_the_recipe():
    shown = CliRunner().invoke(app, ["search", "some-model", "--steps", "7", "--method", "ld3", "--dry-run"])
    assert shown.exit_code == 0
    assert "method: ld3" in shown.output
    assert "steps: 7" in shown.output


@pytest.mark.parametrize("steps", [3, 4])
def test_baselines_make_exactly_the_evaluations_asked_for(steps):
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    for scheduler in (DDIMScheduler(), FlowMatchEulerDiscreteScheduler()):
        plans = diffusers_plans(scheduler, steps)
        assert len(plans) >= 4
        assert {plan.steps for plan in plans.values()} == {steps}
        assert not any(plan.stochastic for plan in plans.values())
