"""Stage `vae`: the picture autoencoder, 64x64x3 to 8x8x4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch.nn import functional as F

from fewstep.train.pictures import mirror_of, signed
from fewstep.train.stage import Count, Fraction, NotNegative, Positive, Stage, StageBatch, StageConfig


class VaeConfig(StageConfig):
    """Settings of the autoencoder."""

    steps: Count = 4000
    batch: Count = 24
    learning_rate: Positive = 2e-3
    weight_decay: NotNegative = 0.0
    ema: Fraction = 0.998
    channels: tuple[int, ...] = (16, 32, 64, 64)
    latent_channels: Count = 4
    edge_weight: NotNegative = Field(0.5, description="weight of the picture-gradient term")
    kl_weight: NotNegative = Field(3e-4, description="weight of the mean KL per latent number")


def build(config: VaeConfig) -> Stage:
    """AutoencoderKL trained with L1 over three scales, L1 of picture gradients, and a tiny KL."""
    images, captions = config.pictures()
    mirror = mirror_of(captions)
    torch.manual_seed(config.seed)
    vae = autoencoder(config.size, config.channels, config.latent_channels)
    device = next(vae.parameters())

    def batch(generator: torch.Generator) -> StageBatch:
        chosen = torch.randint(len(images), (config.batch,), generator=generator)
        return {"pictures": mirror(signed(images[chosen]), chosen, generator)}

    def loss(given: StageBatch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        pictures = given["pictures"].to(device.device)
        posterior = vae.encode(pictures).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(pictures)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        kl = posterior.kl().mean() / noise[0].numel()
        scales = reconstruction_loss(decoded, pictures, config.edge_weight)
        error = (decoded.detach() - pictures).square().mean() / 4
        numbers = {"kl": float(kl.detach()), "psnr": float(-10 * error.log10())}
        return scales + config.kl_weight * kl, numbers

    def save(out: Path) -> None:
        vae.eval()
        standardize(vae, images)
        vae.half().save_pretrained(out)

    return Stage(modules={"vae": vae}, batch=batch, loss=loss, save=save)


def autoencoder(size: int, channels: tuple[int, ...], latent_channels: int) -> Any:
    """A small diffusers AutoencoderKL with one layer per block and no attention."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=tuple(channels),
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=size,
        mid_block_add_attention=False,
    )


def reconstruction_loss(decoded: torch.Tensor, pictures: torch.Tensor, edge_weight: float) -> torch.Tensor:
    """Mean L1 over full, half and quarter size, plus `edge_weight` times the L1 of horizontal and vertical steps."""
    total = decoded.new_zeros(())
    for scale in (1, 2, 4):
        a, b = (F.avg_pool2d(x, scale) if scale > 1 else x for x in (decoded, pictures))
        total = total + (a - b).abs().mean() / 3
        if scale == 1:
            for axis in (2, 3):
                total = total + edge_weight * (a.diff(dim=axis) - b.diff(dim=axis)).abs().mean()
    return total


@torch.no_grad()
def standardize(vae: Any, images: torch.Tensor, count: int = 1024) -> None:
    """Give each latent channel mean 0 and standard deviation 1 on evenly spaced pictures, changing no decoded picture.

    The affine map goes into the 1x1 convolutions at both sides of the latent, so that the pipelines, which know
    one scaling factor only (it becomes 1), work unchanged.
    """
    chosen = images[:: max(1, len(images) // count)]
    device = next(vae.parameters()).device
    parts = [vae.encode(signed(part).to(device)).latent_dist.mean for part in chosen.split(128)]
    latents = torch.cat(parts)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    before, after, channels = vae.quant_conv, vae.post_quant_conv, len(mean)
    before.weight[:channels] /= std[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / std
    before.bias[channels:] -= 2 * std.log()  # the second half is the log-variance
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std[None, :, None, None]
    vae.register_to_config(scaling_factor=1.0)
