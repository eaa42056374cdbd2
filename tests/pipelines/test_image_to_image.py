"""Image-to-image and inpainting: a plan starts where the pipeline's own scheduler would have started."""

import inspect

import diffusers
import pytest
import torch

from fewstep.pipelines import PipelineSampler, attach, plan_of, process_of, save_pipeline
from fewstep.pipelines.load import load_pipeline
from fewstep.solvers import ddim, dpm_solver_pp_2m, grids
from tests.pipelines import tiny_pipelines as tiny

CASES = {
    "StableDiffusionImg2ImgPipeline": "sd",
    "StableDiffusionInpaintPipeline": "sd",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
    "StableDiffusionXLInpaintPipeline": "sdxl",
    "StableDiffusion3Img2ImgPipeline": "sd3",
    "StableDiffusion3InpaintPipeline": "sd3",
    "FluxImg2ImgPipeline": "flux",
    "FluxInpaintPipeline": "flux",
    "ZImageImg2ImgPipeline": "z-image",
    "ZImageInpaintPipeline": "z-image",
}
"""Pipeline class -> the family whose tiny parts it is made of."""


@pytest.fixture(params=list(CASES))
def case(request, tmp_path):
    return opened(request.param, tmp_path)


def opened(title, folder):
    """The pipeline and the arguments of its call: half of the steps, from a fixed picture."""
    name = CASES[title]
    made = getattr(diffusers, title)
    parts = tiny.MAKERS[name](folder).components
    wanted = inspect.signature(made.__init__).parameters
    options = {"requires_safety_checker": False} if "requires_safety_checker" in wanted else {}
    pipe = made(**{k: v for k, v in parts.items() if k in wanted}, **options)
    call = {k: v for k, v in tiny.CALLS[name].items() if k in inspect.signature(made.__call__).parameters}
    call["image"] = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(8))
    if "mask_image" in inspect.signature(made.__call__).parameters:
        call["mask_image"] = torch.zeros(1, 1, 16, 16)
        call["mask_image"][..., :8] = 1
    return tiny.quiet(pipe), {**call, "strength": 0.5}


def draw(pipe, call, steps=4, seed=5):
    generator = torch.Generator().manual_seed(seed)
    without = 0.0 if type(pipe).__name__.startswith("ZImage") else 1.0
    options = {"num_inference_steps": steps, "guidance_scale": without, "output_type": "pt", **call}
    return pipe(prompt=["a"], generator=generator, **options).images


def test_the_plan_draws_what_the_pipeline_draws(case):
    pipe, call = case
    wanted = draw(pipe, call)
    plan = plan_of(pipe, 4, guidance_scale=1.0, **call)
    assert plan.steps == 4
    attach(pipe, plan)
    assert torch.allclose(draw(pipe, call), wanted, atol=1e-5)
    assert not torch.allclose(draw(pipe, {**call, "strength": 1.0}), wanted, atol=1e-3)


def test_a_new_plan_starts_in_the_middle_and_is_kept(case, tmp_path):
    pipe, call = case
    process, prediction = process_of(pipe, **call)
    grid = grids.uniform(process, 4)
    attach(pipe, dpm_solver_pp_2m(process, prediction, grid))
    found = draw(pipe, call)
    save_pipeline(pipe, tmp_path / "out")
    assert torch.allclose(draw(load_pipeline(tmp_path / "out"), call), found, atol=1e-5)
    # two of four steps: without history the first is DDIM, and a step to a clean end is always DDIM
    attach(pipe, ddim(process, prediction, grid))
    assert torch.allclose(draw(pipe, call), found, atol=1e-5)
    with torch.no_grad():
        by_generator = PipelineSampler(pipe, 1.0, call)(pipe.scheduler.plan, ["a"], [5])
    assert torch.allclose(by_generator, found, atol=1e-5)


def test_a_multistep_scheduler_starts_late_as_its_plan_does(tmp_path):
    pipe, call = opened("StableDiffusionImg2ImgPipeline", tmp_path)
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler(**tiny.BETAS)
    wanted = draw(pipe, call, steps=6)
    plan = plan_of(pipe, 6, guidance_scale=1.0, **call)
    assert max(len(row.output) for row in plan.rows) == 2
    attach(pipe, plan)
    assert torch.allclose(draw(pipe, call, steps=6), wanted, atol=1e-5)
