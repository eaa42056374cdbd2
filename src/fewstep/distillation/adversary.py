"""Adversarial terms: the student's loss against a discriminator, and the discriminator's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from fewstep.denoiser import Condition
from fewstep.distillation.core import Batch, Loss, Networks, Samples
from fewstep.distillation.discriminator import FeatureSource
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


@dataclass(frozen=True)
class GeneratorLoss:
    """The student's adversarial loss: scale * mean over samples and logits.

    times:
        Noise levels that the discriminator sees; None: clean samples.
    active:
        Which samples take part, (B,) from the student's samples.
    """

    source: FeatureSource
    times: TimeDistribution | None = None
    loss: str = "softplus"
    scale: float | Callable[[float], float] = 1e-3
    active: Callable[[Samples], Tensor] | None = None

    def __post_init__(self) -> None:
        _known(self.loss)

    def __call__(self, networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        """The loss; its gradient reaches the samples alone, no weights of source or discriminator."""
        samples = needed(samples)
        whole, size = samples.clean, batch.size
        t, noise = _levels(self.times, networks, batch, samples, generator)
        if self.active is not None:
            rows = self.active(samples).nonzero().squeeze(1)
            if not len(rows):
                return 0 * whole.sum(), {}
            samples, batch, t = samples.rows(rows), batch.rows(rows), t[rows]
            noise = None if noise is None else noise[rows]
        scale = self.scale(batch.progress) if callable(self.scale) else self.scale
        networks = networks.following(samples.index)
        with torch.enable_grad():
            x = samples.clean.detach().requires_grad_(True)
            logits = networks.need("adversary")(self.source(networks, batch, _noised(networks, x, t, noise), t))
            loss = scale * LOSSES[self.loss][0](logits).flatten(1).mean(1).sum() / size
            (gradient,) = torch.autograd.grad(loss, x)
        pull = (gradient * whole.numel()).square().mean().sqrt()  # in the units of a score branch's
        return with_gradient(samples.clean, gradient, 1, loss.detach()), {
            "fooled": logits.detach().mean(),
            "pull": pull,
        }


@dataclass(frozen=True)
class DiscriminatorLoss:
    """The discriminator's loss on real data and the student's samples, in one call of both.

    same_noise:
        Noise real and fake samples alike (SiDA).
    penalty, jitter:
        Approximate R1: penalty * (D(real) - D(real + jitter e))^2 (arXiv 2501.08316); LADD in FastGen has 100 to 1000,
        0.1.
    train_source:
        Let the gradient into the source's network (DMD2: the critic's encoder is trained with the head).
    """

    source: FeatureSource
    times: TimeDistribution | None = None
    loss: str = "softplus"
    scale: float = 1.0
    same_noise: bool = False
    penalty: float = 0.0
    jitter: float = 0.1
    train_source: bool = False
    active: Callable[[Samples], Tensor] | None = None

    def __post_init__(self) -> None:
        _known(self.loss)

    def __call__(self, networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        """The loss, and the mean logits of both sides.

        Raises:
            FewstepError: the batch holds no real data.
        """
        samples = needed(samples)
        if batch.clean is None:
            raise FewstepError("an adversary needs real data", hint="Give the distillation data, or a method without.")
        clean = batch.clean
        t, noise = _levels(self.times, networks, batch, samples, generator)
        if self.active is not None:
            rows = self.active(samples).nonzero().squeeze(1)
            if not len(rows):
                return sum(p.sum() for p in networks.need("adversary").parameters()) * torch.zeros(()), {}
            samples, batch, t, clean = samples.rows(rows), batch.rows(rows), t[rows], clean[rows]
            noise = None if noise is None else noise[rows]
        networks, fake = networks.following(samples.index), samples.clean.detach()
        other = noise if noise is None or self.same_noise else noise_like(tuple(noise.shape), generator, noise)
        real = _noised(networks, clean, t, other)
        shown = [real, _noised(networks, fake, t, noise)]
        if self.penalty:
            shown.append(real + self.jitter * noise_like(tuple(clean.shape), generator, clean))
        with torch.set_grad_enabled(self.train_source):
            seen = self.source(networks, _repeated(batch, len(shown)), torch.cat(shown), t.repeat(len(shown)))
        parts = networks.need("adversary")(seen).chunk(len(shown))
        loss = LOSSES[self.loss][1](parts[0], parts[1]).mean()
        numbers = {"real": parts[0].detach().mean(), "fake": parts[1].detach().mean()}
        if self.penalty:
            roughness = (parts[0] - parts[2]).square().mean()
            loss, numbers["roughness"] = loss + self.penalty * roughness, roughness.detach()
        return self.scale * loss, numbers


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
