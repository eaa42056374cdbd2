"""Stage `clip`: pictures and captions in one space; the alignment reward."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch.nn import functional as F

from fewstep.train.pictures import mirror_of, signed
from fewstep.train.stage import Count, Fraction, NotNegative, Positive, Stage, StageBatch, StageConfig
from fewstep.zoo.text import text_config, tokens_of, train_tokenizer


class ClipConfig(StageConfig):
    """Settings of the CLIP reward; it sees the training split only, like the generators."""

    steps: Count = 1000
    batch: Count = 64
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 0.05
    ema: Fraction = 0.99
    seed: int = 11
    split: Literal["train", "all"] = "train"
    patch: Count = 8
    width: Count = 128
    layers: Count = 3
    text_width: Count = 96
    text_layers: Count = 2


def build(config: ClipConfig) -> Stage:
    """CLIPModel with the symmetric cross-entropy of arXiv 2103.00020; equal captions count as one class."""
    images, captions = config.pictures(config.split)
    tokenizer = train_tokenizer(captions)
    tokens = tokens_of(tokenizer, captions)
    mirror = mirror_of(captions)
    torch.manual_seed(config.seed)
    model = clip_model(config, tokenizer)
    parameter = next(model.parameters())

    def batch(generator: torch.Generator) -> StageBatch:
        chosen = torch.randint(len(images), (config.batch,), generator=generator)
        pictures = mirror(signed(images[chosen]), chosen, generator)
        return {"pictures": augmented(pictures, generator), "tokens": tokens[chosen]}

    def loss(given: StageBatch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        ids = given["tokens"].to(parameter.device)
        out = model(input_ids=ids, pixel_values=given["pictures"].to(parameter.device))
        logits = out.logits_per_image.float()
        same = (ids[:, None] == ids[None]).all(-1).float()
        target = same / same.sum(1, keepdim=True)
        value = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return value, {"right": float((logits.detach().argmax(1) == same.argmax(1)).float().mean())}

    def save(out: Path) -> None:
        model.eval().half().save_pretrained(out)
        tokenizer.save_pretrained(out)
        image_processor(config.size).save_pretrained(out)

    return Stage(modules={"clip": model}, batch=batch, loss=loss, save=save)


def clip_model(config: ClipConfig, tokenizer):  # type: ignore[no-untyped-def]
    """A small CLIPModel for pictures in [-1, 1]."""
    from transformers import CLIPConfig, CLIPModel

    vision = {
        "hidden_size": config.width,
        "intermediate_size": 3 * config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": 4,
        "image_size": config.size,
        "patch_size": config.patch,
        "projection_dim": 64,
    }
    text = text_config(tokenizer, config.text_width, config.text_layers) | {"projection_dim": 64}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def image_processor(size: int):  # type: ignore[no-untyped-def]
    """Pictures to [-1, 1] at the trained size; without torchvision."""
    from transformers import CLIPImageProcessor

    side = {"height": size, "width": size}
    half = [0.5, 0.5, 0.5]
    return CLIPImageProcessor(
        size=side, do_center_crop=False, crop_size=side, image_mean=half, image_std=half, do_convert_rgb=True
    )


def augmented(pictures: torch.Tensor, generator: torch.Generator, noise: float = 0.08) -> torch.Tensor:
    """Shift each picture by up to 3 pixels on white and add a little noise, against overfitting to the renderer."""
    count, _, height, width = pictures.shape
    padded = F.pad(pictures, (3, 3, 3, 3), value=1.0)
    dy, dx = torch.randint(0, 7, (2, count), generator=generator)
    rows = (dy[:, None] + torch.arange(height))[:, None, :, None]
    columns = (dx[:, None] + torch.arange(width))[:, None, None, :]
    moved = padded[torch.arange(count)[:, None, None, None], torch.arange(3)[None, :, None, None], rows, columns]
    level = noise * torch.rand(count, 1, 1, 1, generator=generator)
    return (moved + level * torch.randn(moved.shape, generator=generator)).clamp(-1, 1)
