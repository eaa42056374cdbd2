"""The critic learns the student's distribution by denoising its samples."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.denoiser import Condition, Denoiser
from fewstep.distillation.core import Batch, Loss, Networks, Samples, Term
from fewstep.distillation.part import part
from fewstep.distillation.rollout import needed
from fewstep.distillation.score.view import Noising, ScorePredictions, direct
from fewstep.distillation.score.weights import Weight, product
from fewstep.distillation.times import TimeDistribution
from fewstep.errors import FewstepError
from fewstep.transition import noise_like

IMPORTANCE = ("none", "tempered", "full")


@part
def denoising_loss(
    times: TimeDistribution,
    own: bool = True,
    guidance: float = 1.0,
    drop: float = 0.0,
    weights: tuple[Weight, ...] = (),
    noising: Noising = direct,
    importance: str = "none",
) -> Term:
    """Mean squared error of the critic on the student's (detached) samples.

    Logged are the plain error, and that at the cleaner and the noisier half of the drawn times.

    Args:
        times: noise levels.
        own: in the network's own prediction (for EDM that is its published weight), else in clean data: then weigh it,
            an unweighted one leaves noise behind on flow models.
        guidance: regress the guided prediction: 1 plain, LSG the teacher's scale, 0 no condition (Zero-CFG), -1
            Anti-CFG.
        drop: rate at which a sample's condition is replaced by the negative one.
        weights: of samples, multiplied.
        noising: of the samples.
        importance: for noise added onward from a later state: weigh by the density of direct noising over that of the
            kernel (TDM, arXiv 2503.06674): `tempered` to the power 1 / dimension as in its code, `full`, or `none`.

    Raises:
        FewstepError: another importance.
    """
    if importance not in IMPORTANCE:
        raise FewstepError("unknown importance", value=importance, hint="Use none, tempered or full.")

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        samples = detached_samples(needed(samples))
        critic, x = networks.need("critic").following(samples.index), samples.clean
        t = times(batch.size, critic.process, generator, samples)
        noise = noise_like(tuple(x.shape), generator, x)
        noisy = noising(critic.process, samples, t, noise)
        alpha, sigma = critic.process.scales(t, x)
        implied = noise if noising is direct else (noisy - alpha * x) / sigma
        raw = guided_raw(critic, batch, dropped(batch, drop, generator), noisy, t, guidance)
        if own:
            a, b = critic.prediction.weights(alpha, sigma)
            miss = raw - (a * x + b * implied)
        else:
            p, m = critic.prediction.sample(alpha, sigma)
            miss = p * noisy + m * raw - x
        error = miss.square().flatten(1).mean(1)
        weight = product(weights, networks, batch, ScorePredictions(x, noisy, t, alpha, sigma)).flatten()
        if importance != "none":
            weight = weight * density_ratio(critic, samples, t, implied, noise, importance)
        value = (weight.to(error) * error).mean()
        return value, {"error": error.detach().mean(), **_halves(error.detach(), t)}

    return loss


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
