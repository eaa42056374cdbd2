"""Terms beside the score: teacher pairs, moments of single samples, rewards."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.distillation.core import Batch, Loss, Networks, SampleReward, Samples, Term
from fewstep.distillation.distances import Metric, squared_error
from fewstep.distillation.part import part
from fewstep.distillation.rollout import needed
from fewstep.errors import FewstepError


def mean_squared(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of two batches, a scalar."""
    return (a - b).square().mean()


@part
def paired_regression(scale: float = 0.25, distance: Callable[[Tensor, Tensor], Tensor] = mean_squared) -> Term:
    """The student's one call against the end of the teacher's path from the same noise (arXiv 2311.18828, eq. 9).

    Args:
        scale: of the loss; the paper has 0.25 with LPIPS.
        distance: (student (B, ...), teacher (B, ...)) -> scalar.

    Raises:
        FewstepError: when called: the batch holds no paths.
    """

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        if batch.path is None or batch.times is None:
            raise FewstepError("this term needs paths of the teacher", hint="Make a trajectory store first.")
        t = batch.times[:1].double().expand(batch.size)
        found = distance(networks.student(batch.path[:, 0], t, batch.condition), batch.path[:, -1])
        return scale * found, {"pairs": found.detach()}

    return loss


@part
def data_regression(scale: float = 1.0, metric: Metric = squared_error()) -> Term:
    """The student's samples against the data of their condition: for paired data, as restoration has.

    Args:
        scale: of the loss.
        metric: the distance of both.

    Raises:
        FewstepError: when called: the batch holds no data.
    """

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        if batch.clean is None:
            raise FewstepError("this term compares with data", hint="Give a data set.")
        x = needed(samples).clean
        found = metric(x, batch.clean.to(x)).mean()
        return scale * found, {"distance": found.detach()}

    return loss


@part
def mean_variance_penalty(mean: float = 0.0, variance: float = 1.0, scale: float = 1.0) -> Term:
    """KL divergence of N(mean, variance) of each sample's own numbers from a fixed one (arXiv 2511.22677).

    The stable, weaker substitute of the critic; measure `mean` and `variance` on samples of the teacher (SDXL: 0.075,
    0.81).
    """

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        x = needed(samples).clean.flatten(1)
        own_mean, own_variance = x.mean(1), x.var(1, unbiased=False).clamp(min=1e-12)
        away = (own_variance + (own_mean - mean) ** 2) / variance
        found = 0.5 * (away - 1 - (own_variance / variance).log()).mean()
        return scale * found, {"moments": found.detach()}

    return loss


@part
def reward_term(reward: SampleReward | None = None, scale: float = 1.0, per_number: bool = False) -> Term:
    """Minus a differentiable reward of the student's samples: ReFL (arXiv 2304.05977), DRaFT (arXiv 2309.17400).

    Args:
        reward: the training's unless given.
        scale: of the loss.
        per_number: divide by the numbers of a sample, as score terms are: beside a score term with the weight
            (2, -2) at little noise the optimum is then the teacher's density times exp(scale * reward).

    Raises:
        FewstepError: when called: the reward cannot be differentiated.
    """

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        x = needed(samples).clean
        found = (reward or networks.need("reward"))(x, batch)
        if x.requires_grad and not found.requires_grad:
            raise FewstepError(
                "this reward gives no gradient",
                hint="Use a differentiable one, or a method that needs none: pso, grpo.",
            )
        factor = scale / x[0].numel() if per_number else scale
        return -factor * found.mean(), {"reward": found.detach().mean()}

    return loss
