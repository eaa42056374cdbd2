"""The small class-conditional pipeline as standard diffusers parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

NO_CLASS = 1000
"""The class that means "any": `DiTPipeline` asks for this very number when it guides."""


def class_denoiser(width: int, layers: int, heads: int, latent_channels: int, side: int, patch: int = 1) -> Any:
    """A `DiTTransformer2DModel` for latents (latent_channels, side, side), initialized as in arXiv 2212.09748.

    Its label tables have the 1001 rows that `DiTPipeline` expects; the rows of classes that never occur stay zero.
    """
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=latent_channels,
        out_channels=latent_channels,
        num_layers=layers,
        sample_size=side,
        patch_size=patch,
        num_embeds_ada_norm=NO_CLASS,
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.zeros_(module.weight)
    zero = [block.norm1.linear for block in model.transformer_blocks] + [model.proj_out_1, model.proj_out_2]
    for layer in zero:  # every block begins as the identity
        nn.init.zeros_(layer.weight)
    with_own_dropout(model)
    return model


def with_own_dropout(model: Any) -> None:
    """Switch off the label dropout inside: diffusers drops in each block on its own, so blocks would disagree."""
    for block in model.transformer_blocks:
        block.norm1.emb.class_embedder.dropout_prob = 0.0


@torch.no_grad()
def forget_unused(model: Any, classes: int) -> None:
    """Zero the label rows of classes that do not exist, whatever the optimizer did to them."""
    for block in model.transformer_blocks:
        block.norm1.emb.class_embedder.embedding_table.weight[classes:NO_CLASS] = 0


def flow_scheduler(shift: float) -> Any:
    """A rectified flow whose times are shifted towards noise, sampled by Euler steps.

    diffusers' own flow schedulers cannot run in a `DiTPipeline`, which scales its inputs; this one can.
    """
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        solver_order=1,
        timestep_spacing="trailing",
    )


def class_pipeline(vae: nn.Module, transformer: nn.Module, scheduler: Any, names: Sequence[str]) -> Any:
    """A `DiTPipeline` that knows its classes by name."""
    from diffusers import DiTPipeline

    labels = {index: name.replace(",", " ") for index, name in enumerate(names)}  # a comma would make two names
    pipe = DiTPipeline(transformer=transformer, vae=vae, scheduler=scheduler, id2label=labels)
    pipe.register_to_config(id2label={str(index): name for index, name in labels.items()})
    return pipe
