"""A plan as a block of diffusers' modular pipelines."""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers.modular_pipelines import LoopSequentialPipelineBlocks, ModularPipelineBlocks

from fewstep.errors import FewstepError
from fewstep.pipelines.scheduler import PlanScheduler
from fewstep.plan import Identity, Plan
from fewstep.plan.combination import number

REPLACED = ("timesteps", "num_inference_steps")
"""What a plan decides in place of the blocks before it."""


class PlanDenoise(ModularPipelineBlocks):
    """The denoising loop of any family, run by a plan whatever scheduler the pipeline has.

    Before the loop it sets the plan's times, gives the first latents the noise that the plan begins with, and stands in
    for the scheduler; afterwards the pipeline has its own again. Latents must be the noise that the block before made
    (text to image): with other latents there is no telling how much noise they hold.

    Args:
        plan: whose network the pipeline must have, at its guidance.
        denoise: the family's loop, such as `StableDiffusionXLDenoiseStep()`.
    """

    def __init__(self, plan: Plan, denoise: LoopSequentialPipelineBlocks) -> None:
        super().__init__()
        self.plan, self.denoise = plan, denoise
        self.model_name = denoise.model_name

    @property
    def description(self) -> str:
        """What diffusers shows."""
        return f"{type(self.denoise).__name__} along a plan: {self.plan.summary()}"

    @property
    def expected_components(self) -> list[Any]:
        """Those of the loop."""
        return list(self.denoise.expected_components)

    @property
    def expected_configs(self) -> list[Any]:
        """Those of the loop."""
        return list(self.denoise.expected_configs)

    @property
    def inputs(self) -> list[Any]:
        """Those of the loop, without what the plan decides."""
        return [given for given in self.denoise.inputs if given.name not in REPLACED]

    @property
    def intermediate_outputs(self) -> list[Any]:
        """Those of the loop."""
        return list(self.denoise.intermediate_outputs)

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Run the loop.

        Raises:
            IdentityError: the plan belongs to another network, quantization or guidance.
            FewstepError: latents that already hold a picture.
        """
        if state.get("image_latents") is not None or state.get("latent_timestep") is not None:
            hint = "Attach the plan as the pipeline's scheduler: components.scheduler = PlanScheduler.from_plan(plan)."
            raise FewstepError("PlanDenoise begins with noise alone, not with a picture", hint=hint)
        self.plan.check(Identity(guidance=_guidance(components)))
        own, latents = components.scheduler, state.get("latents")
        before = number(getattr(own, "init_noise_sigma", 1.0))
        ours = PlanScheduler.from_plan(self.plan)
        components.scheduler = ours
        try:
            ours.set_timesteps(ours.call_steps, device=latents.device)
            state.set("timesteps", ours.timesteps)
            state.set("num_inference_steps", len(ours.timesteps))
            state.set("latents", latents * (ours.init_noise_sigma / before))
            return self.denoise(components, state)
        finally:
            ours.release()
            components.scheduler = own


def with_plan(blocks: ModularPipelineBlocks, plan: Plan) -> ModularPipelineBlocks:
    """A copy of a pipeline's blocks whose denoising loops follow the plan.

    Raises:
        FewstepError: no denoising loop among them.
    """
    changed = copy.deepcopy(blocks)
    if not _replace(changed, plan):
        raise FewstepError("no denoising loop among these blocks", value=type(blocks).__name__)
    return changed


def _replace(blocks: Any, plan: Plan) -> int:
    """Put the plan around every loop inside; returns how many there were."""
    count = 0
    for name, block in list(getattr(blocks, "sub_blocks", {}).items()):
        if isinstance(block, LoopSequentialPipelineBlocks):
            blocks.sub_blocks[name] = PlanDenoise(plan, block)
            count += 1
        else:
            count += _replace(block, plan)
    return count


def _guidance(components: Any) -> float | None:
    """The scale of the pipeline's guider, 1 where it does nothing; None where there is none."""
    guider = getattr(components, "guider", None)
    scale = getattr(guider, "guidance_scale", None)
    if scale is None:
        return None
    return float(scale) if getattr(guider, "_enabled", True) else 1.0
