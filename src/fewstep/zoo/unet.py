"""The small text-to-image pipeline as standard diffusers parts."""

from __future__ import annotations

from typing import Any

from torch import nn

from fewstep.zoo.text import text_config


def denoiser(channels: tuple[int, ...], latent_channels: int, sample_size: int, text_width: int, heads: int = 4) -> Any:
    """A `UNet2DConditionModel` with cross attention below the first level and in the middle, as in SDXL."""
    from diffusers import UNet2DConditionModel

    deeper = len(channels) - 1

    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=tuple(channels),
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * deeper),
        up_block_types=(*("CrossAttnUpBlock2D",) * deeper, "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=heads,  # diffusers reads this as the number of heads
        cross_attention_dim=text_width,
    )


def text_encoder(tokenizer: Any, width: int, layers: int) -> nn.Module:
    """A `CLIPTextModel`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**text_config(tokenizer, width, layers)))


_NOISING: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""What teacher and student share: a student runs on the very noise levels it was distilled on."""


def ddim_scheduler(prediction_type: str = "v_prediction") -> Any:
    """Stable Diffusion's 1000 scaled-linear betas, sampled by DDIM over trailing times."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        **_NOISING,
        prediction_type=prediction_type,
        timestep_spacing="trailing",
    )


def lcm_scheduler(prediction_type: str = "v_prediction") -> Any:
    """The same betas, sampled by multistep consistency (arXiv 2310.04378) on 50 original times."""
    from diffusers import LCMScheduler

    return LCMScheduler(
        **_NOISING,
        prediction_type=prediction_type,
        original_inference_steps=50,
        timestep_scaling=10.0,
    )


def pipeline(vae: nn.Module, text: nn.Module, tokenizer: Any, unet: nn.Module, scheduler: Any) -> Any:
    """A `StableDiffusionPipeline` without safety checker."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
