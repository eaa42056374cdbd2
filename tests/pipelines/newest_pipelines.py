"""Tiny random-weight pipelines of families that came last, as far as the installed diffusers has them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch

from tests.pipelines.tiny_pipelines import quiet, t5, t5_tokenizer

ROPE = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}
QWEN = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "rope_scaling": ROPE, "rope_theta": 1e6,
}  # fmt: skip


def lightning() -> Any:
    """The scheduler of the Lightning students of Qwen-Image: a shift of 3 at every size, no terminal shift."""
    return diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=math.log(3), max_shift=math.log(3), base_image_seq_len=256,
        max_image_seq_len=8192, shift_terminal=None, time_shift_type="exponential",
    )  # fmt: skip


def qwen_image(folder: Path) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(20)
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    ).eval()  # fmt: skip
    autoencoder = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(
        text_config={**QWEN, "vocab_size": 64}, vision_config=vision, hidden_size=16, vocab_size=64,
        vision_start_token_id=60, vision_end_token_id=61, vision_token_id=62,
    )).eval()  # fmt: skip
    return quiet(diffusers.QwenImagePipeline(
        transformer=transformer, vae=autoencoder, text_encoder=encoder, tokenizer=t5_tokenizer(), scheduler=lightning(),
    ))  # fmt: skip


def flux2_klein(folder: Path) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(21)
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, timestep_guidance_channels=32, axes_dims_rope=[4, 4, 4, 4], guidance_embeds=False,
    ).eval()  # fmt: skip
    autoencoder = diffusers.AutoencoderKLFlux2(
        sample_size=16, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4,
    ).eval()  # fmt: skip
    encoder = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )).eval()  # fmt: skip
    tokenizer = t5_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}user {{ m['content'] }}{% endfor %}"
    return quiet(diffusers.Flux2KleinPipeline(
        transformer=transformer, vae=autoencoder, text_encoder=encoder, tokenizer=tokenizer, is_distilled=True,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, shift=3.0
        ),
    ))  # fmt: skip


def wan_vae(channels: int) -> Any:
    return diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1] * channels, latents_std=[1.5] * channels,
    ).eval()  # fmt: skip


def sana_video(folder: Path) -> Any:
    from transformers import Gemma2Config, Gemma2Model

    torch.manual_seed(22)
    transformer = diffusers.SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=8,
        mlp_ratio=2.5, sample_size=8, patch_size=(1, 2, 2), qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    ).eval()  # fmt: skip
    encoder = Gemma2Model(Gemma2Config(
        vocab_size=64, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4,
    )).eval()  # fmt: skip
    return quiet(diffusers.SanaVideoPipeline(
        transformer=transformer, vae=wan_vae(4), text_encoder=encoder, tokenizer=t5_tokenizer(),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0, final_sigmas_type="zero"
        ),
    ))  # fmt: skip


def hunyuan_video_15(folder: Path) -> Any:
    from diffusers.guiders import ClassifierFreeGuidance
    from transformers import ByT5Tokenizer, Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel, T5Config, T5EncoderModel

    torch.manual_seed(23)
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1, num_refiner_layers=1,
        mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=16, text_embed_2_dim=32, image_embed_dim=12,
        rope_axes_dim=(2, 2, 4), target_size=16, task_type="t2v",
    ).eval()  # fmt: skip
    autoencoder = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(16, 16), layers_per_block=1, spatial_compression_ratio=4,
        temporal_compression_ratio=2, downsample_match_channel=False, upsample_match_channel=False,
    ).eval()  # fmt: skip
    encoder = Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**QWEN, vocab_size=64)).eval()
    glyphs = T5Config(vocab_size=400, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    tokenizer = t5_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return quiet(diffusers.HunyuanVideo15Pipeline(
        transformer=transformer, vae=autoencoder, text_encoder=encoder, tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(glyphs).eval(), tokenizer_2=ByT5Tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        guider=ClassifierFreeGuidance(guidance_scale=1.0),
    ))  # fmt: skip


def any_flow(folder: Path) -> Any:
    torch.manual_seed(24)
    transformer = diffusers.AnyFlowTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=32,
        freq_dim=32, ffn_dim=32, num_layers=2, cross_attn_norm=True, rope_max_seq_len=32, gate_value=0.25,
        deltatime_type="r",
    ).eval()  # fmt: skip
    return quiet(diffusers.AnyFlowPipeline(
        transformer=transformer, vae=wan_vae(4), text_encoder=t5(), tokenizer=t5_tokenizer(),
        scheduler=diffusers.FlowMapEulerDiscreteScheduler(shift=5.0),
    ))  # fmt: skip


def ltx2(folder: Path) -> Any:
    from diffusers.pipelines.ltx2 import LTX2TextConnectors
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(25)
    encoder = Gemma3ForConditionalGeneration(Gemma3Config(
        text_config={
            "vocab_size": 64, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8,
            "num_attention_heads": 2, "num_key_value_heads": 1,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        },
        mm_tokens_per_image=4, boi_token_index=60, eoi_token_index=61, image_token_index=62,
    )).eval()  # fmt: skip
    transformer = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, patch_size=1, patch_size_t=1, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2,
        audio_attention_head_dim=4, audio_cross_attention_dim=8, num_layers=2, qk_norm="rms_norm_across_heads",
        caption_channels=32, rope_double_precision=False, rope_type="split",
    ).eval()  # fmt: skip
    heads = {f"{stream}_connector_num_attention_heads": 4 for stream in ("video", "audio")}
    heads |= {f"{stream}_connector_attention_head_dim": 8 for stream in ("video", "audio")}
    heads |= {f"{stream}_connector_num_layers": 1 for stream in ("video", "audio")}
    heads |= {f"{stream}_connector_num_learnable_registers": None for stream in ("video", "audio")}
    connectors = LTX2TextConnectors(
        caption_channels=32, text_proj_in_factor=3, connector_rope_base_seq_len=32, rope_theta=10000.0,
        rope_double_precision=False, causal_temporal_positioning=False, rope_type="split", **heads,
    ).eval()  # fmt: skip
    video = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,), layers_per_block=(1,),
        decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False), downsample_type=("spatial",), upsample_residual=(False,),
        upsample_factor=(1,), timestep_conditioning=False, patch_size=1, patch_size_t=1, encoder_causal=True,
        decoder_causal=False,
    ).eval()  # fmt: skip
    audio = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1, attn_resolutions=None, in_channels=2,
        resolution=32, latent_channels=2, norm_type="pixel", causality_axis="height", dropout=0.0,
        mid_block_add_attention=False, sample_rate=16000, mel_hop_length=160, is_causal=True, mel_bins=8,
    ).eval()  # fmt: skip
    vocoder = LTX2Vocoder(
        in_channels=16, hidden_channels=32, out_channels=2, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2],
        resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], leaky_relu_negative_slope=0.1,
        output_sampling_rate=16000,
    ).eval()  # fmt: skip
    return quiet(diffusers.LTX2Pipeline(
        transformer=transformer, vae=video, audio_vae=audio, text_encoder=encoder, tokenizer=t5_tokenizer(),
        connectors=connectors, vocoder=vocoder, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    ))  # fmt: skip


_FAMILIES: dict[str, tuple[str, Callable[[Path], Any], dict[str, Any]]] = {
    "qwen-image": ("QwenImagePipeline", qwen_image, {"height": 32, "width": 32}),
    "flux2-klein": (
        "Flux2KleinPipeline", flux2_klein,
        {"height": 16, "width": 16, "max_sequence_length": 16, "text_encoder_out_layers": (1,)},
    ),
    "sana-video": (
        "SanaVideoPipeline", sana_video,
        {"height": 32, "width": 32, "frames": 5, "max_sequence_length": 16, "complex_human_instruction": [],
         "use_resolution_binning": False},
    ),
    "hunyuan-video-1.5": ("HunyuanVideo15Pipeline", hunyuan_video_15, {"height": 16, "width": 16, "num_frames": 5}),
    "ltx-2": (
        "LTX2Pipeline", ltx2,
        {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16, "stg_scale": 0.0,
         "modality_scale": 1.0, "guidance_rescale": 0.0, "audio_guidance_scale": 1.0, "audio_stg_scale": 0.0,
         "audio_modality_scale": 1.0, "audio_guidance_rescale": 0.0, "spatio_temporal_guidance_blocks": None,
         "use_cross_timestep": False},
    ),
    "any-flow": (
        "AnyFlowPipeline", any_flow, {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 16},
    ),
}  # fmt: skip
FAMILIES = {name: rest for name, (kind, *rest) in _FAMILIES.items() if hasattr(diffusers, kind)}
"""(maker, arguments of calls) by name."""
