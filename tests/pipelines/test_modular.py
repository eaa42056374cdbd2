"""`PlanDenoise` among diffusers' own modular blocks: the pictures of the scheduler that the plan was read from."""

import importlib

import pytest
import torch

import fewstep as fs
from fewstep.errors import FewstepError, IdentityError
from fewstep.pipelines.identity import identity_of
from fewstep.pipelines.modular import PlanDenoise, with_plan
from tests.pipelines import tiny_pipelines as tiny

BLOCKS = {
    "flux": ("flux.modular_blocks_flux", "FluxAutoBlocks", {"max_sequence_length": 8}),
    "sd3": ("stable_diffusion_3.modular_blocks_stable_diffusion_3", "StableDiffusion3AutoBlocks",
            {"max_sequence_length": 8}),
    "sdxl": ("stable_diffusion_xl.modular_blocks_stable_diffusion_xl", "StableDiffusionXLAutoBlocks", {}),
}  # fmt: skip
SIZE = {"height": 16, "width": 16}


def opened(blocks, pipe):
    """A modular pipeline with the components of a classic one."""
    made = blocks.init_pipeline()
    names = {spec.name for spec in blocks.expected_components} - {"image_processor"}
    made.update_components(**{name: part for name, part in pipe.components.items() if name in names and part})
    made.set_progress_bar_config(disable=True)
    return made


def drawn(pipe, steps, **call):
    seed = torch.Generator().manual_seed(0)
    return pipe(prompt="a cat", num_inference_steps=steps, generator=seed, output="latents", **SIZE, **call)


@pytest.fixture(params=list(BLOCKS))
def family(request, tmp_path):
    module, name, call = BLOCKS[request.param]
    blocks = getattr(importlib.import_module(f"diffusers.modular_pipelines.{module}"), name)()
    return blocks, tiny.MAKERS[request.param](tmp_path), call


def test_a_plan_as_a_block_draws_what_its_scheduler_draws(family):
    blocks, pipe, call = family
    plain = drawn(opened(blocks, pipe), 2, **call)
    plan = fs.plan_of(pipe, 2, **SIZE)
    planned = opened(with_plan(blocks, plan), pipe)
    own = planned.scheduler
    found = drawn(planned, 7, **call)  # the plan decides how many
    assert float((found - plain).abs().max()) < 1e-4 * float(plain.abs().max())
    assert planned.scheduler is own
    other = opened(with_plan(blocks, fs.plan_of(pipe, 1, **SIZE)), pipe)
    assert float((drawn(other, 2, **call) - plain).abs().max()) > 1e-3 * float(plain.abs().max())
    again = drawn(opened(blocks, pipe), 2, **call)  # neither the blocks nor the pipeline were changed
    assert torch.equal(again, plain)


def test_a_plan_of_another_network_or_guidance_is_refused(tmp_path):
    from diffusers.modular_pipelines.stable_diffusion_3.modular_blocks_stable_diffusion_3 import (
        StableDiffusion3AutoBlocks,
    )

    pipe = tiny.MAKERS["sd3"](tmp_path)
    plan = fs.plan_of(pipe, 1, **SIZE)
    guided = plan.replace(identity=identity_of(pipe, 7.0))
    planned = opened(with_plan(StableDiffusion3AutoBlocks(), guided), pipe)
    drawn(planned, 1, max_sequence_length=8)  # the guider's scale is 7
    without = with_plan(StableDiffusion3AutoBlocks(), plan.replace(identity=identity_of(pipe, 1.0)))
    with pytest.raises(IdentityError, match="guidance"):
        drawn(opened(without, pipe), 1, max_sequence_length=8)
    with torch.no_grad():
        next(pipe.transformer.parameters()).add_(1)
    own = planned.scheduler
    with pytest.raises(IdentityError, match="model"):
        drawn(planned, 1, max_sequence_length=8)
    assert planned.scheduler is own


def test_blocks_without_a_loop_and_pictures_to_begin_with_are_refused(tmp_path):
    from diffusers.modular_pipelines.modular_pipeline import PipelineState
    from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLDenoiseStep
    from diffusers.modular_pipelines.stable_diffusion_xl.encoders import StableDiffusionXLTextEncoderStep

    pipe = tiny.MAKERS["sdxl"](tmp_path)
    plan = fs.plan_of(pipe, 1, **SIZE)
    with pytest.raises(FewstepError, match="no denoising loop"):
        with_plan(StableDiffusionXLTextEncoderStep(), plan)
    block = PlanDenoise(plan, StableDiffusionXLDenoiseStep())
    assert not {"timesteps", "num_inference_steps"} & {given.name for given in block.inputs}
    state = PipelineState()
    state.set("image_latents", torch.zeros(1, 4, 2, 2))
    with pytest.raises(FewstepError, match="noise alone"):
        block(None, state)
