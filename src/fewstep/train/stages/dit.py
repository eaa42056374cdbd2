"""Stage `dit`: a class-conditional transformer in the autoencoder's latents, noise prediction, as a `DiTPipeline`."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field

from fewstep.data import load
from fewstep.models.dit import NO_CLASS, class_denoiser, class_pipeline, forget_unused
from fewstep.models.unet import ddim_scheduler
from fewstep.train.classes import classes_of
from fewstep.train.latents import encode, open_vae, stratified_times
from fewstep.train.stage import Batch, Count, Fraction, Positive, Stage, StageConfig, Weight


class Config(StageConfig):
    """Settings of the class-conditional model; the defaults are those of the shipped `mnist-dit`."""

    data: str = Field("mnist.npz", description="npz of MNIST, a folder or an npz whose captions are names of classes")
    size: int = Field(32, ge=8, description="side of the pictures in pixels")
    vae: str = Field("runs/train-vae", description="folder of stage vae")
    steps: Count = 5000
    batch: Count = 128
    learning_rate: Positive = 1.5e-3
    weight_decay: Weight = 0.01
    warmup: int = 200
    ema: Fraction = 0.999
    width: Count = 128
    layers: Count = 5
    heads: Count = 4
    patch: Count = 1
    class_dropout: Fraction = 0.1


def build(config: Config) -> Stage:
    """DiTTransformer2DModel on latents; loss is the mean squared error of the noise (arXiv 2006.11239, eq. 14)."""
    images, captions = load(config.data, "train", config.size)
    names, classes = classes_of(captions)
    vae = open_vae(config.vae)
    cuda = config.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    latents = encode(vae, images, captions, classes[:, None], device)
    nothing = torch.tensor([NO_CLASS])
    torch.manual_seed(config.seed)
    channels, side = latents.both.shape[2], latents.both.shape[-1]
    model = class_denoiser(config.width, config.layers, config.heads, channels, side, config.patch)
    scheduler = ddim_scheduler("epsilon")
    cumulative = scheduler.alphas_cumprod

    def batch(generator: torch.Generator) -> Batch:
        clean, labels = latents.draw(config.batch, nothing, config.class_dropout, generator)
        return {"clean": clean, "labels": labels[:, 0], "time": stratified_times(config.batch, cumulative, generator)}

    def loss(given: Batch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        clean, time = given["clean"], given["time"]
        noise = torch.randn(clean.shape, generator=generator)
        bar = cumulative[time][:, None, None, None]
        noisy = (bar.sqrt() * clean + (1 - bar).sqrt() * noise).to(device)
        predicted = model(noisy, time.to(device), given["labels"].to(device)).sample
        return (predicted.float() - noise.to(device)).square().mean(), {}

    def save(out: Path) -> None:
        forget_unused(model, len(names))
        class_pipeline(vae.half(), model.eval().half(), scheduler, names).save_pretrained(out)

    return Stage(modules={"transformer": model}, frozen={"vae": vae}, batch=batch, loss=loss, save=save)
