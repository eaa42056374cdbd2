"""Tiny random-weight pipelines from diffusers' own classes, for tests: the real code paths in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch


def clip_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(97, 123)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *[f"{c}</w>" for c in letters]]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def clip_text(seed: int = 0, projection: bool = False, width: int = 32) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=54, hidden_size=width, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, projection_dim=width, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def vae(latents: int = 4, **options: Any) -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=latents, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **options,
    ).eval()  # fmt: skip


def unet(**options: Any) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(2)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **{"cross_attention_dim": 32, **options},
    ).eval()  # fmt: skip


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def stable_diffusion(folder: Path, **scheduler: Any) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline(
        vae=vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(folder / "tokenizer-source"), unet=unet(),
        scheduler=DDIMScheduler(clip_sample=False, timestep_spacing="trailing", **BETAS, **scheduler),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sdxl(folder: Path) -> Any:
    from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionXLPipeline

    tokenizer = clip_tokenizer(folder / "tokenizer-source")
    pipe = StableDiffusionXLPipeline(
        vae=vae(), text_encoder=clip_text(0), text_encoder_2=clip_text(3, projection=True), tokenizer=tokenizer,
        tokenizer_2=tokenizer, scheduler=EulerAncestralDiscreteScheduler(timestep_spacing="trailing", **BETAS),
        unet=unet(
            cross_attention_dim=64, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 6 * 8,
        ),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def t5(width: int = 32) -> Any:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(4)
    return T5EncoderModel(
        T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4, pad_token_id=0)
    ).eval()


def t5_tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {chr(c): i for i, c in enumerate(range(97, 123), start=3)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )


def pixart(folder: Path) -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    torch.manual_seed(5)
    transformer = PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, norm_type="ada_norm_single",
        use_additional_conditions=False,
    ).eval()  # fmt: skip
    pipe = PixArtAlphaPipeline(
        transformer=transformer, vae=vae(), text_encoder=t5(), tokenizer=t5_tokenizer(),
        scheduler=DPMSolverMultistepScheduler(**BETAS),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(6)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    ).eval()  # fmt: skip
    pipe = FluxPipeline(
        transformer=transformer, vae=vae(4, shift_factor=0.0609, scaling_factor=1.5035, use_quant_conv=False,
        use_post_quant_conv=False), text_encoder=clip_text(0), tokenizer=clip_tokenizer(folder / "tokenizer-source"),
        text_encoder_2=t5(), tokenizer_2=t5_tokenizer(), scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


MAKERS = {"sd": stable_diffusion, "sdxl": sdxl, "pixart": pixart, "flux": flux}
CALLS: dict[str, dict[str, Any]] = {
    "sd": {"height": 16, "width": 16},
    "sdxl": {"height": 16, "width": 16},
    "pixart": {
        "height": 16,
        "width": 16,
        "use_resolution_binning": False,
        "max_sequence_length": 16,
        "clean_caption": False,
    },
    "flux": {"height": 16, "width": 16, "max_sequence_length": 16},
}
