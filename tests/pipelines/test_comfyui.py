"""ComfyUI's sigmas and samplers: those of diffusers' own schedulers, and never a name that is not the plan."""

import json
import re
from itertools import pairwise

import diffusers
import pytest
import torch
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.errors import PlanError
from fewstep.files import read_json
from fewstep.pipelines.comfyui import comfyui_nodes, other_times, sampler_of, sigmas_of
from fewstep.pipelines.probing import plan_of_scheduler
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow, VPDiscrete
from fewstep.solvers import SOLVERS, grids

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD = VPDiscrete.from_betas("scaled_linear", beta_start=0.00085, beta_end=0.012)
LEVELS = {
    "EulerDiscreteScheduler": (BETAS, "euler"),
    "EulerAncestralDiscreteScheduler": (BETAS, "euler_ancestral"),
    "HeunDiscreteScheduler": (BETAS, "heun"),
    "DPMSolverMultistepScheduler": ({**BETAS, "final_sigmas_type": "zero"}, "dpmpp_2m"),
    "FlowMatchEulerDiscreteScheduler": ({"shift": 3.0}, "euler"),
    "FlowMatchHeunDiscreteScheduler": ({}, "heun"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(LEVELS))
def test_sigmas_are_those_that_diffusers_holds(name):
    settings, sampler = LEVELS[name]
    scheduler = getattr(diffusers, name)(**settings)
    plan = plan_of_scheduler(scheduler, 5)
    scheduler.set_timesteps(5)
    theirs = scheduler.sigmas.double().unique().flip(0)
    assert sigmas_of(plan) == pytest.approx(theirs.tolist(), rel=1e-4, abs=1e-6)
    assert sampler_of(plan) == sampler
    assert not other_times(plan)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "steps", "sampler"), [
    ("LCMScheduler", 4, "lcm"), ("DDIMScheduler", 4, "euler"), ("UniPCMultistepScheduler", 5, None),
    ("LMSDiscreteScheduler", 5, None),
])  # fmt: skip
def test_other_schedulers_have_the_sampler_that_does_the_same(name, steps, sampler):
    more = {} if name in ("UniPCMultistepScheduler", "LMSDiscreteScheduler") else {"clip_sample": False}
    more |= {"timestep_spacing": "trailing"} if name == "DDIMScheduler" else {}
    plan = plan_of_scheduler(getattr(diffusers, name)(**BETAS, **more), steps)
    assert sampler_of(plan) == sampler
    assert ("sampler" in comfyui_nodes(plan)) == (sampler is not None)


def test_a_step_that_lands_beside_its_level_is_no_sampler():
    # six does not divide 1000: diffusers' DDIM evaluates at 832 what it has stepped to 833
    ddim = diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing")
    assert sampler_of(plan_of_scheduler(ddim, 6)) is None


def test_scalars_of_q_sched_are_no_sampler_and_one_of_them_is_enough():
    plan = SOLVERS["ddim"](SD, Prediction("epsilon"), grids.trailing(SD, 4))
    assert sampler_of(plan) == "euler"
    tuned = plan.scaled([1.0, 1.0, 1.01, 1.0], [1.0] * 4)
    assert sampler_of(tuned) is None
    assert set(comfyui_nodes(tuned)) == {"sigmas"}


def test_the_sampler_run_on_a_network_gives_what_the_plan_gives():
    # k-diffusion's Euler, written out, in its own coordinates
    torch.manual_seed(0)
    weight = torch.randn(6, 6, dtype=torch.float64) / 4
    plan = SOLVERS["ddim"](SD, Prediction("epsilon"), grids.trailing(SD, 5))
    from fewstep.executor import sample

    start = torch.randn(1, 6, dtype=torch.float64)
    ours = sample(plan, lambda x, t: x @ weight, seeds=[0], shape=(6,), state=start, dtype=torch.float64)
    sigmas = sigmas_of(plan)
    x = start * (1 + sigmas[0] ** 2) ** 0.5
    for sigma, to in pairwise(sigmas):
        epsilon = (x / (1 + sigma**2) ** 0.5) @ weight
        denoised = x - sigma * epsilon
        x = x + (x - denoised) / sigma * (to - sigma)
    assert torch.allclose(x / (1 + sigmas[-1] ** 2) ** 0.5, ours, rtol=1e-6)


def test_what_sigmas_cannot_tell_is_refused():
    flow = RectifiedFlow()
    plan = SOLVERS["ddim"](flow, Prediction("velocity"), grids.uniform(flow, 3))
    rows = list(plan.rows)

    def changed(**change):
        from dataclasses import replace

        return plan.replace(rows=(rows[0], replace(rows[1], **change), rows[2]))

    for change, word in (
        ({"guidance": 3.0}, "guidance"), ({"hook": "clip_sample:1.0"}, "treatment"), ({"network": "small"}, "network"),
        ({"anchor": 0.5}, "anchor"), ({"network_time": 900.0}, "times"), ({"sigma": 0.99, "alpha": 0.01}, None),
        ({"output": {1: torch.full((4, 1, 1), -0.3)}}, "per channel"),
    ):  # fmt: skip
        if word is None:
            assert sampler_of(changed(**change, network_time=990.0)) is None
            continue
        with pytest.raises(PlanError, match=word):
            sigmas_of(changed(**change))
    with pytest.raises(PlanError, match="other noise"):
        sigmas_of(plan.replace(prior_scale=1.2))
    with pytest.raises(PlanError, match="fall to zero"):
        sigmas_of(plan.replace(final_alpha=0.9, final_sigma=0.1))


def test_times_of_another_noise_schedule_are_told():
    linear = VPDiscrete.from_betas("linear")
    plan = SOLVERS["ddim"](linear, Prediction("epsilon"), grids.trailing(linear, 4))
    assert other_times(plan)


def test_the_command_writes_nodes_without_exponents(tmp_path):
    place = tmp_path / "scheduler"
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(place)
    out = tmp_path / "nodes.json"
    done = CliRunner().invoke(app, ["plan", "comfyui", str(place), str(out), "--steps", "4"])
    assert done.exit_code == 0, done.output
    nodes = read_json(out)
    assert nodes["sampler"]["inputs"] == {"sampler_name": "euler"}
    # how ComfyUI's node finds the numbers
    read = [float(n) for n in re.findall(r"[-+]?(?:\d*\.*\d+)", nodes["sigmas"]["inputs"]["sigmas"])]
    assert (len(read), read[0], read[-1]) == (5, 1.0, 0.0)
    assert json.dumps(nodes)
    again = CliRunner().invoke(app, ["plan", "comfyui", str(place), str(out), "--steps", "4"])
    assert again.exit_code == 2
