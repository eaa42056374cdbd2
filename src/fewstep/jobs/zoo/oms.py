"""Stage `oms`: the network of One More Step, from pure noise and a condition to minus the mean of the data."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field

from fewstep.denoiser import fingerprint
from fewstep.train.classes import class_numbers
from fewstep.train.latents import encode_pictures, open_any_pipeline
from fewstep.train.stage import Count, Fraction, NotNegative, Positive, Stage, StageBatch, StageConfig
from fewstep.zoo import SHIPPED, shipped
from fewstep.zoo.dit import NO_CLASS
from fewstep.zoo.oms import class_network, save_network, text_network
from fewstep.zoo.text import tokens_of


class OneMoreStepConfig(StageConfig):
    """Settings of One More Step."""

    pipeline: str = Field("emoji-teacher", description="shipped name or folder; its latents and its text encoder")
    steps: Count = 800
    batch: Count = 64
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 0.0
    ema: Fraction = 0.99
    channels: tuple[int, ...] = Field((16, 32), description="of the UNet of a text pipeline")
    width: Count = Field(64, description="of the transformer of a class-conditional pipeline")
    layers: Count = 2
    dropout: Fraction = Field(0.1, description="rate at which the condition is dropped, for guidance")


def build(config: OneMoreStepConfig) -> Stage:
    """Mean squared error of v = -x0 in pure noise; the noise is independent of x0, so the optimum is -E[x0 | c]."""
    images, captions = config.pictures()
    pipe = open_any_pipeline(shipped(config.pipeline) if config.pipeline in SHIPPED else config.pipeline)
    cuda = config.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    text = getattr(pipe, "text_encoder", None)
    if text is not None:
        conditions, nothing = tokens_of(pipe.tokenizer, captions), tokens_of(pipe.tokenizer, [""])[0]
    else:
        conditions, nothing = class_numbers(captions, pipe.labels)[:, None], torch.tensor([NO_CLASS])
    latents = encode_pictures(pipe.vae, images, captions, conditions, device)
    channels, side = latents.both.shape[2], latents.both.shape[-1]
    torch.manual_seed(config.seed)
    if text is not None:
        text.to(device).eval().requires_grad_(False)
        network = text_network(channels, side, text.config.hidden_size, config.channels)
    else:
        network = class_network(channels, side, config.width, config.layers)

    def batch(generator: torch.Generator) -> StageBatch:
        clean, condition = latents.draw(config.batch, nothing, config.dropout, generator)
        return {"clean": clean, "condition": condition}

    def loss(given: StageBatch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        noise = torch.randn(given["clean"].shape, generator=generator).to(device)
        condition, time = given["condition"].to(device), torch.zeros(len(noise), dtype=torch.long, device=device)
        if text is not None:
            with torch.no_grad():
                condition = text(condition).last_hidden_state
            predicted = network(noise, time, condition).sample
        else:
            predicted = network(noise, time, condition[:, 0]).sample
        return (predicted.float() + given["clean"].to(device)).square().mean(), {}

    def save(out: Path) -> None:
        save_network(network.eval().half(), out, fingerprint(pipe.vae))

    return Stage(modules={"oms": network}, batch=batch, loss=loss, save=save)
