"""Pixels behind the interface of an autoencoder, so that every pipeline and stage can work on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from fewstep.latents.surface import channel_statistics, feature_column, point_posterior
from fewstep.registration import component


@component
class PixelAutoencoder(ModelMixin, ConfigMixin):
    """The identity between pictures (B, 3, H, W) in [-1, 1] and standardised ones.

    `measure` stores the mean and deviation of each colour, 0 and 1 before it.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        latent_channels: int = 3,
        block_out_channels: Sequence[int] = (1,),
        scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[object]:
        """Standardised pictures as the mean of a posterior without width."""
        found = point_posterior((x - feature_column(self.mean)) / feature_column(self.std))
        return AutoencoderKLOutput(latent_dist=found) if return_dict else (found,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: object = None) -> DecoderOutput | tuple[Tensor]:
        """Pictures in [-1, 1] from standardised ones."""
        x = z * feature_column(self.std) + feature_column(self.mean)
        return DecoderOutput(sample=x) if return_dict else (x,)

    def measure(self, pictures: Tensor) -> None:
        """Store the statistics of pictures (N, 3, H, W), bytes or float in [0, 1]."""
        mean, std = channel_statistics(pictures, lambda part: 2 * part - 1)
        self.mean.copy_(mean)
        self.std.copy_(std)


__all__ = ["ModelMixin", "PixelAutoencoder"]  # diffusers looks up ModelMixin here to learn how to load
