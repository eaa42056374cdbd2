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
    usual = {
        "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
        "attention_head_dim": 8, "cross_attention_dim": 32, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return UNet2DConditionModel(**{**usual, **options}).eval()


def one_block_unet(width: int = 16) -> Any:
    """The least that has every kind of layer, for tests that compile: tracing takes a second a block."""
    return unet(
        block_out_channels=(width,), down_block_types=("CrossAttnDownBlock2D",), mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",),
    )  # fmt: skip


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


def one_block_diffusion(folder: Path, **scheduler: Any) -> Any:
    """Half of its layers and half of its time, where the number of blocks is not the question."""
    pipe = stable_diffusion(folder, **scheduler)
    pipe.register_modules(unet=one_block_unet(32))
    return pipe


def lcm(folder: Path) -> Any:
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    pipe = LatentConsistencyModelPipeline(
        vae=vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(folder / "tokenizer-source"),
        unet=unet(time_cond_proj_dim=16), scheduler=LCMScheduler(**BETAS), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
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


def pixart(folder: Path, sigma: bool = False) -> Any:
    from diffusers import (
        DPMSolverMultistepScheduler,
        PixArtAlphaPipeline,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
    )

    torch.manual_seed(5)
    transformer = PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, norm_type="ada_norm_single",
        use_additional_conditions=False,
    ).eval()  # fmt: skip
    return quiet((PixArtSigmaPipeline if sigma else PixArtAlphaPipeline)(
        transformer=transformer, vae=vae(), text_encoder=t5(), tokenizer=t5_tokenizer(),
        scheduler=DPMSolverMultistepScheduler(**BETAS),
    ))  # fmt: skip


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


def sd3(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(7)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=64, out_channels=16,
    ).eval()  # fmt: skip
    tokenizer = clip_tokenizer(folder / "tokenizer-source")
    return quiet(StableDiffusion3Pipeline(
        transformer=transformer, vae=vae(16, shift_factor=0.0609, scaling_factor=1.5305),
        text_encoder=clip_text(0, projection=True), tokenizer=tokenizer,
        text_encoder_2=clip_text(3, projection=True), tokenizer_2=tokenizer,
        text_encoder_3=t5(64), tokenizer_3=t5_tokenizer(), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ))  # fmt: skip


def z_image(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(8)
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[8, 4, 4], axes_lens=[64, 32, 32],
    ).eval()  # fmt: skip
    for parameter in transformer.parameters():  # the padding tokens are made with torch.empty
        torch.nn.init.normal_(parameter, std=0.1)
    encoder = Qwen3Model(Qwen3Config(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )).eval()  # fmt: skip
    tokenizer = t5_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}user {{ m['content'] }}{% endfor %}"
    return quiet(ZImagePipeline(
        transformer=transformer, vae=vae(4, shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False,
        use_post_quant_conv=False), text_encoder=encoder, tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ))  # fmt: skip


def sana(folder: Path) -> Any:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    torch.manual_seed(9)
    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8,
        sample_size=32, patch_size=1,
    ).eval()  # fmt: skip
    autoencoder = AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu",
        scaling_factor=0.41407,
    ).eval()  # fmt: skip
    encoder = Gemma2Model(Gemma2Config(
        vocab_size=64, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4,
    )).eval()  # fmt: skip
    return quiet(SanaPipeline(
        transformer=transformer, vae=autoencoder, text_encoder=encoder, tokenizer=t5_tokenizer(),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, final_sigmas_type="zero"
        ),
    ))  # fmt: skip


def cogvideox(folder: Path) -> Any:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline
    from diffusers import CogVideoXTransformer3DModel as Transformer

    torch.manual_seed(10)
    transformer = Transformer(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2,
        text_embed_dim=32, num_layers=2, sample_width=2, sample_height=2, sample_frames=5, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=16,
    ).eval()  # fmt: skip
    autoencoder = AutoencoderKLCogVideoX(
        block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4,
    ).eval()  # fmt: skip
    return quiet(CogVideoXPipeline(
        transformer=transformer, vae=autoencoder, text_encoder=t5(), tokenizer=t5_tokenizer(),
        scheduler=CogVideoXDDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0, clip_sample=False,
            timestep_spacing="trailing", **BETAS,
        ),
    ))  # fmt: skip


def wan(folder: Path) -> Any:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(11)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=32, freq_dim=32, ffn_dim=32, num_layers=2, cross_attn_norm=True, rope_max_seq_len=32,
    ).eval()  # fmt: skip
    autoencoder = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 2.0, 1.0, 1.2],
    ).eval()  # fmt: skip
    encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4, pad_token_id=0)
    ).eval()
    return quiet(WanPipeline(
        transformer=transformer, vae=autoencoder, text_encoder=encoder, tokenizer=t5_tokenizer(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    ))  # fmt: skip


def dit(folder: Path) -> Any:
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(12)
    transformer = DiTTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
        out_channels=8, num_embeds_ada_norm=1000,
    ).eval()  # fmt: skip
    scheduler = DDIMScheduler(clip_sample=False, beta_schedule="linear")
    return quiet(DiTPipeline(transformer=transformer, vae=vae(), scheduler=scheduler))


def unconditional(folder: Path, ddpm: bool = False) -> Any:
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(13)
    network = UNet2DModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    if ddpm:
        return quiet(DDPMPipeline(unet=network, scheduler=DDPMScheduler(clip_sample=False)))
    return quiet(DDIMPipeline(unet=network, scheduler=DDIMScheduler(clip_sample=False)))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


MAKERS = {
    "sd": stable_diffusion,
    "sd2": lambda folder: stable_diffusion(folder, prediction_type="v_prediction"),
    "lcm": lcm,
    "sdxl": sdxl,
    "sd3": sd3,
    "pixart": pixart,
    "pixart-sigma": lambda folder: pixart(folder, sigma=True),
    "flux": flux,
    "z-image": z_image,
    "sana": sana,
    "cogvideox": cogvideox,
    "wan": wan,
    "dit": dit,
    "ddim": unconditional,
    "ddpm": lambda folder: unconditional(folder, ddpm=True),
}
"""A tiny pipeline (of a folder for scratch files) of every family that the documents call supported."""

_SIZE = {"height": 16, "width": 16}
_PIXART = {**_SIZE, "use_resolution_binning": False, "max_sequence_length": 16, "clean_caption": False}
CALLS: dict[str, dict[str, Any]] = {
    "sd": _SIZE,
    "sd2": _SIZE,
    "lcm": _SIZE,
    "sdxl": _SIZE,
    "sd3": {**_SIZE, "max_sequence_length": 16},
    "pixart": _PIXART,
    "pixart-sigma": _PIXART,
    "flux": {**_SIZE, "max_sequence_length": 16},
    "z-image": {**_SIZE, "max_sequence_length": 16},
    "sana": {**_PIXART, "height": 32, "width": 32, "complex_human_instruction": None},
    "cogvideox": {**_SIZE, "num_frames": 5, "max_sequence_length": 16},
    "wan": {**_SIZE, "num_frames": 5, "max_sequence_length": 16},
    "dit": {},
    "ddim": {},
    "ddpm": {},
}
"""What their calls need at this size."""


def conditions(name: str, count: int) -> list[Any] | None:
    """Prompts, class labels or nothing, as this family takes them."""
    if name in ("ddim", "ddpm"):
        return None
    return [7, 1, 0, 3, 5][:count] if name == "dit" else ["a", "bc", "d", "ef", "b"][:count]


def draw(pipe: Any, name: str, conditions: list[Any] | None, seeds: list[int], steps: int = 4, **options: Any) -> Any:
    """What a user of plain diffusers gets: images (B, 3, H, W) or frames (B, T, 3, H, W)."""
    kind = {"dit": "class_labels", "ddim": "batch_size", "ddpm": "batch_size"}.get(name, "prompt")
    given = {kind: len(seeds) if conditions is None else list(conditions), **CALLS[name], **options}
    if kind != "batch_size":
        given = {"guidance_scale": 0.0 if name == "z-image" else 1.0, **given}
    result = pipe(
        **given, num_inference_steps=steps, generator=[torch.Generator().manual_seed(s) for s in seeds],
        output_type="pt",
    )  # fmt: skip
    return result.frames if hasattr(result, "frames") else result.images
