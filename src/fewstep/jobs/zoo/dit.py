"""Stage `dit`: a class-conditional transformer in any latents, by noise or by flow, as a `DiTPipeline`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from fewstep.latents import time_shift
from fewstep.train.classes import classes_of
from fewstep.train.latents import encode_pictures, open_vae, stratified_times
from fewstep.train.stage import Count, Fraction, NotNegative, Positive, Stage, StageBatch, StageConfig
from fewstep.zoo.dit import NO_CLASS, class_denoiser, class_pipeline, flow_scheduler, forget_unused
from fewstep.zoo.unet import ddim_scheduler


class DiTConfig(StageConfig):
    """Settings of the class-conditional model; the defaults are those of the shipped `mnist-dit`."""

    data: str = Field("mnist.npz", description="npz of MNIST, a folder or an npz whose captions are names of classes")
    size: int = Field(32, ge=8, description="side of the pictures in pixels")
    vae: str = Field("runs/train-vae", description="folder of stage vae, rae or svg; pixels; a shipped pipeline")
    steps: Count = 5000
    batch: Count = 128
    learning_rate: Positive = 1.5e-3
    weight_decay: NotNegative = 0.01
    warmup: int = 200
    ema: Fraction = 0.999
    width: Count = 128
    layers: Count = 5
    heads: Count = 4
    patch: Count = 1
    class_dropout: Fraction = 0.1
    objective: Literal["noise", "flow"] = Field("noise", description="noise of 1000 betas, or velocity of a flow")
    shift: float = Field(0, ge=0, description="of a flow's times towards noise; 0: by the size of the latents")


def build(config: DiTConfig) -> Stage:
    """DiTTransformer2DModel on latents; the loss is that of `noise_loss` or `flow_loss`."""
    images, captions = config.pictures()
    names, classes = classes_of(captions)
    vae = open_vae(config.vae, images)
    cuda = config.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    latents = encode_pictures(vae, images, captions, classes[:, None], device)
    nothing = torch.tensor([NO_CLASS])
    torch.manual_seed(config.seed)
    channels, side = latents.both.shape[2], latents.both.shape[-1]
    model = class_denoiser(config.width, config.layers, config.heads, channels, side, config.patch)
    shift = config.shift or time_shift(latents.both[0, 0].numel())
    scheduler = flow_scheduler(shift) if config.objective == "flow" else ddim_scheduler("epsilon")

    def batch(generator: torch.Generator) -> StageBatch:
        clean, labels = latents.draw(config.batch, nothing, config.class_dropout, generator)
        return {"clean": clean, "labels": labels[:, 0]}

    def network(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return model(x.to(device), time.to(device), labels.to(device)).sample.float()

    def loss(given: StageBatch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        if config.objective == "flow":
            return flow_loss(network, given, shift, generator), {}
        return noise_loss(network, given, scheduler.alphas_cumprod, generator), {}

    def save(out: Path) -> None:
        forget_unused(model, len(names))
        class_pipeline(vae.half(), model.eval().half(), scheduler, names).save_pretrained(out)

    return Stage(modules={"transformer": model}, frozen={"vae": vae}, batch=batch, loss=loss, save=save)


Network = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def noise_loss(
    network: Network, given: StageBatch, cumulative: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Mean squared error of the noise at stratified times (arXiv 2006.11239, eq. 14)."""
    clean, time = given["clean"], stratified_times(len(given["clean"]), cumulative, generator)
    noise = torch.randn(clean.shape, generator=generator)
    bar = cumulative[time][:, None, None, None]
    noisy = bar.sqrt() * clean + (1 - bar).sqrt() * noise
    predicted = network(noisy, time, given["labels"])
    return (predicted - noise.to(predicted)).square().mean()


def flow_loss(network: Network, given: StageBatch, shift: float, generator: torch.Generator) -> torch.Tensor:
    """Mean squared error of the velocity eps - x0 at stratified times that are shifted towards noise."""
    clean = given["clean"]
    count = len(clean)
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    t = shift * u / (1 + (shift - 1) * u)
    noise = torch.randn(clean.shape, generator=generator)
    noisy = torch.lerp(clean, noise, t[:, None, None, None])
    predicted = network(noisy, 1000 * t, given["labels"])
    return (predicted - (noise - clean).to(predicted)).square().mean()
