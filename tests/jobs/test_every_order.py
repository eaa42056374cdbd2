"""Search, quantize, Q-Sched, distill and LoRA on each other's results: what comes out opens and draws, or the order is
refused before any work."""

import json

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.jobs import distill, q_sched, search
from fewstep.jobs import quantize as quantize_job
from fewstep.pipelines import PipelineSampler, attach, backbone_of, identity_of, load_pipeline, plan_of, save_pipeline
from fewstep.pipelines.scheduler import PlanScheduler
from fewstep.quant import QuantLayer, quantize
from fewstep.recipes.loader import load
from fewstep.runs import Run
from tests.pipelines import tiny_pipelines as tiny

CALL = tiny.CALLS["sd"]
SETTINGS = {
    "schedule": ["steps=2", "guidance=1", "teacher.steps=3", "search.items=2", "search.budget=2", "evaluation.items=2",
                 "evaluation.seeds=[7]", "evaluation.pictures=0", "evaluation.baselines=false"],
    "quantize": ["steps=2", "scheme=w4a8", "calibration.items=2", "evaluation.items=2", "evaluation.rounds=0"],
    "q-sched": ["steps=2", "rewards.alignment=colourfulness", "rewards.quality=sharpness", "evaluation.judge=none",
                "evaluation.features=[random]", "evaluation.prompts=[a, b, c, d, e, f, g, h, i, j]",
                "evaluation.seeds=[7]", "search.prompts=[a, b]", "search.seeds=[1]", "search.budget=6"],
    "distill": ["method=dmd", "teacher.steps=2", "train.steps=1", "train.batch=2", "data.count=2",
                "evaluation.items=20", "evaluation.reference=40", "evaluation.seeds=[7]", "evaluation.pictures=1"],
}  # fmt: skip
JOBS = {"schedule": search, "quantize": quantize_job, "q-sched": q_sched, "distill": distill}
SHORT = {("lora", "distill")}
LOW_BIT = ("quantize", "q-sched")
WEIGHTS = "pytorch_lora_weights.safetensors"


def with_adapter(pipe, folder, name="style"):
    from peft import LoraConfig

    torch.manual_seed(0)
    donor = tiny.unet()
    donor.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "style")
    donor.save_lora_adapter(folder / "adapter", adapter_name="style")
    pipe.unet.load_lora_adapter(folder / "adapter", None, adapter_name=name, weight_name=WEIGHTS)


def made(kind, folder):
    """The folder that a first step leaves: low bits, new weights or an adapter, and a plan of its own."""
    pipe = tiny.stable_diffusion(folder)
    plan = plan_of(pipe, 2, guidance_scale=1.0, **CALL)
    if kind in LOW_BIT:
        quantize(pipe.unet, "w4a8")
    if kind == "distill":
        with torch.no_grad():
            pipe.unet.conv_in.weight.mul_(1.1)
    if kind == "lora":
        with_adapter(pipe, folder)
    if kind == "q-sched":
        plan = plan.scaled([1.0, 1.1], [0.9, 1.0])
    if kind != "quantize":
        attach(pipe, plan.replace(identity=identity_of(pipe, 1.0)))
    save_pipeline(pipe, folder / "first")
    return folder / "first"


def follow(kind, first, folder):
    """The folder that a second step makes of it."""
    if kind == "lora":
        pipe = load_pipeline(first)
        with_adapter(pipe, folder, "another")
        save_pipeline(pipe, folder / "second")
        return folder / "second"
    recipe = load(kind, [f"model={first}", f"call={json.dumps(CALL)}", *SETTINGS[kind]])
    with Run(folder / "run", recipe.plain(), quiet=True) as directory:
        JOBS[kind].run(recipe, directory)
    return folder / "run" / "artifacts" / "pipeline"


def refused(first, second):
    """Low bits are made from full precision, once, and nothing trains on them."""
    return first in LOW_BIT and second in (*LOW_BIT, "distill", "lora")


def pairs():
    """All pairs; those in which no low bits and no adapter meet another step take long and are left to the long run."""
    for first in (*JOBS, "lora"):
        for second in (*JOBS, "lora"):
            short = refused(first, second) or second in ("quantize", "lora") or (first, second) in SHORT
            yield pytest.param(first, second, marks=[] if short else [pytest.mark.thorough])


@pytest.mark.parametrize(("first", "second"), pairs())
def test_every_order_opens_or_is_refused_at_once(first, second, tmp_path):
    place = made(first, tmp_path)
    if refused(first, second):
        peft = ValueError if second == "lora" else FewstepError  # diffusers' own method refuses the adapter
        with pytest.raises(peft, match=r"low-bit|quantized already|QuantLinear"):
            follow(second, place, tmp_path)
        units = tmp_path / "run" / "units"
        assert not units.exists() or not any("train" in u.name or "quantize" in u.name for u in units.iterdir())
        return
    pipe = load_pipeline(follow(second, place, tmp_path))
    low = any(isinstance(m, QuantLayer) for m in backbone_of(pipe).modules())
    assert low == (second in LOW_BIT or (first in LOW_BIT and second == "schedule"))
    steps = pipe.scheduler.plan.steps if isinstance(pipe.scheduler, PlanScheduler) else 2
    plan = plan_of(pipe, steps, guidance_scale=1.0, **CALL)
    with torch.no_grad():
        assert PipelineSampler(pipe, 1.0, dict(CALL))(plan, ["a"], [3]).isfinite().all()
        pipe(prompt="a", num_inference_steps=steps, guidance_scale=1.0, output_type="pt", **CALL)
