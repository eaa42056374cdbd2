"""Adversarial terms: the student's loss against a discriminator, and the discriminator's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from fewstep.distill.core import Batch, Cast, Condition, Loss, Made, noise_like
from fewstep.distill.discriminator import Source
from fewstep.distill.rollout import needed, rows_of, rows_of_made
from fewstep.distill.score.branch import carry
from fewstep.distill.times import Law
from fewstep.errors import FewstepError, nearest

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
class Fool:
    """The student's adversarial loss: scale * mean over samples and logits.

    times:
        Noise levels that the discriminator sees; None: clean samples.
    active:
        Which samples take part, (B,) from what the student made.
    """

    source: Source
    times: Law | None = None
    loss: str = "softplus"
    scale: float | Callable[[float], float] = 1e-3
    active: Callable[[Made], Tensor] | None = None

    def __post_init__(self) -> None:
        _known(self.loss)

    def __call__(self, cast: Cast, batch: Batch, made: Made | None, generator: torch.Generator) -> Loss:
        """The loss; its gradient reaches the samples alone, no weights of source or discriminator."""
        made = needed(made)
        whole, size = made.clean, batch.size
        t, noise = _levels(self.times, cast, batch, made, generator)
        if self.active is not None:
            rows = self.active(made).nonzero().squeeze(1)
            if not len(rows):
                return 0 * whole.sum(), {}
            made, batch, t = rows_of_made(made, rows), rows_of(batch, rows), t[rows]
            noise = None if noise is None else noise[rows]
        scale = self.scale(batch.progress) if callable(self.scale) else self.scale
        cast = cast.following(made.index)
        with torch.enable_grad():
            x = made.clean.detach().requires_grad_(True)
            logits = cast.need("adversary")(self.source(cast, batch, _noised(cast, x, t, noise), t))
            loss = scale * LOSSES[self.loss][0](logits).flatten(1).mean(1).sum() / size
            (gradient,) = torch.autograd.grad(loss, x)
        pull = (gradient * whole.numel()).square().mean().sqrt()  # in the units of a score branch's
        return carry(made.clean, gradient, 1, loss.detach()), {"fooled": logits.detach().mean(), "pull": pull}


@dataclass(frozen=True)
class Judge:
    """The discriminator's loss on real data and the student's samples, in one call of both.

    same_noise:
        Noise real and fake samples alike (SiDA).
    penalty, jitter:
        Approximate R1: penalty * (D(real) - D(real + jitter e))^2 (arXiv 2501.08316); LADD in FastGen has 100 to 1000,
        0.1.
    train_source:
        Let the gradient into the source's network (DMD2: the critic's encoder is trained with the head).
    """

    source: Source
    times: Law | None = None
    loss: str = "softplus"
    scale: float = 1.0
    same_noise: bool = False
    penalty: float = 0.0
    jitter: float = 0.1
    train_source: bool = False
    active: Callable[[Made], Tensor] | None = None

    def __post_init__(self) -> None:
        _known(self.loss)

    def __call__(self, cast: Cast, batch: Batch, made: Made | None, generator: torch.Generator) -> Loss:
        """The loss, and the mean logits of both sides.

        Raises:
            FewstepError: the batch holds no real data.
        """
        made = needed(made)
        if batch.clean is None:
            raise FewstepError("an adversary needs real data", mend="Give the distillation data, or a method without.")
        clean = batch.clean
        t, noise = _levels(self.times, cast, batch, made, generator)
        if self.active is not None:
            rows = self.active(made).nonzero().squeeze(1)
            if not len(rows):
                return sum(p.sum() for p in cast.need("adversary").parameters()) * torch.zeros(()), {}
            made, batch, t, clean = rows_of_made(made, rows), rows_of(batch, rows), t[rows], clean[rows]
            noise = None if noise is None else noise[rows]
        cast, fake = cast.following(made.index), made.clean.detach()
        other = noise if noise is None or self.same_noise else noise_like(tuple(noise.shape), generator, noise)
        real = _noised(cast, clean, t, other)
        shown = [real, _noised(cast, fake, t, noise)]
        if self.penalty:
            shown.append(real + self.jitter * noise_like(tuple(clean.shape), generator, clean))
        with torch.set_grad_enabled(self.train_source):
            seen = self.source(cast, _repeated(batch, len(shown)), torch.cat(shown), t.repeat(len(shown)))
        parts = cast.need("adversary")(seen).chunk(len(shown))
        loss = LOSSES[self.loss][1](parts[0], parts[1]).mean()
        numbers = {"real": parts[0].detach().mean(), "fake": parts[1].detach().mean()}
        if self.penalty:
            roughness = (parts[0] - parts[2]).square().mean()
            loss, numbers["roughness"] = loss + self.penalty * roughness, roughness.detach()
        return self.scale * loss, numbers


def _known(loss: str) -> None:
    if loss not in LOSSES:
        raise FewstepError("unknown adversarial loss", value=loss, mend=nearest(loss, LOSSES))


def _levels(
    times: Law | None, cast: Cast, batch: Batch, made: Made, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    if times is None:
        return torch.zeros(batch.size, dtype=torch.float64), None
    t = times(batch.size, cast.student.process, generator, made)
    return t, noise_like(tuple(made.clean.shape), generator, made.clean)


def _noised(cast: Cast, x: Tensor, t: Tensor, noise: Tensor | None) -> Tensor:
    return x if noise is None else cast.student.process.add_noise(x, noise, t)


def _repeated(batch: Batch, count: int) -> Batch:
    def again(condition: Condition | None) -> Condition | None:
        return None if condition is None else {name: torch.cat([value] * count) for name, value in condition.items()}

    condition, negative = again(batch.condition), again(batch.negative)
    size = batch.size * count
    return dataclasses.replace(batch, size=size, condition=condition, negative=negative, clean=None, path=None)
