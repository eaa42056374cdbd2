"""How strongly the teacher is guided: a scale per sample, drawn once for all evaluations of a residual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.denoiser import Condition
from fewstep.distillation.core import Batch
from fewstep.distillation.flow_map.schedules import Varying, value_at
from fewstep.distillation.part import part
from fewstep.errors import FewstepError
from fewstep.process import Process


@dataclass(frozen=True)
class TeacherGuidance:
    """D = D_u + g (D_c - D_u), g diffusers' guidance_scale (w + 1 where papers write 1 + w); 1: none.

    Attributes:
        scale: g.
        highest: the upper end of a uniform law of g, whose lower one is `scale`.
        interval: fractions of the range of t in which it acts (arXiv 2404.07724).
        key: the student is given g as the condition of this name (arXiv 2210.03142).
        embed: of g there, from (B,) to (B, ...).
    """

    scale: Varying = 1.0
    highest: float | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    key: str | None = None
    embed: Callable[[Tensor], Tensor] | None = None

    def draw(self, batch: Batch, process: Process, t: Tensor, generator: torch.Generator) -> Tensor | None:
        """Scales (B,), None where all are 1.

        Raises:
            FewstepError: the batch has conditions but no negative ones.
        """
        low = value_at(self.scale, batch)
        if (low == 1 and self.highest is None) or batch.condition is None:
            return None
        if batch.negative is None:
            raise FewstepError("guidance needs a negative condition", value=low, hint="Give one, or use guidance 1.")
        g = torch.full((batch.size,), low, dtype=torch.float64)
        if self.highest is not None:
            g = low + (self.highest - low) * torch.rand(batch.size, generator=generator, dtype=torch.float64)
        start, end = (part * process.noisiest for part in self.interval)
        return torch.where((t >= start) & (t <= end), g, torch.ones_like(g))

    def conditioned(self, condition: Condition | None, scale: Tensor | None) -> Condition | None:
        """The student's conditions with the scale among them, where it takes one."""
        if self.key is None or condition is None or scale is None:
            return condition
        like = next(iter(condition.values()))
        given = scale.to(like.device, torch.float32)
        return {**condition, self.key: given if self.embed is None else self.embed(given)}


@part
def sinusoid(width: int = 256, factor: float = 1000.0) -> Callable[[Tensor], Tensor]:
    """Embedding of g - 1 as (B, width) waves: what diffusers' latent consistency models take as `timestep_cond`."""
    half = width // 2

    def embed(scale: Tensor) -> Tensor:
        rate = torch.arange(half, device=scale.device, dtype=scale.dtype) / (half - 1)
        angle = factor * (scale - 1)[:, None] * torch.exp(-torch.log(torch.tensor(10_000.0)) * rate)
        return torch.nn.functional.pad(torch.cat([angle.sin(), angle.cos()], 1), (0, width - 2 * half))

    return embed
