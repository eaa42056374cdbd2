"""What teacher and critic say about the student's noised samples: each network is called once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.distillation.core import Batch, Networks, Samples
from fewstep.distillation.discriminator import NetworkFeatures
from fewstep.distillation.taps import watch
from fewstep.errors import FewstepError
from fewstep.process import Process
from fewstep.transition import ddim_step, forward_step

Needs = frozenset[str]
"""Of "teacher", "teacher_free", "critic", "critic_free": whose clean predictions are looked at; free: no condition."""
NOTHING: Needs = frozenset()


@dataclass(frozen=True)
class ScorePredictions:
    """The student's samples noised, and the clean predictions (B, ...) of those that were asked.

    Attributes:
        clean: samples x (B, ...).
        noisy: x_t (B, ...).
        time: t (B,), float64.
        alpha: scale of the samples at `time`, shaped to multiply.
        sigma: that of the noise.
        teacher: F with the condition.
        teacher_free: F without.
        critic: G with the condition.
        critic_free: G without.
        features: outputs of the modules that were watched meanwhile, with the condition.
    """

    clean: Tensor
    noisy: Tensor
    time: Tensor
    alpha: Tensor
    sigma: Tensor
    teacher: Tensor | None = None
    teacher_free: Tensor | None = None
    critic: Tensor | None = None
    critic_free: Tensor | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)

    def guided(self, who: str, scale: float) -> Tensor:
        """The clean prediction of `who` at a guidance scale, D_u + scale (D_c - D_u)."""
        within, free = getattr(self, who), getattr(self, f"{who}_free")
        if scale == 1:
            return within
        return free if scale == 0 else free + scale * (within - free)


def guidance_needs(who: str, scale: float) -> Needs:
    """What `View.guided` needs."""
    if scale == 1:
        return frozenset({who})
    return frozenset({f"{who}_free"}) if scale == 0 else frozenset({who, f"{who}_free"})


Noising = Callable[[Process, Samples, Tensor, Tensor], Tensor]
"""(process, samples, times (B,), unit noise (B, ...)) -> noisy states (B, ...)."""


def direct(process: Process, samples: Samples, t: Tensor, noise: Tensor) -> Tensor:
    """The clean samples noised: alpha x + sigma e."""
    return process.add_noise(samples.clean, noise, t)


def onward(process: Process, samples: Samples, t: Tensor, noise: Tensor) -> Tensor:
    """What the student's deterministic step leads to, noised up by the forward kernel (TDM, arXiv 2503.06674)."""
    ended = (samples.next_time == 0).reshape(-1, *[1] * (samples.clean.ndim - 1)).to(samples.clean.device)
    there = ddim_step(process, samples.state, samples.clean, samples.time, samples.next_time)
    # time 0 stands for the data itself, also on processes that keep some noise there
    return torch.where(
        ended, direct(process, samples, t, noise), forward_step(process, there, noise, samples.next_time, t)
    )


def predict_scores(
    networks: Networks,
    batch: Batch,
    samples: Samples,
    noisy: Tensor,
    t: Tensor,
    needs: Needs,
    taps: NetworkFeatures | None = None,
) -> ScorePredictions:
    """Ask those that are needed; both predictions of one network come from one call of 2B.

    Raises:
        FewstepError: a network is missing, or a prediction without condition is needed and there is none.
    """
    alpha, sigma = networks.student.process.scales(t, noisy)
    said: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}
    for who in ("teacher", "critic"):
        within, free = who in needs, f"{who}_free" in needs
        if not (within or free):
            continue
        model = networks.need(who)
        with watch(model, taps.modules if taps is not None and taps.who == who else ()) as outputs:
            said |= _ask(model, who, batch, noisy, t, within, free)
        seen |= {name: output[: len(t)] for name, output in outputs.items()}
    return ScorePredictions(samples.clean, noisy, t, alpha, sigma, features=seen, **said)


def _ask(
    model: Denoiser, who: str, batch: Batch, noisy: Tensor, t: Tensor, within: bool, free: bool
) -> dict[str, Tensor]:
    if free and batch.negative is None:
        raise FewstepError(f"guidance of the {who} needs a negative condition", hint="Use guidance 1.")
    if within and free:
        pair = model.both(noisy, t, batch.condition, batch.negative)
        return dict(zip((who, f"{who}_free"), pair, strict=True))
    if free:
        return {f"{who}_free": model(noisy, t, batch.negative)}
    return {who: model(noisy, t, batch.condition)}
