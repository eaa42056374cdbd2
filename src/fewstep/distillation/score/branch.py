"""One term of a score-distillation loss: a direction at its own noise levels, with its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.distillation.core import Batch, Loss, Networks, Samples, Term
from fewstep.distillation.discriminator import NetworkFeatures
from fewstep.distillation.distances import Slope, squared
from fewstep.distillation.rollout import needed
from fewstep.distillation.score.directions import Direction
from fewstep.distillation.score.view import Needs, Noising, ScorePredictions, direct, predict_scores
from fewstep.distillation.score.weights import Weight, product
from fewstep.distillation.times import TimeDistribution
from fewstep.transition import noise_like


@dataclass(frozen=True)
class ScoreDistillation:
    """Noise the student's samples, ask teacher and critic, move the samples.

    The gradient that reaches the samples is scale * weights * direction / (numbers in the batch); that of a vector
    direction with the squared distance is the one of 1/2 mean |x - sg(x - weights delta)|^2.

    scale:
        A number, or a function of the share of training that is done (ramps of guidance).
    active:
        Which samples take part, (B,) from the student's samples; the networks see no others.
    taps:
        Modules of teacher or critic to watch meanwhile, for weights that read features.
    """

    direction: Direction
    times: TimeDistribution
    weights: tuple[Weight, ...] = ()
    slope: Slope = squared
    scale: float | Callable[[float], float] = 1.0
    noising: Noising = direct
    active: Callable[[Samples], Tensor] | None = None
    taps: NetworkFeatures | None = None

    def __call__(self, networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        """The loss and what to watch: gap, cosine, away, spread (see `health`), and `pull`, the rms of the gradient."""
        samples = needed(samples)
        process, whole = networks.student.process, samples.clean
        t = self.times(batch.size, process, generator, samples)
        noise = noise_like(tuple(whole.shape), generator, whole)
        if self.active is not None:
            rows = self.active(samples).nonzero().squeeze(1)
            if not len(rows):
                return 0 * whole.sum(), {}
            if len(rows) < batch.size:
                samples, batch, t, noise = samples.rows(rows), batch.rows(rows), t[rows], noise[rows]
        view = self._view(networks, batch, samples, t, noise)
        gradient, value = self.direction.gradient(view, self.slope)
        scale = self.scale(batch.progress) if callable(self.scale) else self.scale
        with torch.no_grad():
            weight = scale * product(self.weights, networks, batch, view)
            share = len(view.clean) / len(whole)
            worth = share * (weight.flatten() * value).mean()
            pull = weight.to(gradient.dtype) * gradient
        numbers = {**health(view), "pull": pull.square().mean().sqrt()}
        return with_gradient(samples.clean, pull, whole.numel(), worth), numbers

    def _view(self, networks: Networks, batch: Batch, samples: Samples, t: Tensor, noise: Tensor) -> ScorePredictions:
        needs: Needs = self.direction.needs.union(*(weight.needs for weight in self.weights))
        with torch.set_grad_enabled(self.direction.through):
            networks = networks.following(samples.index)
            leaf = dataclasses.replace(
                samples, clean=_leaf(samples.clean, self.direction.through), state=samples.state.detach()
            )
            noisy = self.noising(networks.student.process, leaf, t, noise)
            return predict_scores(networks, batch, leaf, noisy, t, needs, self.taps)


def scheduled(make: Callable[[Batch], Term]) -> Term:
    """A term that changes as the training goes on, such as one whose noise levels are `annealed_beta(batch.step)`."""
    return lambda networks, batch, samples, generator: make(batch)(networks, batch, samples, generator)


def with_gradient(x: Tensor, gradient: Tensor, count: int, value: Tensor) -> Tensor:
    """A scalar of this value whose gradient with respect to x is exactly gradient / count."""
    inner = (x * gradient.detach().to(x.dtype)).sum() / count
    return inner - inner.detach() + value.to(inner)


@torch.no_grad()
def health(view: ScorePredictions) -> dict[str, Tensor]:
    """Signs of trouble, detached scalars.

    gap rms(G - F) / rms(F) and cosine of G and F: gap up and cosine down, the critic lags; gap up, cosine flat and
    spread up, too much guidance. away: mean |x - F|. spread: standard deviation of x.
    """
    x = view.clean.detach()
    numbers = {"spread": x.std(), "mean": x.mean()}
    F, G = view.teacher, view.critic
    if F is not None:
        numbers["away"] = (x - F).abs().mean()
    if F is not None and G is not None:
        numbers["gap"] = (G - F).square().mean().sqrt() / F.square().mean().sqrt().clamp(min=1e-12)
        numbers["cosine"] = torch.cosine_similarity(G.flatten(1), F.flatten(1)).mean()
    return {name: value.detach() for name, value in numbers.items()}


def _leaf(x: Tensor, through: bool) -> Tensor:
    return x.detach().requires_grad_(through)
