"""What a generator is trained in: pixels, an autoencoder's latents, or frozen features with a trained decoder."""

from fewstep.latents.encoders import Encoder, load_encoder, small_encoder
from fewstep.latents.features import FeatureAutoencoder
from fewstep.latents.latent import Latent, load_latent, normalised, open_autoencoder, time_shift
from fewstep.latents.pixels import PixelAutoencoder

__all__ = [
    "Encoder",
    "FeatureAutoencoder",
    "Latent",
    "PixelAutoencoder",
    "load_encoder",
    "load_latent",
    "normalised",
    "open_autoencoder",
    "small_encoder",
    "time_shift",
]
