"""Stage `quality`: tells real pictures from corrupted and badly generated ones, without caption or reference."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch.nn import functional as F

from fewstep.jobs.zoo.clip import augmented
from fewstep.jobs.zoo.corrupt import corrupted
from fewstep.pipelines.protocol import Pipeline
from fewstep.train.latents import open_pipeline
from fewstep.train.pictures import mirror_of
from fewstep.train.stage import Count, Fraction, NotNegative, Positive, Stage, StageBatch, StageConfig


class QualityConfig(StageConfig):
    """Settings of the quality reward."""

    teacher: str = Field("runs/train-teacher", description="folder of stage teacher, whose bad samples are negatives")
    steps: Count = 1500
    batch: Count = 96
    learning_rate: Positive = 1e-3
    ema: Fraction = 0.995
    seed: int = 31
    generated: int = Field(1200, ge=0, description="badly generated pictures: teacher at 2 and 3 steps")
    guidance: NotNegative = 3.0
    smoothing: float = Field(0.05, ge=0, lt=0.5, description="label smoothing, keeps the logits informative")


def build(config: QualityConfig) -> Stage:
    """QualityNet with binary cross-entropy. Positives: real pictures and their plain reconstructions (so that it
    judges the denoiser rather than the autoencoder). Negatives: corrupted pictures, decoded noisy latents, and
    samples of the teacher at too few steps, a quarter of each batch together with the corruptions."""
    from fewstep.rewards.quality import QualityNet

    images, captions = config.pictures()
    mirror = mirror_of(captions)
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    pipe = open_pipeline(config.teacher).to(device)
    clean, noisy = reconstructions(pipe, images, device, config.seed)
    bad = bad_samples(pipe, captions, config.generated, config.guidance, config.seed)
    negatives = torch.cat([noisy, bad]) if len(bad) else noisy
    torch.manual_seed(config.seed)
    net = QualityNet()

    def batch(generator: torch.Generator) -> StageBatch:
        half = config.batch // 2
        real = torch.randint(len(images), (half + half // 2,), generator=generator)
        take = torch.rand(len(real), generator=generator) < 0.5
        good = torch.where(take[:, None, None, None], images[real], clean[real]).float() / 255
        good = mirror(good, real, generator)
        wrong = torch.randint(len(negatives), (half - half // 2,), generator=generator)
        pictures = torch.cat([good[:half], corrupted(good[half:], generator), negatives[wrong].float() / 255])
        pictures = (augmented(2 * pictures - 1, generator, noise=0.0) + 1) / 2
        labels = torch.cat([torch.ones(half), torch.zeros(len(pictures) - half)])
        return {"pictures": pictures, "labels": labels}

    def loss(given: StageBatch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        logits = net(given["pictures"].to(device)).float()
        labels = given["labels"].to(device)
        soft = labels * (1 - 2 * config.smoothing) + config.smoothing
        right = ((logits.detach() > 0) == (labels > 0.5)).float().mean()
        return F.binary_cross_entropy_with_logits(logits, soft), {"right": float(right)}

    def save(out: Path) -> None:
        net.eval().half().save_pretrained(out)

    return Stage(modules={"quality": net}, batch=batch, loss=loss, save=save)


@torch.no_grad()
def reconstructions(
    pipe: Pipeline, images: torch.Tensor, device: torch.device, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decoded latents of every picture, plain and with noise of standard deviation 0.2 to 0.8 (uint8)."""
    generator = torch.Generator().manual_seed(seed)
    plain, noised = [], []
    for part in images.split(64):
        latent = pipe.vae.encode((part.float() / 127.5 - 1).to(device)).latent_dist.mean
        level = 0.2 + 0.6 * torch.rand(len(part), 1, 1, 1, generator=generator)
        noise = level * torch.randn(latent.shape, generator=generator)
        plain.append(_bytes(pipe.vae.decode(latent).sample))
        noised.append(_bytes(pipe.vae.decode(latent + noise.to(device)).sample))
    return torch.cat(plain), torch.cat(noised)


def bad_samples(pipe: Pipeline, captions: list[str], count: int, guidance: float, seed: int) -> torch.Tensor:
    """Teacher samples at 2 and 3 steps (uint8), captions drawn from training."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(captions), (count,), generator=generator).tolist()
    pipe.set_progress_bar_config(disable=True)
    parts = []
    for number, start in enumerate(range(0, count, 64)):
        prompts = [captions[index] for index in chosen[start : start + 64]]
        steps = 2 + number % 2
        pictures = pipe(
            prompts, num_inference_steps=steps, guidance_scale=guidance, generator=generator, output_type="pt"
        )
        parts.append(_bytes(2 * pictures.images.float() - 1))
    return torch.cat(parts) if parts else torch.empty(0, 3, 1, 1, dtype=torch.uint8)


def _bytes(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures in [-1, 1] as uint8 on the CPU."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
