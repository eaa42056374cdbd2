"""Stage `classifier`: tells classes apart; its features and its judgement measure class-conditional models."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch.nn import functional as F

from fewstep.train.classes import classes_of
from fewstep.train.pictures import signed
from fewstep.train.stage import Count, Fraction, NotNegative, Positive, Stage, StageBatch, StageConfig


class ClassifierConfig(StageConfig):
    """Settings of the classifier; the defaults are those of the shipped `mnist-features`."""

    data: str = Field("mnist.npz", description="npz of MNIST, a folder or an npz whose captions are names of classes")
    size: int = Field(32, ge=8, description="side of the pictures in pixels")
    steps: Count = 1500
    batch: Count = 64
    learning_rate: Positive = 3e-3
    weight_decay: NotNegative = 0.02
    ema: Fraction = 0.99
    seed: int = 41
    widths: tuple[int, ...] = (24, 48, 64, 64)
    shift: int = Field(2, ge=0, description="largest random shift in pixels")
    smoothing: float = Field(0.05, ge=0, lt=0.5, description="label smoothing, keeps features from saturating")


def build(config: ClassifierConfig) -> Stage:
    """ClassNet with cross-entropy on randomly shifted pictures."""
    from fewstep.metrics.classifier import ClassNet

    images, captions = config.pictures()
    names, classes = classes_of(captions)
    torch.manual_seed(config.seed)
    net = ClassNet(names=names, widths=config.widths)
    parameter = next(net.parameters())

    def batch(generator: torch.Generator) -> StageBatch:
        chosen = torch.randint(len(images), (config.batch,), generator=generator)
        moves = torch.randint(-config.shift, config.shift + 1, (config.batch, 2), generator=generator).tolist()
        pictures = torch.stack([image.roll(move, (1, 2)) for image, move in zip(images[chosen], moves, strict=True)])
        return {"pictures": (signed(pictures) + 1) / 2, "classes": classes[chosen]}

    def loss(given: StageBatch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        logits = net(given["pictures"].to(parameter.device)).float()
        labels = given["classes"].to(parameter.device)
        right = (logits.detach().argmax(1) == labels).float().mean()
        return F.cross_entropy(logits, labels, label_smoothing=config.smoothing), {"right": float(right)}

    def save(out: Path) -> None:
        net.eval().half().save_pretrained(out)

    return Stage(modules={"classifier": net}, batch=batch, loss=loss, save=save)
