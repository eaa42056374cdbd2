"""How the prior of motions is trained: on pictures, then inflated, on clips of procedural furniture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.files import write_json, write_tensors
from fewstep.tasks.articulation.inflation import InflatedNetwork
from fewstep.tasks.articulation.objects import FAMILIES, random_object
from fewstep.tasks.articulation.prior import (
    FAMILY_NAMES,
    PROCESS,
    PictureNetwork,
    PriorSettings,
    as_denoiser,
    clip_inputs,
    clips,
    condition_of,
    new_prior,
)
from fewstep.train.loop import accelerator_for, fit
from fewstep.train.stage import Stage, StageBatch, StageConfig

Clips = dict[str, Tensor]
"""`clips` (N, V, F, 3, H, W) in [-1, 1], `rest`, `mask` and `family` of N objects moving."""


@torch.no_grad()
def made_clips(count: int, settings: PriorSettings, points: int = 500, seed: int = 0) -> Clips:
    """Random objects of all families in turn, each moving to the end of its travel; float16."""
    generator, rows = torch.Generator().manual_seed(seed), list[dict[str, Tensor]]()
    for k in range(count):
        made = random_object(list(FAMILIES)[k % len(FAMILIES)], generator)
        cloud, joint = made.points(points, seed=seed + k)
        told = condition_of(cloud, made.family, settings)
        rows.append({"clips": clips(cloud, joint, settings).half()[None], **told})
    found = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    return {name: value.half() if value.is_floating_point() else value for name, value in found.items()}


def train_prior(
    data: Clips,
    settings: PriorSettings,
    folder: Path,
    *,
    picture_steps: int = 800,
    steps: int = 3000,
    batch: int = 4,
    learning_rate: float = 1e-3,
    seed: int = 0,
    quiet: bool = True,
) -> InflatedNetwork:
    """Pictures first, then clips by the inflated network; goes on from its checkpoints in `folder` when called again.

    Args:
        data: see `made_clips`.
        settings: of the prior.
        folder: of checkpoints and of the result, `prior.json` and `prior.safetensors` (float16).
        picture_steps: of the image network, on single frames.
        steps: of the inflated network, all of whose weights go on.
        batch: objects a step; as many pictures in the first stage as they have in the second.
        learning_rate: of both, with a warm-up and a cosine; a text is left out in one of ten.
        seed: of weights, batches and noise.
        quiet: show no progress.
    """
    eyes = settings.views[:, 2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pictures = PictureNetwork(settings)
        common: dict[str, Any] = {"learning_rate": learning_rate, "ema": 0.995, "seed": seed, "device": "cpu"}

        def of_pictures(given: StageBatch, t: Tensor, noisy: Tensor) -> Tensor:
            inputs = clip_inputs(noisy, given["rest"], eyes)
            rows = given["frame"]
            chosen = inputs[torch.arange(len(rows)), rows[:, 0], rows[:, 1]]
            return pictures(chosen, PROCESS.network_time(t).float(), given["family"])

        stage = _stage(pictures, data, batch * settings.frames * len(eyes), of_pictures, alone=True)
        config = StageConfig(steps=picture_steps, **common)
        fit(stage, config, folder / "pictures", accelerator_for(config), quiet)
        network = new_prior(settings, pictures)
        denoiser = as_denoiser(network, settings)

        def of_clips(given: StageBatch, t: Tensor, noisy: Tensor) -> Tensor:
            told = {name: given[name] for name in ("rest", "mask", "family")}
            return denoiser.raw(noisy, t, told)

        stage = _stage(network, data, batch, of_clips, alone=False)
        config = StageConfig(steps=steps, **common)
        fit(stage, config, folder / "clips", accelerator_for(config), quiet)
    save_prior(network, settings, folder)
    return network


def save_prior(network: nn.Module, settings: PriorSettings, folder: Path) -> None:
    """Write `prior.json` and `prior.safetensors`."""
    write_tensors(folder / "prior.safetensors", {k: v.half() for k, v in network.state_dict().items()}, over="all")
    write_json(folder / "prior.json", {"fewstep": "motion prior", "settings": asdict(settings)}, over="all")


def _stage(
    network: nn.Module,
    data: Clips,
    count: int,
    ask: Callable[[StageBatch, Tensor, Tensor], Tensor],
    alone: bool,
) -> Stage:
    """Matching of v at uniform times, one for all pictures of a clip; `alone`: of single pictures."""

    def batch(generator: torch.Generator) -> StageBatch:
        rows = torch.randint(len(data["family"]), (count,), generator=generator)
        found = {name: value[rows] for name, value in data.items()}
        found = {name: value.float() if value.is_floating_point() else value for name, value in found.items()}
        gone = torch.rand(count, generator=generator) < 0.1
        found["family"] = found["family"].masked_fill(gone, len(FAMILY_NAMES) - 1)
        views, frames = found["clips"].shape[1:3]
        places = [torch.randint(n, (count,), generator=generator) for n in (views, frames)]
        return {**found, "frame": torch.stack(places, 1)}

    def loss(given: StageBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        clean, size = given["clips"], len(given["clips"])
        t = 1e-3 + (1 - 2e-3) * (torch.arange(size) + torch.rand(size, generator=generator)).double() / size
        noise = torch.randn(clean.shape, generator=generator)
        alpha, sigma = PROCESS.scales(t, clean)
        wanted = alpha * noise - sigma * clean
        if alone:
            rows = given["frame"]
            wanted = wanted[torch.arange(size), rows[:, 0], rows[:, 1]]
        return (ask(given, t, PROCESS.add_noise(clean, noise, t)) - wanted).square().mean(), {}

    return Stage({"network": network}, batch, loss, save=lambda folder: None)
