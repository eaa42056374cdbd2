"""Terms beside the score: teacher pairs, moments of single samples, rewards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.distillation.core import Batch, Loss, Networks, Samples
from fewstep.distillation.rollout import needed
from fewstep.errors import FewstepError


def mean_squared(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of two batches, a scalar."""
    return (a - b).square().mean()


@dataclass(frozen=True)
class PairedRegression:
    """The student's one call against the end of the teacher's path from the same noise (arXiv 2311.18828, eq. 9).

    distance: (student, teacher) -> scalar; the paper has LPIPS with scale 0.25.
    """

    scale: float = 0.25
    distance: Callable[[Tensor, Tensor], Tensor] = mean_squared

    def __call__(self, networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        """The loss.

        Raises:
            FewstepError: the batch holds no paths.
        """
        if batch.path is None or batch.times is None:
            raise FewstepError("this term needs paths of the teacher", hint="Make a trajectory store first.")
        t = batch.times[:1].double().expand(batch.size)
        loss = self.distance(networks.student(batch.path[:, 0], t, batch.condition), batch.path[:, -1])
        return self.scale * loss, {"pairs": loss.detach()}


@dataclass(frozen=True)
class MeanVariancePenalty:
    """KL divergence of N(mean, variance) of each sample's own numbers from a fixed one (arXiv 2511.22677).

    The stable, weaker substitute of the critic; measure `mean` and `variance` on samples of the teacher (SDXL: 0.075,
    0.81).
    """

    mean: float = 0.0
    variance: float = 1.0
    scale: float = 1.0

    def __call__(self, networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        """The loss."""
        x = needed(samples).clean.flatten(1)
        mean, variance = x.mean(1), x.var(1, unbiased=False).clamp(min=1e-12)
        away = (variance + (mean - self.mean) ** 2) / self.variance
        loss = 0.5 * (away - 1 - (variance / self.variance).log()).mean()
        return self.scale * loss, {"moments": loss.detach()}


@dataclass(frozen=True)
class RewardTerm:
    """Minus a differentiable reward of the student's samples: (x (B, ...), batch) -> (B,)."""

    reward: Callable[[Tensor, Batch], Tensor]
    scale: float = 1.0

    def __call__(self, networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        """The loss.

        Raises:
            FewstepError: the reward cannot be differentiated.
        """
        x = needed(samples).clean
        reward = self.reward(x, batch)
        if x.requires_grad and not reward.requires_grad:
            raise FewstepError(
                "this reward gives no gradient", hint="Use a differentiable one, or weigh samples by it."
            )
        return -self.scale * reward.mean(), {"reward": reward.detach().mean()}
