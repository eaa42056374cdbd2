"""How a causal video network is run while it is trained: forced by real frames, or on its own roll-out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.cache import CachePolicy
from fewstep.denoiser import Denoiser
from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Batch, Networks, Rollout, Samples
from fewstep.distillation.part import part
from fewstep.distillation.rollout import unit_noise
from fewstep.distillation.times import within
from fewstep.errors import FewstepError
from fewstep.process import Process
from fewstep.tasks.video.network import chunk_mask


def forced(
    denoiser: Denoiser,
    clean: Tensor,
    noisy: Tensor,
    t: Tensor,
    condition: Mapping[str, Any],
    chunk: int,
    window: int | None,
) -> Tensor:
    """Clean predictions (B, F, ...) of noisy frames, each chunk seeing the real frames before it (teacher forcing).

    Real and noisy frames run as one sequence: real frames are the cache, noisy ones see those before their chunk.

    Args:
        denoiser: of a `VideoTransformer`.
        clean: real frames (B, F, C, H, W).
        noisy: the same at process times `t`.
        t: (B, F).
        condition: its prompt.
        chunk: frames that are made together.
        window: frames before them that are seen; None: all.
    """
    frames = clean.shape[1]
    mask, positions = forced_mask(frames, chunk, window)
    times = torch.cat([torch.zeros_like(t), t], 1)
    placed = {"mask": mask.to(clean.device), "positions": positions.to(clean.device)}
    raw = denoiser.raw(torch.cat([clean, noisy], 1), times, {**condition, **placed})[:, frames:]
    return clean_prediction(denoiser, noisy, raw, t)


def forced_mask(frames: int, chunk: int, window: int | None) -> tuple[Tensor, Tensor]:
    """Who sees whom (2 F, 2 F) among real and then noisy frames, and their positions (2 F,)."""
    real = chunk_mask(frames, chunk, window)
    number = torch.arange(frames) // chunk
    own = number[:, None] == number[None]
    mask = torch.cat([torch.cat([real, torch.zeros_like(real)], 1), torch.cat([real & ~own, own], 1)])
    return mask, torch.arange(frames).repeat(2)


def clean_prediction(denoiser: Denoiser, noisy: Tensor, raw: Tensor, t: Tensor) -> Tensor:
    """The clean prediction (B, F, ...) where each frame has its own time (B, F)."""
    flat = noisy.flatten(0, 1)
    p, m = denoiser.prediction.sample(*denoiser.process.scales(t.flatten(), flat))
    return (p * flat + m * raw.flatten(0, 1)).view_as(noisy)


def noised(process: Process, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Frames (B, F, ...) noised, each to its own time (B, F)."""
    return process.add_noise(clean.flatten(0, 1), noise.flatten(0, 1), t.flatten()).view_as(clean)


def chunks_of(frames: int, chunk: int) -> int:
    """How many chunks frames make.

    Raises:
        FewstepError: the chunk does not divide them.
    """
    if chunk < 1 or frames % chunk:
        raise FewstepError("a clip must consist of whole chunks", value=(frames, chunk), hint="Use a divisor.")
    return frames // chunk


@part
def self_forcing_rollout(chain: Chain, chunk: int, policy: CachePolicy, context_noise: float = 0.0) -> Rollout:
    """Clips from the student's own chunks: Self-Forcing (arXiv 2506.08009).

    One call of the chain is drawn for the clip. In every chunk the calls before it run without a gradient, it runs with
    one, and its clean prediction is the chunk; that is run once more without a gradient to fill the cache.

    Args:
        chain: the calls of the student.
        chunk: frames that are made together.
        policy: of the cache. With clips longer than its window frames are evicted in training too, which the released
            code of Reward Forcing never does.
        context_noise: process time at which the cache is filled.
    """

    def roll(networks: Networks, batch: Batch, generator: torch.Generator) -> Samples:
        student, count = networks.student, chunks_of(batch.shape[0], chunk)
        within(student.process, chain.times)
        index = torch.randint(len(chain), (1,), generator=generator).expand(batch.size)
        noise = unit_noise(networks, batch, generator)
        module: Any = student.network
        prompt = (batch.condition or {})["prompt"]
        cache = module.empty_cache(policy, batch.size)
        made = []
        for part_noise in noise.chunk(count, 1):
            seeing = replace(student, network=partial(module, cache=cache))
            made.append(chain.roll_out(seeing, batch, part_noise, index, generator))
            cache = _remembered(student, made[-1].clean.detach(), prompt, cache, context_noise, generator)
        clean, state = (torch.cat([getattr(samples, name) for samples in made], 1) for name in ("clean", "state"))
        return replace(made[0], clean=clean, state=state)

    return roll


@part
def forced_rollout(chain: Chain, chunk: int, window: int | None) -> Rollout:
    """One call on real clips noised to one of the student's times, with real frames before each chunk: CausVid
    (arXiv 2412.07772). The student never sees its own frames, which it does in streaming.

    Args:
        chain: the calls of the student.
        chunk: frames that are made together.
        window: frames before them that are seen.
    """

    def roll(networks: Networks, batch: Batch, generator: torch.Generator) -> Samples:
        if batch.clean is None:
            raise FewstepError("this roll-out starts from real clips", hint="Give the distillation data.")
        student, frames = networks.student, batch.shape[0]
        index = torch.randint(len(chain), (batch.size,), generator=generator)
        times = torch.tensor(chain.times, dtype=torch.float64)[index]
        t = times[:, None].expand(-1, frames)
        state = noised(student.process, batch.clean, unit_noise(networks, batch, generator), t)
        clean = forced(student, batch.clean, state, t, batch.condition or {}, chunk, window)
        later = torch.tensor([*chain.times[1:], 0.0], dtype=torch.float64)[index]
        return Samples(clean, state, times, later, index)

    return roll


def _remembered(
    student: Denoiser, clean: Tensor, prompt: Tensor, cache: Any, context_noise: float, generator: torch.Generator
) -> Any:
    """The cache after a chunk, at the time of the context's noise."""
    t = torch.full((len(clean),), context_noise, dtype=torch.float64)
    if context_noise:
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        clean = student.process.add_noise(clean, noise, t)
    module: Any = student.network
    return module.remember(clean, student.process.network_time(t).to(clean), prompt, cache)
