"""Pictures into a text-to-image pipeline and out again: any plan from any of its rows, as image-to-image does."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.executor import Noise
from fewstep.latents import normalised
from fewstep.pipelines.calls import backbone_of, condition_kind
from fewstep.pipelines.generate import Correct, PipelineSampler, PlanRunner
from fewstep.pipelines.protocol import Pipeline
from fewstep.plan import Plan
from fewstep.plan.combination import Coefficient, number
from fewstep.plan.row import data_of

USUAL = 1024
"""Side of the pictures of a pipeline whose network does not tell it."""


def starts_from_pictures(pipe: Pipeline) -> tuple[int, int]:
    """Side in pixels of the pictures that the pipeline draws, and what their sides must be multiples of.

    Raises:
        FewstepError: no text-to-image pipeline, or one whose latents are not (B, C, h, w) of one autoencoder.
    """
    accepted = inspect.signature(type(pipe).__call__).parameters
    vae: Any = getattr(pipe, "vae", None)
    if condition_kind(pipe) != "prompt" or vae is None or "latents" not in accepted:
        hint = "Use a text-to-image pipeline with an autoencoder, such as StableDiffusionPipeline."
        raise FewstepError("this pipeline does not edit pictures", value=type(pipe).__name__, hint=hint)
    if hasattr(pipe, "_pack_latents") or "num_frames" in accepted or not hasattr(vae.config, "latent_channels"):
        hint = "Use diffusers' image-to-image pipeline of its family, with the plan attached (fewstep.attach)."
        raise FewstepError("the latents of this family are packed or of videos", value=type(pipe).__name__, hint=hint)
    factor = int(getattr(pipe, "vae_scale_factor", 8))
    size = getattr(backbone_of(pipe).config, "sample_size", None)
    size = size if isinstance(size, int) else USUAL // factor
    return size * factor, math.lcm(8, 2 * factor)


@torch.no_grad()
def encode_pictures(pipe: Pipeline, pictures: Tensor) -> Tensor:
    """Latents (B, C, h, w) in float32, as the network sees them, of pictures (B, 3, H, W) in [0, 1]: the mean."""
    with _precise(pipe) as vae:
        mean = vae.encode((2 * pictures - 1).to(vae.device, vae.dtype)).latent_dist.mean
        return normalised(vae, mean.float())


@torch.no_grad()
def run_from(
    generate: PipelineSampler,
    plan: Plan,
    clean: Tensor,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    first: int,
    known: Tensor | None = None,
    output: str = "image",
) -> Tensor:
    """Samples of the rows from `first` on, which begin at clean latents noised to the level of that row (SDEdit).

        x = alpha_k z + sigma_k e          k = first, e the first noise of each seed's stream

    Args:
        generate: of the pipeline.
        plan: the sampler; a row whose history is gone becomes first order (`Plan.starting_at`).
        clean: z (B, C, h, w).
        prompts: what each sample is to show.
        seeds: one per sample.
        first: the row.
        known: (1, h, w) or (B, 1, h, w), 1 where the clean prediction of every row is replaced by z (arXiv
            2201.09865 replaces the state; the prediction does it for rows of any order).
        output: `image` or `latent`, as in `PipelineSampler`.

    Returns:
        (B, 3, H, W) in [0, 1], or latents (B, C, h, w).

    Raises:
        FewstepError: not one prompt and seed per sample.
        PlanError: no such row.
    """
    if not len(prompts) == len(seeds) == len(clean):
        raise FewstepError("one prompt and seed per picture are needed", value=(len(clean), len(prompts), len(seeds)))
    rest = plan.starting_at(first)  # the state is handed over as it is, so the pipeline scales nothing
    origin = {name: value for name, value in plan.origin.items() if name not in ("steps", "order")}
    rest = rest.replace(prior_scale=1.0, origin=origin)
    done = []
    for begin in range(0, len(seeds), generate.batch):
        part = slice(begin, begin + generate.batch)
        runner = PlanRunner.following(rest, seeds[part], latent=output == "latent")
        z, noise = clean[part], Noise(seeds[part])
        runner.generators = noise.generators  # later rows go on where the first noise ended
        row = rest.rows[0]
        state = number(row.alpha) * z + number(row.sigma) * noise.draw(z.shape[1:]).to(z)
        if known is not None:
            runner.correct = keeping(rest, z, known if known.ndim == 3 else known[part])
        done.append(_asked(generate, runner, state, list(prompts[part]), seeds[part]))
    return torch.cat(done)


def keeping(plan: Plan, clean: Tensor, known: Tensor) -> Correct:
    """Outputs whose clean prediction is the latents given where they are known, for each row of the plan.

    Args:
        plan: that runs.
        clean: latents (B, C, h, w).
        known: broadcasts against them, 1 where they are known.
    """

    def correct(k: int, state: Tensor, output: Tensor) -> Tensor:
        row = plan.rows[k]
        said = data_of(row, k, plan.prediction)
        p = _ready(said.state[k], state) * _ready(row.sample_scale, state)
        m = _ready(said.output[k], state) * _ready(row.output_scale, state)
        z = clean.to(state.device, torch.float32)
        wanted = (z - p * state.float()) / m
        return torch.lerp(output.float(), wanted, known.to(wanted)).to(output.dtype)

    return correct


def _asked(
    generate: PipelineSampler, runner: PlanRunner, state: Tensor, prompts: list[str], seeds: Sequence[int]
) -> Tensor:
    accepted = inspect.signature(type(generate.pipe).__call__).parameters
    factor = int(getattr(generate.pipe, "vae_scale_factor", 8))
    size = dict(zip(("height", "width"), (factor * n for n in state.shape[-2:]), strict=True))
    size = {name: value for name, value in size.items() if name in accepted}
    backbone: Any = backbone_of(generate.pipe)
    state = state.to(getattr(backbone, "device", state.device), backbone.dtype)
    return generate.changed(call={**generate.call, **size, "latents": state}).run(runner, prompts, seeds)


def _ready(value: Coefficient, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float32, device=like.device)


@contextmanager
def _precise(pipe: Pipeline) -> Iterator[Any]:
    """The autoencoder, in float32 for as long where half precision overflows in it (SDXL's)."""
    vae: Any = pipe.vae
    before = vae.dtype
    if before != torch.float16 or not vae.config.get("force_upcast", False):
        yield vae
        return
    vae.to(torch.float32)
    try:
        yield vae
    finally:
        vae.to(before)
