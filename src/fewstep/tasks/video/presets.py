"""Published ways to train a streaming video student: one engine, and data in which they differ.

The order that works (Causal-Forcing, arXiv 2602.02214): a bidirectional teacher; a causal network trained on real
frames (`forced_diffusion`), because the map of a bidirectional teacher is not one-to-one per frame; few steps from that
one by `causal_consistency`; then the student's own roll-out, matched by the bidirectional teacher.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fewstep.cache import drop, ema_sink, static_sink
from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Batch, Loss, Networks, Rollout, Samples, Term
from fewstep.distillation.method import Method, Preset, check_options, needing, preset
from fewstep.distillation.part import part
from fewstep.distillation.roles import Critic, OptimizerSettings, TargetNetwork, UpdateRule
from fewstep.distillation.rollout import unit_noise
from fewstep.distillation.score.branch import score_distillation
from fewstep.distillation.score.critic import denoising_loss
from fewstep.distillation.score.directions import distribution_matching
from fewstep.distillation.score.weights import error_normalizer, reward_weight
from fewstep.distillation.times import shifted_fraction, uniform_times
from fewstep.errors import FewstepError
from fewstep.process import Process
from fewstep.registry import Registry
from fewstep.tasks.video.roll_out import chunks_of, forced, forced_rollout, noised, self_forcing_rollout
from fewstep.transition import ddim_step

VIDEO: Registry[Preset] = Registry(
    "video distillation method",
    "fewstep.video_methods",
    decorator="fewstep.distillation.method.preset(name, VIDEO)",
    source=lambda known: known.make,
)
"""Every method by name: (process, *, options) -> Method."""


@preset("self_forcing", VIDEO)
def self_forcing(
    process: Process,
    *,
    steps: int = 4,
    chunk: int = 3,
    window: int = 6,
    guidance: float = 4.0,
    ratio: int = 5,
    shift: float = 5.0,
    context_noise: float = 0.0,
) -> Method:
    """Self-Forcing: DMD on the student's own roll-out through a sliding cache (arXiv 2506.08009).

        grad = E_k E_t[w_t (C(x_t) - F^g(x_t))] dx/dtheta,  x: a clip whose chunks all leave the chain at call k

    Args:
        process: of the teacher.
        steps: calls of the student.
        chunk: latent frames that are made together.
        window: earlier frames that are seen.
        guidance: g, of the teacher.
        ratio: updates of the critic per update of the student.
        shift: of the times towards noise.
        context_noise: process time at which the cache is filled.
    """
    chain = shifted_chain(process, steps, shift)
    return matched(self_forcing_rollout(chain, chunk, drop(window), context_noise), chain, guidance, ratio, shift)


@preset("causvid", VIDEO)
def causvid(
    process: Process,
    *,
    steps: int = 4,
    chunk: int = 3,
    window: int = 6,
    guidance: float = 4.0,
    ratio: int = 5,
    shift: float = 5.0,
) -> Method:
    """CausVid: DMD on real clips noised to the student's times, real frames before each chunk (arXiv 2412.07772).

        grad = E_k E_t[w_t (C(x_t) - F^g(x_t))] dx/dtheta,  x: the student's prediction from a real clip at t_k

    Arguments as in `self_forcing`.
    """
    chain = shifted_chain(process, steps, shift)
    made = matched(forced_rollout(chain, chunk, window), chain, guidance, ratio, shift)
    return dataclasses.replace(made, needs=made.needs | {"data"})


@preset("longlive", VIDEO)
def longlive(
    process: Process,
    *,
    steps: int = 4,
    chunk: int = 3,
    window: int = 6,
    sink: int = 3,
    guidance: float = 4.0,
    ratio: int = 5,
    shift: float = 5.0,
) -> Method:
    """LongLive's cache: Self-Forcing whose first frames stay in the window (arXiv 2509.22622).

        grad: as self_forcing; the cache is static_sink(window, sink)

    Its long tuning by streaming clips and its recaching of prompts in training are not here. Arguments as in
    `self_forcing`; sink: frames that stay.
    """
    chain = shifted_chain(process, steps, shift)
    return matched(self_forcing_rollout(chain, chunk, static_sink(window, sink)), chain, guidance, ratio, shift)


@preset("reward_forcing", VIDEO)
def reward_forcing(
    process: Process,
    *,
    steps: int = 4,
    chunk: int = 3,
    window: int = 6,
    sink: int = 3,
    alpha: float = 0.99,
    beta: float = 2.0,
    most: float = 20.0,
    guidance: float = 4.0,
    ratio: int = 5,
    shift: float = 5.0,
) -> Method:
    """Reward Forcing: a sink of averages, and clips weighed by their motion, Re-DMD (arXiv 2512.04678).

        grad = E_k E_t[exp(beta r(x)) w_t (C(x_t) - F^g(x_t))] dx/dtheta;  the cache is ema_sink(window, sink, alpha)

    Arguments as in `self_forcing`, and:

    Args:
        process: of the teacher.
        sink: frames of the sink.
        alpha: what a slot keeps when a frame is averaged into it.
        beta: strength of the reward; 0 leaves it out.
        most: bound of the weight, which the paper does not have.
    """
    chain = shifted_chain(process, steps, shift)
    rollout = self_forcing_rollout(chain, chunk, ema_sink(window, sink, alpha))
    return matched(rollout, chain, guidance, ratio, shift, beta, most)


@preset("causal_consistency", VIDEO)
def causal_consistency(
    process: Process,
    *,
    steps: int = 4,
    chunk: int = 3,
    window: int = 6,
    guidance: float = 3.0,
    points: int = 48,
    decay: float = 0.99,
    shift: float = 5.0,
) -> Method:
    """Consistency distillation of a causal teacher, each chunk with its own time and real frames before it
    (arXiv 2602.02214, after arXiv 2303.01469).

        loss = |f(x_n) - sg f'(Phi_{n-1,n}(x_n))|^2,  f' the slow student, Phi a guided DDIM step of the causal teacher

    Args:
        process: of the teacher.
        steps: calls of the finished student.
        chunk: latent frames that are made together.
        window: earlier frames that are seen.
        guidance: of the teacher.
        points: of the time grid.
        decay: of the slow student.
        shift: of the times towards noise.
    """
    chain = shifted_chain(process, steps, shift)
    term = causal_consistency_loss(chunk, window, shifted_chain(process, points, shift).times, guidance)
    needs = needing(data=True, guided=guidance != 1)
    return Method({"consistency": term}, chain, target=TargetNetwork(decay, warm=True), needs=needs)


def video_method(name: str, process: Process, **options: object) -> Method:
    """The method of that name for this process.

    Raises:
        FewstepError: no such method or option.
    """
    found = VIDEO.find(name)
    check_options(name, options, found.options)
    return found.make(process, **options)


def shifted_chain(process: Process, steps: int, shift: float) -> Chain:
    """Equal parts of the time axis pushed towards noise, new noise between the calls."""
    even = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
    return Chain(tuple((process.noisiest * shifted_fraction(even, shift)).tolist()))


def matched(
    rollout: Rollout,
    chain: Chain,
    guidance: float,
    ratio: int,
    shift: float,
    beta: float = 0.0,
    most: float = 20.0,
) -> Method:
    """Distribution matching of clips by a bidirectional teacher and critic."""
    weights = (error_normalizer(guidance, 1e-2), *((reward_weight(beta=beta, most=most),) if beta else ()))
    term = score_distillation(distribution_matching(guidance), uniform_times(shift=shift), weights)
    return Method(
        {"score": term},
        chain,
        rollout=rollout,
        critic=Critic(denoising_loss(uniform_times(0.001, 1.0, shift)), UpdateRule(ratio)),
        needs=needing(guided=guidance != 1, reward=bool(beta)),
        settings=OptimizerSettings(learning_rate=2e-6, betas=(0.0, 0.999), weight_decay=0.01, clip_norm=10.0, ema=0.99),
    )


@part
def forced_diffusion(chunk: int, window: int | None, shift: float = 1.0, context_noise: float = 0.0) -> Term:
    """Mean squared error of the velocity, each chunk at its own time, real frames before it (teacher forcing).

    chunk: frames that are made together; as long as the clip, it is the training of a bidirectional network.
    """

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        clean, student = _data(batch), networks.student
        noise = unit_noise(networks, batch, generator)
        t = _chunk_times(clean, chunk, student.process, shift, generator)
        noisy = noised(student.process, clean, noise, t)
        if chunk == clean.shape[1]:
            raw = student.raw(noisy, t[:, 0], batch.condition)
            error = raw - (noise - clean)
        else:
            found = forced(student, clean, noisy, t, batch.condition or {}, chunk, window)
            error = (found - clean) / t.to(clean)[..., None, None, None].clamp(min=1e-3)
        value = error.square().mean()
        return value, {"error": value.detach()}

    return loss


@part
def causal_consistency_loss(chunk: int, window: int | None, times: tuple[float, ...], guidance: float) -> Term:
    """Two neighbouring points of the causal teacher's path lead to one clean prediction.

    Args:
        chunk: frames that are made together; each chunk has its own point.
        window: earlier frames that are seen.
        times: of the grid, noisiest first; the data follow the last.
        guidance: of the teacher.
    """
    grid = torch.tensor([*times, 0.0], dtype=torch.float64)

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        clean, condition = _data(batch), batch.condition or {}
        size, frames = clean.shape[:2]
        drawn = torch.randint(len(times), (size, chunks_of(frames, chunk)), generator=generator)
        place = drawn.repeat_interleave(chunk, 1)
        t, s = grid[place], grid[place + 1]
        noisy = noised(networks.student.process, clean, unit_noise(networks, batch, generator), t)
        with torch.no_grad():
            solved = _teacher_step(networks, batch, clean, noisy, t, s, chunk, window, guidance)
            target = networks.need("target")
            slow = forced(target, clean, solved, s.clamp(min=1e-3), condition, chunk, window)
            wanted = torch.where((s == 0).to(clean.device)[..., None, None, None], solved, slow)
        found = forced(networks.student, clean, noisy, t, condition, chunk, window)
        difference = found - wanted
        value = ((difference.square().flatten(2).mean(2) + 1e-4).sqrt() - 1e-2).mean()
        return value, {"squared": difference.detach().square().mean()}

    return loss


def _teacher_step(
    networks: Networks,
    batch: Batch,
    clean: Tensor,
    noisy: Tensor,
    t: Tensor,
    s: Tensor,
    chunk: int,
    window: int | None,
    guidance: float,
) -> Tensor:
    """One guided DDIM step of the causal teacher from times t to s (B, F)."""
    teacher, process = networks.teacher, networks.teacher.process
    found = forced(teacher, clean, noisy, t, batch.condition or {}, chunk, window)
    if guidance != 1:
        free = forced(teacher, clean, noisy, t, batch.negative or {}, chunk, window)
        found = free + guidance * (found - free)
    flat = ddim_step(process, noisy.flatten(0, 1), found.flatten(0, 1), t.flatten(), s.flatten())
    return flat.view_as(clean)


def _data(batch: Batch) -> Tensor:
    if batch.clean is None:
        raise FewstepError("this loss needs real clips", hint="Give the training data.")
    return batch.clean


def _chunk_times(clean: Tensor, chunk: int, process: Process, shift: float, generator: torch.Generator) -> Tensor:
    """Process times (B, F), one per chunk, uniform and then pushed towards noise."""
    u = torch.rand(len(clean), chunks_of(clean.shape[1], chunk), generator=generator, dtype=torch.float64)
    return process.noisiest * shifted_fraction(u, shift).repeat_interleave(chunk, 1)
