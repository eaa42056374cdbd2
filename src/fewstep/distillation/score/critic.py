"""The critic learns the student's distribution by denoising its samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.denoiser import Condition, Denoiser
from fewstep.distillation.core import Batch, Loss, Networks, Samples
from fewstep.distillation.rollout import needed
from fewstep.distillation.score.view import Noising, ScorePredictions, direct
from fewstep.distillation.score.weights import Weight, product
from fewstep.distillation.times import TimeDistribution
from fewstep.errors import FewstepError
from fewstep.transition import noise_like


@dataclass(frozen=True)
class DenoisingLoss:
    """Mean squared error of the critic on the student's (detached) samples.

    own:
        In the network's own prediction (for EDM that is its published weight), else in clean data: then weigh it, an
        unweighted one leaves noise behind on flow models.
    guidance:
        Regress the guided prediction: 1 plain, LSG the teacher's scale, 0 no condition (Zero-CFG), -1 Anti-CFG.
    drop:
        Rate at which a sample's condition is replaced by the negative one.
    importance:
        For noise added onward from a later state: weigh by the density of direct noising over that of the kernel
        (TDM, arXiv 2503.06674): `tempered` to the power 1 / dimension as in its code, `full`, or `none`.
    """

    times: TimeDistribution
    own: bool = True
    guidance: float = 1.0
    drop: float = 0.0
    weights: tuple[Weight, ...] = ()
    noising: Noising = direct
    importance: str = "none"

    def __post_init__(self) -> None:
        if self.importance not in ("none", "tempered", "full"):
            raise FewstepError("unknown importance", value=self.importance, hint="Use none, tempered or full.")

    def __call__(self, networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        """The loss, and the plain error at the cleaner and the noisier half of the drawn times."""
        samples = detached_samples(needed(samples))
        critic, x = networks.need("critic").following(samples.index), samples.clean
        t = self.times(batch.size, critic.process, generator, samples)
        noise = noise_like(tuple(x.shape), generator, x)
        noisy = self.noising(critic.process, samples, t, noise)
        alpha, sigma = critic.process.scales(t, x)
        implied = noise if self.noising is direct else (noisy - alpha * x) / sigma
        raw = guided_raw(critic, batch, dropped(batch, self.drop, generator), noisy, t, self.guidance)
        if self.own:
            a, b = critic.prediction.weights(alpha, sigma)
            miss = raw - (a * x + b * implied)
        else:
            p, m = critic.prediction.sample(alpha, sigma)
            miss = p * noisy + m * raw - x
        error = miss.square().flatten(1).mean(1)
        weight = product(self.weights, networks, batch, ScorePredictions(x, noisy, t, alpha, sigma)).flatten()
        if self.importance != "none":
            weight = weight * density_ratio(critic, samples, t, implied, noise, self.importance)
        loss = (weight.to(error) * error).mean()
        return loss, {"error": error.detach().mean(), **_halves(error.detach(), t)}


def density_ratio(critic: Denoiser, samples: Samples, t: Tensor, implied: Tensor, noise: Tensor, kind: str) -> Tensor:
    """q(x_t | x) / q(x_t | x_until), (B,): of the implied noise against that of the kernel."""
    tempered = kind == "tempered"

    def half(e: Tensor) -> Tensor:
        square = e.double().square().flatten(1)
        return 0.5 * (square.mean(1) if tempered else square.sum(1))

    log = half(noise) - half(implied)
    if not tempered:
        process, count = critic.process, noise[0].numel()
        alpha, sigma = process.alpha(t), process.sigma(t)
        start = samples.next_time
        inner = torch.where(start == 0, 0.0, process.sigma(start) / process.alpha(start))
        spread = (sigma**2 - (alpha * inner) ** 2).clamp(min=0).sqrt()
        log = log + count * (spread / sigma).log().to(log)
    return log.exp()


def guided_raw(
    model: Denoiser, batch: Batch, condition: Condition | None, x: Tensor, t: Tensor, guidance: float
) -> Tensor:
    """Raw output at a guidance scale; both branches in one call.

    Raises:
        FewstepError: the negative condition is needed and there is none.
    """
    if guidance == 1:
        return model.raw(x, t, condition)
    if batch.negative is None:
        raise FewstepError("guidance of the critic needs a negative condition", value=guidance, hint="Use guidance 1.")
    if guidance == 0:
        return model.raw(x, t, batch.negative)
    both = {name: torch.cat([value, batch.negative[name]]) for name, value in (condition or {}).items()}
    within, free = model.raw(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
    return free + guidance * (within - free)


def dropped(batch: Batch, rate: float, generator: torch.Generator) -> Condition | None:
    """The condition with some samples' replaced by the negative one.

    Raises:
        FewstepError: the negative condition is needed and there is none.
    """
    if rate == 0 or batch.condition is None:
        return batch.condition
    if batch.negative is None:
        raise FewstepError("dropping conditions needs a negative one", value=rate, hint="Use drop 0.")
    gone = torch.rand(batch.size, generator=generator) < rate
    return {
        name: torch.where(gone.to(value.device).reshape(-1, *[1] * (value.ndim - 1)), batch.negative[name], value)
        for name, value in batch.condition.items()
    }


def detached_samples(samples: Samples) -> Samples:
    """The student's samples without their gradient."""
    return Samples(samples.clean.detach(), samples.state.detach(), samples.time, samples.next_time, samples.index)


def _halves(error: Tensor, t: Tensor) -> dict[str, Tensor]:
    order = t.argsort().to(error.device)
    half = len(order) // 2
    if not half:
        return {}
    return {"error_clean": error[order[:half]].mean(), "error_noisy": error[order[half:]].mean()}
