"""Stage `teacher`: the multi-step text-to-image model, v-prediction with captions dropped for guidance."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field

from fewstep.train.latents import encode_pictures, open_vae, stratified_times
from fewstep.train.stage import Count, Fraction, Positive, Stage, StageBatch, StageConfig
from fewstep.zoo.text import opens_in_float32, tokens_of, train_tokenizer
from fewstep.zoo.unet import ddim_scheduler, denoiser, pipeline, text_encoder


class TeacherConfig(StageConfig):
    """Settings of the teacher."""

    vae: str = Field("runs/train-vae", description="folder of stage vae")
    steps: Count = 4000
    batch: Count = 64
    learning_rate: Positive = 1.5e-3
    ema: Fraction = 0.999
    channels: tuple[int, ...] = (64, 128)
    heads: Count = 4
    text_width: Count = 128
    text_layers: Count = 2
    caption_dropout: Fraction = 0.1


def build(config: TeacherConfig) -> Stage:
    """UNet and text encoder trained together on latents; loss is the mean squared error of v (arXiv 2202.00512)."""
    images, captions = config.pictures()
    tokenizer = train_tokenizer(captions)
    vae = open_vae(config.vae, images)
    cuda = config.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    latents = encode_pictures(vae, images, captions, tokens_of(tokenizer, captions), device)
    empty = tokens_of(tokenizer, [""])[0]
    torch.manual_seed(config.seed)
    text = text_encoder(tokenizer, config.text_width, config.text_layers)
    channels = latents.both.shape[2]
    unet = denoiser(config.channels, channels, latents.both.shape[-1], config.text_width, config.heads)
    unet.to(memory_format=torch.channels_last)  # convolutions of this size train faster so on a CPU
    scheduler = ddim_scheduler()
    cumulative = scheduler.alphas_cumprod

    def batch(generator: torch.Generator) -> StageBatch:
        clean, tokens = latents.draw(config.batch, empty, config.caption_dropout, generator)
        return {"clean": clean, "tokens": tokens, "time": stratified_times(config.batch, cumulative, generator)}

    def loss(given: StageBatch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        clean, time = given["clean"], given["time"]
        noise = torch.randn(clean.shape, generator=generator)
        alpha = cumulative[time].sqrt()[:, None, None, None]
        sigma = (1 - cumulative[time]).sqrt()[:, None, None, None]
        noisy, v = (x.to(device) for x in (alpha * clean + sigma * noise, alpha * noise - sigma * clean))
        states = text(given["tokens"].to(device)).last_hidden_state
        predicted = unet(noisy, time.to(device), states).sample
        return (predicted.float() - v).square().mean(), {}

    def save(out: Path) -> None:
        unet.to(memory_format=torch.contiguous_format)
        parts = (vae.half(), text.eval().half(), tokenizer, unet.eval().half())
        pipeline(*parts, scheduler).save_pretrained(out)
        opens_in_float32(out / "text_encoder")

    return Stage(modules={"unet": unet, "text": text}, frozen={"vae": vae}, batch=batch, loss=loss, save=save)
