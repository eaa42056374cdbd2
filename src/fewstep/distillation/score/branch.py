"""One term of a score-distillation loss: a direction at its own noise levels, with its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fewstep.distillation.core import Batch, Loss, Networks, Samples, Term
from fewstep.distillation.discriminator import NetworkFeatures
from fewstep.distillation.distances import Slope, squared
from fewstep.distillation.part import part
from fewstep.distillation.rollout import needed
from fewstep.distillation.score.directions import Direction
from fewstep.distillation.score.view import Needs, Noising, ScorePredictions, direct, predict_scores
from fewstep.distillation.score.weights import Weight, product
from fewstep.distillation.times import TimeDistribution
from fewstep.transition import noise_like


@part
def score_distillation(
    direction: Direction,
    times: TimeDistribution,
    weights: tuple[Weight, ...] = (),
    slope: Slope = squared,
    scale: float | Callable[[float], float] = 1.0,
    noising: Noising = direct,
    active: Callable[[Samples], Tensor] | None = None,
    taps: NetworkFeatures | None = None,
) -> Term:
    """Noise the student's samples, ask teacher and critic, move the samples.

    The gradient that reaches the samples is scale * weights * direction / (numbers in the batch); that of a vector
    direction with the squared distance is the one of 1/2 mean |x - sg(x - weights delta)|^2. Logged are gap, cosine,
    away and spread (see `health`), and `pull`, the rms of the gradient.

    Args:
        direction: which way.
        times: noise levels.
        weights: of samples, multiplied.
        slope: gradient of the distance.
        scale: a number, or a function of the share of training that is done (ramps of guidance).
        noising: of the samples.
        active: which samples take part, (B,) from the student's samples; the networks see no others.
        taps: modules of teacher or critic to watch meanwhile, for weights that read features.
    """
    needs: Needs = direction.needs.union(*(weight.needs for weight in weights))

    def seen(networks: Networks, batch: Batch, samples: Samples, t: Tensor, noise: Tensor) -> ScorePredictions:
        with torch.set_grad_enabled(direction.through):
            networks, clean = networks.following(samples.index), samples.clean.detach()
            leaf = replace(samples, clean=clean.requires_grad_(direction.through), state=samples.state.detach())
            noisy = noising(networks.student.process, leaf, t, noise)
            return predict_scores(networks, batch, leaf, noisy, t, needs, taps)

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        samples = needed(samples)
        whole = samples.clean
        t = times(batch.size, networks.student.process, generator, samples)
        noise = noise_like(tuple(whole.shape), generator, whole)
        if active is not None:
            rows = active(samples).nonzero().squeeze(1)
            if not len(rows):
                return 0 * whole.sum(), {}
            if len(rows) < batch.size:
                samples, batch, t, noise = samples.rows(rows), batch.rows(rows), t[rows], noise[rows]
        view = seen(networks, batch, samples, t, noise)
        gradient, value = direction.gradient(view, slope)
        with torch.no_grad():
            factor = scale(batch.progress) if callable(scale) else scale
            weight = factor * product(weights, networks, batch, view)
            worth = len(view.clean) / len(whole) * (weight.flatten() * value).mean()
            pull = weight.to(gradient.dtype) * gradient
        numbers = {**health(view), "pull": pull.square().mean().sqrt()}
        return with_gradient(samples.clean, pull, whole.numel(), worth), numbers

    return loss


@part
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
