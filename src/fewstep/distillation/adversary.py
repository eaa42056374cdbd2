"""Adversarial terms: the student's loss against a discriminator, and the discriminator's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from fewstep.denoiser import Condition
from fewstep.distillation.core import Batch, Loss, Networks, Samples, Term
from fewstep.distillation.discriminator import FeatureSource
from fewstep.distillation.part import part
from fewstep.distillation.rollout import needed
from fewstep.distillation.score.branch import with_gradient
from fewstep.distillation.times import TimeDistribution
from fewstep.errors import FewstepError, nearest
from fewstep.transition import noise_like

Pair = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]

LOSSES: dict[str, Pair] = {
    "softplus": (lambda fake: softplus(-fake), lambda real, fake: softplus(-real) + softplus(fake)),
    "hinge": (lambda fake: -fake, lambda real, fake: relu(1 - real) + relu(1 + fake)),
    "bce": (
        lambda fake: softplus(-fake.clamp(-10, 10)),
        lambda real, fake: 0.5 * (softplus(-real.clamp(-10, 10)) + softplus(fake.clamp(-10, 10))),
    ),
}
"""(student's loss of its logits, discriminator's loss of both), element by element."""


@part
def generator_loss(
    source: FeatureSource,
    times: TimeDistribution | None = None,
    loss: str = "softplus",
    scale: float | Callable[[float], float] = 1e-3,
    active: Callable[[Samples], Tensor] | None = None,
) -> Term:
    """The student's adversarial loss: scale * mean over samples and logits.

    Its gradient reaches the samples alone, no weights of source or discriminator.

    Args:
        source: of the features that the discriminator sees.
        times: noise levels that it sees them at; None: clean samples.
        loss: one of `LOSSES`.
        scale: a number, or a function of the share of training that is done.
        active: which samples take part, (B,) from the student's samples.

    Raises:
        FewstepError: another loss.
    """
    _known(loss)

    def term(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        samples = needed(samples)
        whole, size = samples.clean, batch.size
        t, noise = _levels(times, networks, batch, samples, generator)
        if active is not None:
            rows = active(samples).nonzero().squeeze(1)
            if not len(rows):
                return 0 * whole.sum(), {}
            samples, batch, t = samples.rows(rows), batch.rows(rows), t[rows]
            noise = None if noise is None else noise[rows]
        factor = scale(batch.progress) if callable(scale) else scale
        networks = networks.following(samples.index)
        with torch.enable_grad():
            x = samples.clean.detach().requires_grad_(True)
            logits = networks.need("adversary")(source(networks, batch, _noised(networks, x, t, noise), t))
            value = factor * LOSSES[loss][0](logits).flatten(1).mean(1).sum() / size
            (gradient,) = torch.autograd.grad(value, x)
        pull = (gradient * whole.numel()).square().mean().sqrt()  # in the units of a score branch's
        numbers = {"fooled": logits.detach().mean(), "pull": pull}
        return with_gradient(samples.clean, gradient, 1, value.detach()), numbers

    return term


@part
def discriminator_loss(
    source: FeatureSource,
    times: TimeDistribution | None = None,
    loss: str = "softplus",
    scale: float = 1.0,
    same_noise: bool = False,
    penalty: float = 0.0,
    jitter: float = 0.1,
    train_source: bool = False,
    active: Callable[[Samples], Tensor] | None = None,
) -> Term:
    """The discriminator's loss on real data and the student's samples, in one call of both; logged: mean logits.

    Args:
        source: of the features that it sees.
        times: noise levels that it sees them at; None: clean samples.
        loss: one of `LOSSES`.
        scale: of the loss.
        same_noise: noise real and fake samples alike (SiDA).
        penalty: of the approximate R1: penalty * (D(real) - D(real + jitter e))^2 (arXiv 2501.08316); LADD in FastGen
            has 100 to 1000.
        jitter: as in the formula; LADD in FastGen has 0.1.
        train_source: let the gradient into the source's network (DMD2: the critic's encoder is trained with the head).
        active: which samples take part, (B,) from the student's samples.

    Raises:
        FewstepError: another loss; when called: the batch holds no real data.
    """
    _known(loss)

    def features(networks: Networks, batch: Batch, shown: Sequence[Tensor], t: Tensor) -> Mapping[str, Tensor]:
        with torch.set_grad_enabled(train_source):
            return source(networks, _repeated(batch, len(shown)), torch.cat(list(shown)), t.repeat(len(shown)))

    def term(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        samples = needed(samples)
        if batch.clean is None:
            raise FewstepError("an adversary needs real data", hint="Give the distillation data, or a method without.")
        clean = batch.clean
        t, noise = _levels(times, networks, batch, samples, generator)
        if active is not None:
            rows = active(samples).nonzero().squeeze(1)
            if not len(rows):
                return sum(p.sum() for p in networks.need("adversary").parameters()) * torch.zeros(()), {}
            samples, batch, t, clean = samples.rows(rows), batch.rows(rows), t[rows], clean[rows]
            noise = None if noise is None else noise[rows]
        networks, fake = networks.following(samples.index), samples.clean.detach()
        other = noise if noise is None or same_noise else noise_like(tuple(noise.shape), generator, noise)
        real = _noised(networks, clean, t, other)
        shown = [real, _noised(networks, fake, t, noise)]
        if penalty:
            shown.append(real + jitter * noise_like(tuple(clean.shape), generator, clean))
        parts = networks.need("adversary")(features(networks, batch, shown, t)).chunk(len(shown))
        value = LOSSES[loss][1](parts[0], parts[1]).mean()
        numbers = {"real": parts[0].detach().mean(), "fake": parts[1].detach().mean()}
        if penalty:
            roughness = (parts[0] - parts[2]).square().mean()
            value, numbers["roughness"] = value + penalty * roughness, roughness.detach()
        return scale * value, numbers

    return term


def _known(loss: str) -> None:
    if loss not in LOSSES:
        raise FewstepError("unknown adversarial loss", value=loss, hint=nearest(loss, LOSSES))


def _levels(
    times: TimeDistribution | None, networks: Networks, batch: Batch, samples: Samples, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    if times is None:
        return torch.zeros(batch.size, dtype=torch.float64), None
    t = times(batch.size, networks.student.process, generator, samples)
    return t, noise_like(tuple(samples.clean.shape), generator, samples.clean)


def _noised(networks: Networks, x: Tensor, t: Tensor, noise: Tensor | None) -> Tensor:
    return x if noise is None else networks.student.process.add_noise(x, noise, t)


def _repeated(batch: Batch, count: int) -> Batch:
    def again(condition: Condition | None) -> Condition | None:
        return None if condition is None else {name: torch.cat([value] * count) for name, value in condition.items()}

    condition, negative = again(batch.condition), again(batch.negative)
    size = batch.size * count
    return dataclasses.replace(batch, size=size, condition=condition, negative=negative, clean=None, path=None)
