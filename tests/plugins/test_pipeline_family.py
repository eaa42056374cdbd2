"""A pipeline class that diffusers does not have: all works on it as it is, and an entry point opens its folders."""

from __future__ import annotations

import importlib

import pytest
import torch

from fewstep.errors import FewstepError, PluginError
from fewstep.pipelines import PipelineSampler, attach, load_pipeline, plan_of, process_of, save_pipeline
from fewstep.prediction import Prediction
from fewstep.solvers import SOLVERS, grids

FAMILY = """
    import torch
    from diffusers import DiffusionPipeline, ImagePipelineOutput
    from diffusers.utils.torch_utils import randn_tensor

    class TinyFamilyPipeline(DiffusionPipeline):
        model_cpu_offload_seq = "unet"

        def __init__(self, unet, scheduler):
            super().__init__()
            self.register_modules(unet=unet, scheduler=scheduler)

        @torch.no_grad()
        def __call__(self, batch_size=1, generator=None, num_inference_steps=50, output_type="pil", latents=None):
            size = self.unet.config.sample_size
            shape = batch_size, self.unet.config.in_channels, size, size
            x = randn_tensor(shape, generator, self.device) if latents is None else latents
            self.scheduler.set_timesteps(num_inference_steps)
            x = x * self.scheduler.init_noise_sigma
            for time in self.scheduler.timesteps:
                output = self.unet(self.scheduler.scale_model_input(x, time), time).sample
                x = self.scheduler.step(output, time, x).prev_sample
            return ImagePipelineOutput(images=(x / 2 + 0.5).clamp(0, 1))
"""
GROUP = {"pipelines": {"TinyFamilyPipeline": "tiny_family:TinyFamilyPipeline"}}


def made():
    from diffusers import DDIMScheduler, UNet2DModel

    torch.manual_seed(13)
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    kind = importlib.import_module("tiny_family").TinyFamilyPipeline
    pipe = kind(unet, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, plan):
    return PipelineSampler(pipe)(plan, None, [0, 1])


def test_a_class_that_nobody_knows_is_read_replanned_and_run(install):
    install("tiny_family", FAMILY)
    pipe = made()
    plan = plan_of(pipe, 4)
    streams = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    own = pipe(batch_size=2, generator=streams, num_inference_steps=4).images
    assert torch.allclose(draw(pipe, plan), own, atol=1e-5)
    process, prediction = process_of(pipe)
    attach(pipe, SOLVERS["unipc"](process, prediction, grids.uniform(process, 3)))
    assert pipe(batch_size=1, num_inference_steps=3).images.isfinite().all()
    assert prediction == Prediction("epsilon")


def test_its_folder_is_opened_by_the_package_that_brings_the_class(install, tmp_path):
    install("tiny_family", FAMILY, **GROUP)
    pipe = made()
    plan = plan_of(pipe, 4)
    attach(pipe, plan)
    save_pipeline(pipe, tmp_path / "out")
    again = load_pipeline(tmp_path / "out")
    assert type(again).__name__ == "TinyFamilyPipeline"
    assert torch.equal(draw(again, again.scheduler.plan), draw(pipe, plan))


def test_a_folder_whose_package_is_broken_or_absent_says_so(install, tmp_path):
    install("tiny_family", FAMILY)
    save_pipeline(made(), tmp_path / "out")
    with pytest.raises(FewstepError, match="cannot open the pipeline .*TinyFamilyPipeline"):
        load_pipeline(tmp_path / "out")
    install("other", "raise RuntimeError('old')", pipelines={"TinyFamilyPipeline": "other:TinyFamilyPipeline"})
    with pytest.raises(PluginError, match=r"of other 1.0 does not load: RuntimeError: old"):
        load_pipeline(tmp_path / "out")
