"""Every method takes steps on tiny pipelines of diffusers' own classes, and leaves finite weights that moved."""

import json

import pytest
import torch

from fewstep.distill.method import options_of, presets
from fewstep.errors import FewstepError
from fewstep.pipelines import backbone_of, save_pipeline
from fewstep.recipes.loader import load
from fewstep.runs import Run
from fewstep.systems.distill.job import Job
from tests.pipelines import tiny_pipelines as tiny

METHODS = [name for name in presets() if not name.startswith("test-")]
ONE_STEP_ONLY = {name for name in METHODS if "steps" not in options_of(name)}
SHORT = {"progressive": {"start": 2, "every": 2}, "slim_flow": {"reflow_steps": 1, "distil_steps": 1}}
"""Stages that fit in two updates."""
QUICK = ["teacher.steps=4", "teacher.solver=ddim", "train.steps=2", "train.batch=4", "data.count=6", "batch=8"]


EVERYWHERE, IN_TURN = ("dit", "sd3"), ("sdxl", "pixart", "wan", "sd")
"""Families that every method is tried on, and those that share the methods out; `make test-thorough` has them all."""


def pairs():
    """Every method and family, with the mark that it runs under."""
    for i, name in enumerate(METHODS):
        for kind in (*EVERYWHERE, *IN_TURN):
            now = kind in EVERYWHERE or kind == IN_TURN[i % len(IN_TURN)]
            yield pytest.param(name, kind, marks=() if now else pytest.mark.thorough)


@pytest.fixture(scope="module")
def models(once):
    def model(kind):
        return lambda place: save_pipeline(tiny.MAKERS[kind](place), place / "model")

    return {kind: once(f"presets-{kind}", model(kind)) / "model" for kind in (*EVERYWHERE, *IN_TURN)}


@pytest.mark.parametrize(("name", "kind"), pairs())
def test_every_method_takes_steps_on_real_networks(name, kind, models, tmp_path):
    guidance = 2.0 if "guidance" in options_of(name) else 1.0
    call = json.dumps(tiny.CALLS.get(kind, {}))
    steps = 1 if name in ONE_STEP_ONLY else 2
    settings = [f"model={models[kind]}", f"method={name}", f"call={call}", f"guidance={guidance}", f"steps={steps}"]
    settings.append(f"options={json.dumps(SHORT.get(name, {}))}")
    recipe = load("distill", [*QUICK, *settings])
    with Run(tmp_path / "run", recipe.plain(), quiet=True) as run:
        job = Job(recipe, run)
        before = {k: v.clone() for k, v in backbone_of(job.pipe).state_dict().items()}
        trained = job.train()[0]
        after = backbone_of(job.pipe).state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before), "the teacher changed"
        assert all(bool(v.isfinite().all()) for v in trained["tensors"].values())
        own = {k.removeprefix("inner."): v for k, v in trained["tensors"].items()}
        assert any(not torch.equal(own[k], before[k].float()) for k in before if k in own), "the student did not move"
        numbers = trained["record"]["history"][-1]
        assert all(abs(v) < float("inf") for v in numbers.values())
        assert job.plan.steps == len(job.method.steps)


def test_a_training_shorter_than_the_stages_is_refused(models, tmp_path):
    recipe = load("distill", [*QUICK, f"model={models['dit']}", "method=progressive", "steps=1"])
    with (
        Run(tmp_path / "run", recipe.plain(), quiet=True) as run,
        pytest.raises(FewstepError, match="stages take 20000 updates"),
    ):
        Job(recipe, run).train()
