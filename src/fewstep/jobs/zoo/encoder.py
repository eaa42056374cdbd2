"""Stage `encoder`: a small self-supervised vision transformer, where the weights of DINO are absent."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.latents import small_encoder
from fewstep.train.stage import Count, Fraction, NotNegative, Positive, Stage, StageBatch, StageConfig


class EncoderConfig(StageConfig):
    """Settings of the encoder."""

    steps: Count = 1000
    batch: Count = 128
    learning_rate: Positive = 2e-3
    weight_decay: NotNegative = 1e-4
    ema: Fraction = 0.99
    patch: int = Field(8, ge=1, description="side of a token in pixels")
    width: Count = 64
    layers: Count = 3
    heads: Count = 4
    projector: Count = Field(64, description="width of the space that the loss is computed in")
    temperature: Positive = 0.1
    turn: NotNegative = Field(15.0, description="largest rotation of a view in degrees")
    zoom: Fraction = Field(0.3, description="largest change of scale of a view")
    move: Fraction = Field(0.15, description="largest shift of a view, in sides of the picture")
    contrast: Fraction = Field(0.4, description="largest change of contrast of a view")


def build(config: EncoderConfig) -> Stage:
    """SimCLR (arXiv 2002.05709) on the mean of the tokens of two views of each picture."""
    images, _ = config.pictures()
    torch.manual_seed(config.seed)
    encoder = small_encoder(config.size, config.patch, config.width, config.layers, config.heads)
    projector = nn.Sequential(
        nn.Linear(config.width, config.projector),
        nn.BatchNorm1d(config.projector),
        nn.ReLU(),
        nn.Linear(config.projector, config.projector),
    )
    parameter = next(encoder.parameters())

    def batch(generator: torch.Generator) -> StageBatch:
        chosen = images[torch.randint(len(images), (config.batch,), generator=generator)].float() / 255
        return {"views": [view(chosen, config, generator) for _ in range(2)]}

    def loss(given: StageBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        both = torch.cat(given["views"]).to(parameter.device)
        a, b = projector(encoder(both).mean((2, 3))).float().chunk(2)
        return contrastive(a, b, config.temperature), {}

    def save(out: Path) -> None:
        encoder.eval().half().save_pretrained(out)

    return Stage(modules={"encoder": encoder, "projector": projector}, batch=batch, loss=loss, save=save)


def contrastive(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding a picture's other view among all 2 B - 1 (arXiv 2002.05709, eq. 1); views (B, d)."""
    both = F.normalize(torch.cat([a, b]), dim=1)
    alike = both @ both.T / temperature
    alike = alike.masked_fill(torch.eye(len(both), dtype=torch.bool, device=both.device), -torch.inf)
    other = (torch.arange(len(both), device=both.device) + len(a)) % len(both)
    return F.cross_entropy(alike, other)


def view(pictures: Tensor, config: EncoderConfig, generator: torch.Generator) -> Tensor:
    """Pictures (B, 3, H, W) turned, zoomed, moved and changed in contrast at random; no mirror, which digits resent."""
    turn, zoom, across, down, contrast = (2 * torch.rand(5, len(pictures), generator=generator) - 1).unbind()
    angle, scale = turn * math.radians(config.turn), 1 + zoom * config.zoom
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([cos, -sin, 2 * config.move * across], 1), torch.stack([sin, cos, 2 * config.move * down], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(pictures.shape), align_corners=False)
    moved = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    return (moved * (1 + config.contrast * contrast)[:, None, None, None]).clamp(0, 1)
