"""Stage `svg`: frozen features, trained residual channels beside them, and a decoder (arXiv 2510.15301)."""

from __future__ import annotations

import torch
from pydantic import Field

from fewstep.jobs.zoo import rae
from fewstep.latents import FeatureAutoencoder, load_encoder
from fewstep.train.stage import Count, Fraction, NotNegative, Stage


class SvgConfig(rae.RaeConfig):
    """Settings of residual encoder and decoder."""

    noise: NotNegative = Field(0.0, description="the decoder sees features with noise of a deviation |N(0, this)|")
    residual_channels: Count = 8
    residual_width: Count = 64
    residual_layers: Count = 2
    residual_heads: Count = 4
    mask: Fraction = Field(0.1, description="share of the pictures whose residual is a learned token, in training")


def build(config: SvgConfig) -> Stage:
    """Decoder and residual encoder; the residual has the mean and deviation of the frozen tokens."""
    torch.manual_seed(config.seed)
    names = {"width": config.residual_width, "layers": config.residual_layers, "heads": config.residual_heads}
    model = FeatureAutoencoder.around(
        load_encoder(config.encoder),
        residual_channels=config.residual_channels,
        residual_settings=names,
        **rae.shape(config),
    )
    return rae.autoencoder_stage(config, model, config.mask)
