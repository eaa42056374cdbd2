"""What a model of healthy pictures would change in one: partial noising, reconstruction, difference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.errors import PlanError
from fewstep.executor import Network, Noise, sample
from fewstep.plan import Plan, RunState
from fewstep.plan.combination import number


def anomaly_map(
    plan: Plan, network: Network, pictures: Tensor, *, seeds: Sequence[int], row: int, draws: int = 1
) -> Tensor:
    """How far (B, ...) each number is from what the model makes of its picture, noised to the level of a row.

        mean over draws of |x - sample(plan from row, alpha x + sigma z)|     (AnoDDPM, in the manner of any plan)

    Noise of a middle level hides what is small and rare and leaves the rest; more of it also changes what is healthy.

    Args:
        plan: any that reads no row before `row`.
        network: raw output of a model of pictures without anomalies.
        pictures: (B, ...), or volumes, in the range of the model.
        seeds: one per picture.
        row: where the run begins; 0 keeps nothing of the picture.
        draws: reconstructions that are averaged.

    Raises:
        PlanError: the plan has no such row, or not one seed per picture.
    """
    if not 0 <= row < plan.steps or len(seeds) != len(pictures) or draws < 1:
        hint = f"Use a row from 0 to {plan.steps - 1}, and one seed per picture."
        raise PlanError("no reconstruction begins there", value=(row, len(seeds), draws), hint=hint)
    begin, total, drawn = plan.rows[row], torch.zeros_like(pictures), Noise(seeds)
    with torch.no_grad():
        for _ in range(draws):
            noise = drawn.draw(pictures.shape[1:]).to(pictures)
            state = number(begin.alpha) * pictures + number(begin.sigma) * noise
            found = sample(
                plan,
                network,
                seeds=drawn.seeds(),  # for rows that add noise
                shape=pictures.shape[1:],
                start=RunState({row: state}),
                device=pictures.device,
                dtype=pictures.dtype,
            )
            total += (pictures - found).abs()
    return total / draws
