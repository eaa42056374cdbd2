"""Every method takes steps on tiny pipelines of diffusers' own classes, and leaves finite weights that moved."""

import json

import pytest
import torch

from fewstep.distillation.method import options_of, presets
from fewstep.distillation.step_condition import StepConditioned
from fewstep.errors import FewstepError
from fewstep.jobs.distill import training
from fewstep.jobs.distill.context import DistillContext
from fewstep.jobs.distill.training import train
from fewstep.pipelines import backbone_of, save_pipeline
from fewstep.recipes.loader import load
from fewstep.runs import Run
from fewstep.train.distillation import stage_of
from tests.pipelines import tiny_pipelines as tiny

PICTURES = {"osediff"}
"""They start from a picture, which captioned data have none of; see tests/distillation/test_restoration_presets.py."""
METHODS = [name for name in presets() if not name.startswith("test-") and name not in PICTURES]
ONE_STEP_ONLY = {name for name in METHODS if "steps" not in options_of(name)}
SHORT = {"progressive": {"start": 2, "every": 2}, "slim_flow": {"reflow_steps": 1, "distil_steps": 1}}
"""Stages that fit in two updates."""
FEW = {"drifting": ["data.count=2"]}
"""Its samples look at others of their condition, which must be there."""
QUICK = ["teacher.steps=4", "teacher.solver=ddim", "train.steps=2", "train.batch=4", "data.count=6", "batch=500"]


DIFFUSION, FLOW = ("dit", "sdxl", "pixart", "sd"), ("sd3", "wan")
"""They share the methods out; `make test-thorough` tries every method on each of them."""


def opened(recipe, run):
    context = DistillContext.open(recipe, run)
    context.check()
    return context


def pairs():
    """Every method and family, with the mark that it runs under."""
    for i, name in enumerate(METHODS):
        turn = DIFFUSION[i % len(DIFFUSION)] if i % 3 else FLOW[i % len(FLOW)]
        for kind in (*DIFFUSION, *FLOW):
            yield pytest.param(name, kind, marks=() if kind == turn else pytest.mark.thorough)


@pytest.fixture(scope="module")
def models(once):
    def model(kind):
        return lambda place: save_pipeline(tiny.MAKERS[kind](place), place / "model")

    return {kind: once(f"presets-{kind}", model(kind)) / "model" for kind in (*DIFFUSION, *FLOW)}


@pytest.mark.parametrize(("name", "kind"), pairs())
def test_every_method_takes_steps_on_real_networks(name, kind, models, tmp_path):
    guidance = 2.0 if "guidance" in options_of(name) else 1.0
    call = json.dumps(tiny.CALLS.get(kind, {}))
    steps = 1 if name in ONE_STEP_ONLY else 2
    settings = [f"model={models[kind]}", f"method={name}", f"call={call}", f"guidance={guidance}", f"steps={steps}"]
    settings.append(f"options={json.dumps(SHORT.get(name, {}))}")
    recipe = load("distill", [*QUICK, *settings, *FEW.get(name, [])])
    with Run(tmp_path / "run", recipe.plain(), quiet=True) as run:
        context = opened(recipe, run)
        before = {k: v.clone() for k, v in backbone_of(context.pipe).state_dict().items()}
        trained = train(context)[0]
        after = backbone_of(context.pipe).state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before), "the teacher changed"
        assert all(bool(v.isfinite().all()) for v in trained["tensors"].values())
        own = {k.removeprefix("inner."): v for k, v in trained["tensors"].items()}
        assert any(not torch.equal(own[k], before[k].float()) for k in before if k in own), "the student did not move"
        numbers = trained["record"]["history"][-1]
        assert all(abs(v) < float("inf") for v in numbers.values())
        assert context.student_plan.steps == len(context.method.steps)


def test_a_training_shorter_than_the_stages_is_refused(models, tmp_path):
    """Stages are laid over any training that has an update for each: four from 8 steps to 1."""
    recipe = load("distill", [*QUICK, f"model={models['dit']}", "method=progressive", "steps=1"])
    with (
        Run(tmp_path / "run", recipe.plain(), quiet=True) as run,
        pytest.raises(FewstepError, match="stages take 4 updates"),
    ):
        train(opened(recipe, run))


@pytest.mark.parametrize(
    ("kind", "name", "more"),
    [
        ("dit", "dmd2", []),
        ("sdxl", "sid_few_step", []),
        ("sd3", "decoupled_dmd", ["train.lora=2"]),
        ("dit", "decoupled_dmd", ["train.gradient_checkpointing=true"]),
    ],
)
def test_a_critic_of_a_real_network_is_told_the_call(kind, name, more, models, tmp_path):
    """It learns what it is told, and nothing stays on the teacher's network."""
    call = json.dumps(tiny.CALLS.get(kind, {}))
    settings = [f"model={models[kind]}", f"method={name}", f"call={call}", "guidance=1.0", "steps=2"]
    recipe = load("distill", [*QUICK, *settings, "options.step_condition=true", "train.learning_rate=0.001", *more])
    seen = []
    with Run(tmp_path / "run", recipe.plain(), quiet=True) as run, pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "stage_of", lambda engine, *args: seen.append(engine) or stage_of(engine, *args))
        context = opened(recipe, run)
        train(context)
        assert not any(m._forward_hooks for m in backbone_of(context.pipe).modules())
    critic = seen[0].modules["critic"]
    assert isinstance(critic, StepConditioned)
    assert all(bool(vector.weight.any()) for vector in critic.vectors)


def test_a_told_critic_that_shares_recomputed_blocks_is_refused(models, tmp_path):
    given = ["method=dmd2", "steps=2", "guidance=1.0", "options.step_condition=true", "options.adversarial=0"]
    given += ["train.lora=2", "train.gradient_checkpointing=true", f"model={models['dit']}"]
    recipe = load("distill", [*QUICK, *given])
    with (
        Run(tmp_path / "run", recipe.plain(), quiet=True) as run,
        pytest.raises(FewstepError, match="recompute"),
    ):
        train(opened(recipe, run))
