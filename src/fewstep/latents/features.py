"""Frozen features as latents: a representation autoencoder (RAE), with trained residual channels SVG's space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import Decoder, DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.latents.encoders import Encoder, small_encoder
from fewstep.latents.surface import channel_statistics, feature_column, point_posterior
from fewstep.registration import component

SMALL = 1e-6


@component
class FeatureAutoencoder(ModelMixin, ConfigMixin):
    """Pictures (B, 3, H, W) in [-1, 1] <-> standardised features (B, C, h, w); callable like `AutoencoderKL`.

    RAE (arXiv 2510.11690): C = the width of the frozen encoder's tokens. SVG (arXiv 2510.15301): `residual_channels`
    more from a trained encoder, moved and scaled to the mean and deviation of the tokens, and for training replaced by
    a learned token at random. All statistics are stored (`measure`): a latent does not depend on its batch.

    encoder_settings: of the frozen encoder (`Encoder.settings`); h = sample_size / 2^(blocks - 1).
    residual_settings: width, layers and heads of the residual encoder.
    block_out_channels, layers_per_block, norm_num_groups: of the decoder, which is that of `AutoencoderKL`.
    """

    @register_to_config
    def __init__(
        self,
        encoder_settings: dict[str, Any],
        sample_size: int = 32,
        block_out_channels: Sequence[int] = (16, 32, 32, 32),
        layers_per_block: int = 1,
        norm_num_groups: int = 8,
        residual_channels: int = 0,
        residual_settings: dict[str, int] | None = None,
        latent_channels: int = 0,
        scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = Encoder.of(encoder_settings)
        width = self.encoder.width + residual_channels
        self.register_to_config(latent_channels=width)
        blocks = tuple(block_out_channels)
        self.decoder = Decoder(
            width,
            block_out_channels=blocks,
            up_block_types=("UpDecoderBlock2D",) * len(blocks),
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            mid_block_add_attention=False,
        )
        self.residual = (
            Residual(sample_size, self.factor, residual_channels, residual_settings) if residual_channels else None
        )
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    @classmethod
    def around(cls, encoder: Encoder, **settings: Any) -> FeatureAutoencoder:
        """Around a frozen encoder, with new decoder (and residual)."""
        made = cls(encoder_settings=encoder.settings, **settings)
        made.encoder.load_state_dict(encoder.state_dict())
        made.encoder.requires_grad_(False).eval()
        return made

    @property
    def factor(self) -> int:
        """Pixels per token along a side."""
        return int(2 ** (len(self.config.block_out_channels) - 1))

    def train(self, mode: bool = True) -> FeatureAutoencoder:
        """The frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def tokens(self, pictures: Tensor) -> Tensor:
        """Frozen tokens (B, width, h, w) of pictures (B, 3, H, W) in [0, 1].

        Raises:
            FewstepError: the sides are no multiples of the pixels per token.
        """
        high, wide = pictures.shape[-2:]
        if high % self.factor or wide % self.factor:
            what = f"one token covers {self.factor} pixels, so that sides must be multiples of it"
            raise FewstepError(what, value=(high, wide), hint="Resize or crop the pictures.")
        with torch.no_grad():
            return self.encoder(pictures, (high // self.factor, wide // self.factor))

    def features(self, pictures: Tensor, dropped: Tensor | None = None) -> Tensor:
        """What the decoder reads, (B, C, h, w), of pictures in [0, 1]; `dropped` (B,) bool masks residuals."""
        tokens = self.tokens(pictures)
        return tokens if self.residual is None else torch.cat([tokens, self.residual(pictures, tokens, dropped)], 1)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[object]:
        """Standardised features as the mean of a posterior without width."""
        found = point_posterior((self.features(x / 2 + 0.5) - feature_column(self.mean)) / feature_column(self.std))
        return AutoencoderKLOutput(latent_dist=found) if return_dict else (found,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: object = None) -> DecoderOutput | tuple[Tensor]:
        """Pictures, about in [-1, 1], of standardised features."""
        x = self.decoder(z * feature_column(self.std) + feature_column(self.mean))
        return DecoderOutput(sample=x) if return_dict else (x,)

    def measure(self, pictures: Tensor) -> None:
        """Store the statistics of the residual and of every channel over pictures (N, 3, H, W), bytes or in [0, 1]."""
        self.eval()
        place = self.mean.device
        if self.residual is not None:
            residual = self.residual
            own = channel_statistics(pictures, lambda part: residual.raw(part.to(place)))
            tokens = channel_statistics(pictures, lambda part: self.tokens(part.to(place)))
            residual.alignment.copy_(torch.stack([values.mean() for values in (*own, *tokens)]))
        mean, std = channel_statistics(pictures, lambda part: self.features(part.to(place)))
        self.mean.copy_(mean)
        self.std.copy_(std)


class Residual(nn.Module):
    """Trained channels for what the frozen tokens lack: a small transformer, then Linear-GELU-Linear."""

    def __init__(self, size: int, patch: int, channels: int, settings: Mapping[str, int] | None = None) -> None:
        super().__init__()
        shape = {"width": 64, "layers": 2, "heads": 4, **(settings or {})}
        self.trunk = small_encoder(size, patch, **shape)
        self.head = nn.Sequential(
            nn.Linear(shape["width"], shape["width"]), nn.GELU(), nn.Linear(shape["width"], channels)
        )
        self.missing = nn.Parameter(torch.zeros(channels))
        self.alignment: Tensor  # mean and deviation of the own channels, then of the tokens
        self.register_buffer("alignment", torch.tensor([0.0, 1.0, 0.0, 1.0]))

    def raw(self, pictures: Tensor) -> Tensor:
        """Channels (B, R, h, w) before the alignment."""
        return self.head(self.trunk(pictures).movedim(1, -1)).movedim(-1, 1)

    def forward(self, pictures: Tensor, tokens: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Aligned channels (B, R, h, w): by the batch's statistics in training, else by the stored ones.

        The published code takes those of the batch always.
        """
        raw = self.raw(pictures)
        stored = torch.stack([*feature_std(raw), *feature_std(tokens)]) if self.training else self.alignment
        mean, std, to_mean, to_std = stored.detach().unbind()
        aligned = (raw - mean) / (std + SMALL) * to_std + to_mean
        if dropped is None:
            return aligned
        return torch.where(dropped[:, None, None, None], feature_column(self.missing), aligned)


def feature_std(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over everything and mean over channels of the deviation, of features (B, C, h, w)."""
    return features.mean(), features.std((0, 2, 3)).mean()


__all__ = ["FeatureAutoencoder", "ModelMixin"]  # diffusers looks up ModelMixin here to learn how to load
