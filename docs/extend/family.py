"""A pipeline family: any diffusers pipeline with a `unet` or `transformer` and a scheduler; nothing more is needed."""

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ImagePipelineOutput, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor

from fewstep.pipelines import PipelineSampler, attach, plan_of, process_of
from fewstep.solvers import dpm_solver_pp_2m, grids


class SquarePipeline(DiffusionPipeline):
    """Unconditional pictures; the loop is whatever the author of the pipeline likes."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, batch_size=1, generator=None, num_inference_steps=20, output_type="np", return_dict=True):
        """Pictures in the form that diffusers' own pipelines return them."""
        x = randn_tensor((batch_size, 3, 8, 8), generator=generator) * self.scheduler.init_noise_sigma
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            output = self.unet(self.scheduler.scale_model_input(x, t), t).sample
            x = self.scheduler.step(output, t, x, generator=generator).prev_sample
        images = (x / 2 + 0.5).clamp(0, 1)
        return ImagePipelineOutput(images=images if output_type == "pt" else VaeImageProcessor.pt_to_numpy(images))


torch.manual_seed(0)
unet = UNet2DModel(sample_size=8, block_out_channels=(8,), down_block_types=("DownBlock2D",),
                   up_block_types=("UpBlock2D",), norm_num_groups=4).eval()  # fmt: skip
pipe = SquarePipeline(unet, DDIMScheduler(clip_sample=False))
own = plan_of(pipe, 10)  # what its scheduler does, measured
process, prediction = process_of(pipe)
attach(pipe, dpm_solver_pp_2m(process, prediction, grids.trailing(process, 4)))
print(type(process).__name__, prediction.kind, own.steps, "->", plan_of(pipe, 4).steps)
print(tuple(PipelineSampler(pipe)(plan_of(pipe, 4), None, seeds=[0, 1]).shape))
