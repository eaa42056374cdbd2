"""Latents of a captioned set, computed once: pictures and, where the caption allows, their mirror images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewstep.errors import FewstepError
from fewstep.latents import PixelAutoencoder, normalised, open_autoencoder
from fewstep.train.pictures import flippable, signed


@dataclass(frozen=True, eq=False)
class CaptionedLatents:
    """Latents of captioned pictures.

    both: (2, N, C, h, w), pictures and mirrors; (1, N, C, h, w) where none may be mirrored.
    may_flip: which of them may be mirrored, (N,).
    tokens: token ids (N, L), or classes (N, 1).
    """

    both: torch.Tensor
    may_flip: torch.Tensor
    tokens: torch.Tensor

    def draw(
        self, count: int, empty: torch.Tensor, dropout: float, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (count, C, h, w) and token ids (count, L), the caption replaced by `empty` at rate `dropout`."""
        size = len(self.may_flip)
        chosen = torch.randint(size, (count,), generator=generator)
        flip = self.may_flip[chosen] & (torch.rand(count, generator=generator) < 0.5)
        drop = torch.rand(count, generator=generator) < dropout
        tokens = torch.where(drop[:, None], empty, self.tokens[chosen])
        return self.both[flip.long(), chosen], tokens


@torch.no_grad()
def encode_pictures(
    vae: Any, images: torch.Tensor, captions: Sequence[str], tokens: torch.Tensor, device: torch.device
) -> CaptionedLatents:
    """Scaled posterior means of every picture and its mirror."""
    vae = vae.to(device).eval()

    def latent(part: torch.Tensor) -> torch.Tensor:
        return normalised(vae, vae.encode(part).latent_dist.mean.float()).cpu()

    may_flip = torch.tensor([flippable(caption) for caption in captions])
    plain, mirror = [], []
    for part in images.split(64):
        pictures = signed(part).to(device)
        plain.append(latent(pictures))
        if may_flip.any():  # digits are never mirrored: half the time of a long encoding
            mirror.append(latent(pictures.flip(-1)))
    both = [plain, mirror] if mirror else [plain]
    return CaptionedLatents(torch.stack([torch.cat(parts) for parts in both]), may_flip, tokens)


def stratified_times(count: int, cumulative: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Training times (count,) int64, one from each equal slice of the table, so that the loss of a step varies less."""
    slices = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return (slices * len(cumulative)).long()


def open_vae(spec: str, images: torch.Tensor) -> Any:
    """The latents to train in, float32: a folder of stage vae, rae or svg, or what `fewstep.latents` knows by name.

    images: of the training, (N, 3, H, W) uint8; the statistics of pixels are theirs.
    """
    found = open_autoencoder(spec, images.shape[-1])
    if isinstance(found, PixelAutoencoder):
        found.measure(images)
    return found


def open_pipeline(path: str) -> Any:
    """The pipeline folder of an earlier stage, in float32."""
    from diffusers import StableDiffusionPipeline

    _need(path, "model_index.json", "teacher")
    return StableDiffusionPipeline.from_pretrained(path, dtype=torch.float32, safety_checker=None, use_safetensors=True)


def open_any_pipeline(path: str | Path) -> Any:
    """A diffusers pipeline with an autoencoder, in float32.

    Raises:
        FewstepError: no pipeline there, or one that works on pixels.
    """
    from diffusers import DiffusionPipeline

    _need(str(path), "model_index.json", "teacher")
    pipe = DiffusionPipeline.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
    if getattr(pipe, "vae", None) is None:
        raise FewstepError("this pipeline has no latents", value=str(path), hint="Give one with an autoencoder.")
    pipe.vae.requires_grad_(False)
    return pipe


def _need(path: str, file: str, stage: str) -> None:
    if not (Path(path) / file).exists():
        raise FewstepError(
            f"no result of stage {stage!r} here",
            value=path,
            hint=f"Run `fewstep train {stage}` first and give its folder.",
        )
