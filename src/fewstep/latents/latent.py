"""One interface to every latent: pictures in [0, 1] there and back, whatever lies between."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.files import read_json, write_folder
from fewstep.latents.features import FeatureAutoencoder
from fewstep.latents.pixels import PixelAutoencoder
from fewstep.ownership import Over
from fewstep.zoo import BASES, SHIPPED, shipped

BASE = 4096
"""Numbers of a latent that needs no shift: 4 x 32 x 32 of 256 pixels with Stable Diffusion's autoencoder."""


def time_shift(numbers: int, base: int = BASE) -> float:
    """Shift of a flow's times towards noise for latents of so many numbers: sqrt(numbers / base), at least 1.

    arXiv 2510.11690: what a noise level hides falls with the number of numbers that show the same thing. Below the
    base the formula would push towards the data, which nobody has tried: no shift there.
    """
    return max(1.0, math.sqrt(numbers / base))


@dataclass(frozen=True, eq=False)
class Latent:
    """An autoencoder of diffusers' kind as two functions; its statistics are those stored in it.

    Attributes:
        module: `AutoencoderKL`, `FeatureAutoencoder` (RAE, SVG) or `PixelAutoencoder`.
        size: Side of the pictures in pixels; that of its configuration unless given.
    """

    module: Any
    size: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", self.size or int(self.module.config.sample_size))

    @property
    def kind(self) -> str:
        """`pixels`, `vae`, `rae` or `svg`."""
        if isinstance(self.module, FeatureAutoencoder):
            return "rae" if self.module.residual is None else "svg"
        return "pixels" if isinstance(self.module, PixelAutoencoder) else "vae"

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        like = [*self.module.parameters(), *self.module.buffers()][0]
        with torch.no_grad():
            channels, high, wide = self.encode(like.new_zeros(1, 3, self.size, self.size)).shape[1:]
        return channels, high, wide

    @property
    def shift(self) -> float:
        """The default shift of a flow's times here."""
        return time_shift(math.prod(self.shape))

    def encode(self, pictures: Tensor) -> Tensor:
        """Standardised latents (B, C, h, w) of pictures (B, 3, H, W) in [0, 1]: the posterior's mean."""
        return normalised(self.module, self.module.encode(2 * pictures - 1).latent_dist.mean)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1]."""
        return (self.module.decode(_raw(self.module, latents)).sample / 2 + 0.5).clamp(0, 1)

    def save_pretrained(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write a folder (config.json, safetensors) that `load_latent` opens, and every diffusers pipeline as `vae`.

        overwrite: replace a folder that fewstep wrote; others are never replaced (FewstepError).
        """
        over: Over = "ours" if overwrite else "nothing"
        write_folder(folder, lambda draft: self.module.save_pretrained(draft, safe_serialization=True), over)


def normalised(module: Any, mean: Tensor) -> Tensor:
    """Latents as networks see them, from an autoencoder's own, by the statistics in its configuration."""
    shift, scale = _affine(module, mean)
    return (mean - shift) * scale


def _raw(module: Any, latents: Tensor) -> Tensor:
    shift, scale = _affine(module, latents)
    return latents / scale + shift


def _affine(module: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    config = module.config
    scale = like.new_tensor(float(config.scaling_factor))
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        mean, std = (like.new_tensor(config[name]).reshape(-1, 1, 1) for name in ("latents_mean", "latents_std"))
        return mean, scale / std
    return like.new_tensor(float(config.get("shift_factor") or 0)), scale


def load_latent(spec: str | Path, size: int = 0) -> Latent:
    """The latent of that name, frozen and in float32 (see `open_autoencoder`).

    size: side of the pictures, where it is not that of the configuration.
    """
    return Latent(open_autoencoder(spec, size), size)


def open_autoencoder(spec: str | Path, size: int = 0) -> nn.Module:
    """The autoencoder of `pixels`, of a shipped pipeline, of a pipeline's or an autoencoder's folder, or of a hub id.

    Raises:
        FewstepError: nothing can be opened there, or it is of an unknown class.
    """
    name = str(spec)
    if name == "pixels":
        return PixelAutoencoder(size or 32).eval()
    place = shipped(BASES.get(name, name)) if name in SHIPPED else Path(name)
    if (place / "model_index.json").exists():
        place = place / "vae"
    if not (place / "config.json").exists() and (place.exists() or name.count("/") != 1 or name[0] in "./~"):
        raise FewstepError(
            "there is no autoencoder here",
            value=name,
            hint="Run `fewstep train vae`, `rae` or `svg` first and give its folder, or pixels, or a shipped name.",
        )
    kind = _class_of(place) if place.exists() else None
    try:
        found = _known(kind).from_pretrained(
            place if place.exists() else name, dtype=torch.float32, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, FewstepError):
            raise
        what = f"cannot open the autoencoder: {str(error).splitlines()[0]}"
        raise FewstepError(what, value=name, hint="Give a folder or hub id of an AutoencoderKL.") from error
    opened: nn.Module = found.eval().requires_grad_(False)
    return opened


def _class_of(place: Path) -> str:
    return str(read_json(place / "config.json").get("_class_name"))


def _known(kind: str | None) -> Any:
    from diffusers import AutoencoderKL

    known = {c.__name__: c for c in (AutoencoderKL, FeatureAutoencoder, PixelAutoencoder)}
    if kind is not None and kind not in known:
        raise FewstepError("an autoencoder of an unknown class", value=kind, hint=f"Known: {', '.join(known)}.")
    return known[kind or "AutoencoderKL"]
