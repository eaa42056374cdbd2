"""`fewstep.restore`: pictures from what is left of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.api.plans import plan_of
from fewstep.denoiser import Denoiser
from fewstep.errors import FewstepError, nearest
from fewstep.jobs.restoring import pixel_network
from fewstep.plan import Plan
from fewstep.tasks.restoration.guidance import GUIDANCES, Rule
from fewstep.tasks.restoration.restore import Restoration, restore_picture


def restore(
    target: Any,
    pictures: Tensor | Sequence[Tensor],
    operator: str,
    *,
    noise: float = 0.0,
    rule: str | Rule = "pigdm",
    steps: int = 4,
    solver: str = "ddim",
    plan: Plan | None = None,
    seeds: Sequence[int] = (0,),
    mask: Tensor | None = None,
    tile: int = 0,
    overlap: int | None = None,
    channels: int = 3,
) -> list[Tensor]:
    """Draws of what each picture was before an operator acted on it; the commands are `fewstep restore` and `upscale`.

        large = fs.restore(pipe, small, "bicubic:4", steps=8)      # small: (B, 3, h, w) in [0, 1]

    Args:
        target: an unconditional pipeline of pixels, or a `Denoiser` of pictures in [-1, 1].
        pictures: what came out of the operator, each (C, h, w) in [0, 1], of any sizes.
        operator: denoise, blur:WIDTH, grey, inpainting, box:N or bicubic:N.
        noise: standard deviation of the noise in them, of a range of 1.
        rule: a guidance by name, or one made by `fewstep.tasks.restoration`.
        steps: network evaluations.
        solver: one of `fewstep.solvers.SOLVERS`.
        plan: any plan for this network, instead of steps and solver.
        seeds: of the draws of each picture.
        mask: (H, W) of inpainting, 1 where a picture is known.
        tile: side that is restored at once; that of the pipeline's pictures unless given, 64 for a denoiser.
        overlap: pixels that tiles share; a quarter of a tile unless given.
        channels: of a denoiser's network.

    Returns:
        For each picture its draws (len(seeds), channels, H, W).

    Raises:
        FewstepError: a pipeline of another kind, an unknown operator or guidance, a picture that does not fit.
    """
    if isinstance(rule, str):
        if rule not in GUIDANCES:
            raise FewstepError("unknown guidance", value=rule, hint=nearest(rule, GUIDANCES))
        rule = GUIDANCES[rule]()
    denoiser, device, size = target, torch.device("cpu"), 64
    if not isinstance(target, Denoiser):
        denoiser, channels, size = pixel_network(target)
        device = target.device
    used = plan if plan is not None else plan_of(target, steps, solver=solver)
    how = Restoration(operator, noise, rule, tile or size, overlap)
    options: dict[str, Any] = {"channels": channels, "seeds": seeds, "mask": mask, "device": device}
    return [restore_picture(denoiser, used, picture, how, **options) for picture in pictures]
