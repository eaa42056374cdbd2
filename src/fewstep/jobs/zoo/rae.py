"""Stage `rae`: a decoder for frozen features, a representation autoencoder (arXiv 2510.11690)."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field

from fewstep.errors import FewstepError
from fewstep.jobs.zoo.vae import reconstruction_loss
from fewstep.latents import FeatureAutoencoder, load_encoder
from fewstep.latents.surface import feature_column
from fewstep.train.pictures import mirror_of, signed
from fewstep.train.stage import Count, Fraction, NotNegative, Positive, Stage, StageBatch, StageConfig


class RaeConfig(StageConfig):
    """Settings of the decoder."""

    encoder: str = Field("runs/train-encoder", description="folder of stage encoder, a transformers folder or hub id")
    steps: Count = 4000
    batch: Count = 24
    learning_rate: Positive = 2e-3
    weight_decay: NotNegative = 0.0
    ema: Fraction = 0.998
    channels: tuple[int, ...] = Field((16, 32, 32, 32), description="of the decoder; one token per 2^(n - 1) pixels")
    layers: Count = Field(1, description="per block of the decoder")
    edge_weight: NotNegative = Field(0.5, description="weight of the picture-gradient term")
    noise: NotNegative = Field(
        0.2, description="the decoder sees features with noise of a deviation |N(0, this)|, in theirs; 0.8 in the paper"
    )


def build(config: RaeConfig) -> Stage:
    """The decoder alone is trained, with the reconstruction loss of stage `vae`."""
    torch.manual_seed(config.seed)
    return autoencoder_stage(config, FeatureAutoencoder.around(load_encoder(config.encoder), **shape(config)), 0.0)


def shape(config: RaeConfig) -> dict[str, object]:
    """The arguments of `FeatureAutoencoder` that these settings give.

    Raises:
        FewstepError: the pictures are no whole number of tokens.
    """
    factor = 2 ** (len(config.channels) - 1)
    if config.size % factor:
        hint = f"One token covers {factor} pixels: give another size, or more or fewer channels."
        raise FewstepError("the pictures are no whole number of tokens", value=config.size, hint=hint)
    return {
        "sample_size": config.size,
        "block_out_channels": config.channels,
        "layers_per_block": config.layers,
    }


def autoencoder_stage(config: RaeConfig, model: FeatureAutoencoder, mask: float) -> Stage:
    """Training of what `model` has besides its frozen encoder; `mask`: share of pictures without a residual."""
    images, captions = config.pictures()
    mirror = mirror_of(captions)
    model.measure(images)  # the noise is relative to the features' deviation
    modules = {"decoder": model.decoder, **({} if model.residual is None else {"residual": model.residual})}

    def batch(generator: torch.Generator) -> StageBatch:
        chosen = torch.randint(len(images), (config.batch,), generator=generator)
        return {"pictures": mirror(signed(images[chosen]), chosen, generator)}

    def loss(given: StageBatch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        pictures = given["pictures"].to(model.mean.device)
        dropped = (torch.rand(len(pictures), generator=generator) < mask).to(pictures.device)
        features = model.features(pictures / 2 + 0.5, dropped if mask else None)
        noise = torch.randn(features.shape, generator=generator).to(features)
        scale = config.noise * torch.randn(len(features), 1, 1, 1, generator=generator).abs().to(features)
        decoded = model.decoder(features + scale * feature_column(model.std) * noise).float()
        error = (decoded.detach() - pictures).square().mean() / 4
        value = reconstruction_loss(decoded, pictures, config.edge_weight)
        return value, {"psnr": float(-10 * error.log10())}

    def save(out: Path) -> None:
        model.measure(images)  # of the averaged weights
        model.half().save_pretrained(out)

    return Stage(modules=modules, frozen={"autoencoder": model}, batch=batch, loss=loss, save=save)
