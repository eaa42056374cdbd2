"""Chunks of a streaming student, for one stream or for many clips at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from fewstep.cache import Cache
from fewstep.executor import Network
from fewstep.nested import sample_nested
from fewstep.tasks.video.student import VideoStudent


def drawn_chunks(
    student: VideoStudent,
    prompt_at: Callable[[int], Tensor],
    seeds: Sequence[int],
    *,
    first: int = 0,
    last: Tensor | None = None,
    cache: Cache | None = None,
) -> Iterator[tuple[Tensor, Cache]]:
    """Latent frames (B, F, C, H, W) of one chunk after the other, each with the cache that it saw.

    Args:
        student: what draws.
        prompt_at: number of a chunk -> prompts (B, parts).
        seeds: of the noise, one per clip.
        first: number of the first chunk.
        last: the chunk before it.
        cache: what that one saw.
    """
    network, denoiser, plan = student.network, student.denoiser, student.plan
    seen = network.empty_cache(student.policy, len(seeds)) if cache is None else cache

    def bind(k: int, shown: Tensor | None) -> Network:
        nonlocal seen
        if shown is not None:
            time = denoiser.process.network_time(plan.entry(k).context_noise)
            seen = network.remember(shown, torch.tensor([time]).to(shown), prompt_at(k - 1), seen)
        return partial(network, prompt=prompt_at(k), cache=seen)

    config = network.config
    drawn = sample_nested(
        plan,
        bind,
        seeds=seeds,
        shape=(1, config.channels, config.side, config.side),
        first=first,
        context=last,
        process=denoiser.process,
        device=network.place.device,
    )
    while True:
        with torch.no_grad():  # not while whoever reads has the turn
            latents = next(drawn, None)
        if latents is None:
            return
        yield latents, seen


def draw_clips(student: VideoStudent, prompts: Tensor, chunks: int, seeds: Sequence[int]) -> Tensor:
    """Latent frames (B, F, C, H, W) of clips of so many chunks, one prompt (B, parts) each."""
    found = drawn_chunks(student, lambda k: prompts, seeds)
    return torch.cat([latents for latents, _ in itertools.islice(found, chunks)], 1)
