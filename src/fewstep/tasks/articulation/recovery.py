"""The joint whose video a generator finds likely: score distillation over a few numbers (arXiv 2502.07278)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from fewstep.denoiser import Condition, Denoiser
from fewstep.distillation.core import Batch, Networks, Samples, Term
from fewstep.distillation.parts import scale_weight, scheduled, score_distillation, score_sampling, uniform_times
from fewstep.errors import FewstepError
from fewstep.tasks.articulation.joints import RigidPart
from fewstep.transition import noise_like

Draw = Callable[[RigidPart], Tensor]
"""(candidates of leading size B) -> their videos (B, ...), in what the generator works in."""


@dataclass(frozen=True)
class NoiseRange:
    """Which noise levels judge a video: the dial between averaging what the generator believes and picking one of it.

    Attributes:
        low: least fraction of the process's range.
        high: largest at the start.
        final: largest at the end; the cosine between the two falls towards it. High throughout (0.8 to 0.98) averages,
            low at the end (0.3) picks.
    """

    low: float = 0.02
    high: float = 0.98
    final: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.final <= self.high <= 1:
            value = (self.low, self.final, self.high)
            raise FewstepError("noise needs 0 <= low <= final <= high <= 1", value=value, hint="Use 0.02, 0.3, 0.98.")


@dataclass(frozen=True, eq=False)
class Recovery:
    """Candidates after the search, the likeliest first.

    Attributes:
        parts: the candidates, each a single joint.
        misfit: (B,), how far the generator would move each video: mean over noise levels of w |x - F(x_t)|^2.
    """

    parts: tuple[RigidPart, ...]
    misfit: Tensor

    @property
    def best(self) -> RigidPart:
        """The likeliest."""
        return self.parts[0]


def sampling_term(noise: NoiseRange = NoiseRange(), guidance: float = 1.0) -> Term:
    """Score distillation sampling with w = sigma^2, its noise range falling as the search goes on."""

    def at(batch: Batch) -> Term:
        high = noise.high + (noise.final - noise.high) * batch.progress
        times = uniform_times(noise.low, max(high, noise.low))
        return score_distillation(score_sampling(guidance), times, (scale_weight(1.0, 1.0),))

    return scheduled(at)


def recover(
    draw: Draw,
    starts: RigidPart,
    teacher: Denoiser,
    *,
    steps: int = 300,
    rate: float = 0.02,
    noise: NoiseRange = NoiseRange(),
    guidance: float = 1.0,
    condition: Condition | None = None,
    negative: Condition | None = None,
    held: tuple[str, ...] = (),
    seed: int = 0,
) -> Recovery:
    """Move every candidate (B) so that its video looks likely; one term, one optimizer, all candidates at once.

    Args:
        draw: the renderer.
        starts: candidates of leading size B, of one kind.
        teacher: the generator; its process noises the videos.
        steps: updates.
        rate: of Adam, for radians and units of length alike; it falls to a tenth.
        noise: see `NoiseRange`.
        guidance: classifier-free, diffusers' scale; 1 is none.
        condition: of the generator, tensors of leading size 1.
        negative: that of no condition, where there is guidance.
        held: of `axis`, `origin` and `travel`, what is known and stays.
        seed: of the noise.
    """
    count = len(starts.travel)
    values = {name: getattr(starts, name).detach().clone() for name in ("axis", "origin", "travel")}
    free = [value.requires_grad_() for name, value in values.items() if name not in held]
    optimizer = torch.optim.Adam(free, lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=rate / 10)
    term, generator = sampling_term(noise, guidance), torch.Generator().manual_seed(seed)
    for step in range(steps):
        clean = draw(replace(starts, **values))
        batch = _batch(clean, condition, negative, step, steps)
        loss, _ = term(Networks(teacher, teacher), batch, _as_samples(clean, teacher), generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            values["axis"].copy_(replace(starts, **values).direction)
    found = replace(starts, **{name: value.detach() for name, value in values.items()})
    misfit = misfits(draw, found, teacher, guidance=guidance, condition=condition, negative=negative, seed=seed)
    order = misfit.argsort()
    return Recovery(tuple(found.row(int(k)) for k in order[:count]), misfit[order])


@torch.no_grad()
def misfits(
    draw: Draw,
    parts: RigidPart,
    teacher: Denoiser,
    *,
    levels: tuple[float, ...] = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95),
    guidance: float = 1.0,
    condition: Condition | None = None,
    negative: Condition | None = None,
    seed: int = 0,
) -> Tensor:
    """How far the generator would move each candidate's video (B,), at the same noise for all: smaller is likelier.

    levels: fractions of the process's range, one call each.
    """
    clean, process = draw(parts), teacher.process
    generator, total = torch.Generator().manual_seed(seed), torch.zeros(len(clean))
    batch = _batch(clean, condition, negative, 0, 1)
    for level in levels:
        t = torch.full((len(clean),), level * process.noisiest, dtype=torch.float64)
        noise = noise_like((1, *clean.shape[1:]), generator, clean).expand_as(clean)
        noisy = process.add_noise(clean, noise, t)
        if guidance == 1:
            said = teacher(noisy, t, batch.condition)
        else:
            within, without = teacher.both(noisy, t, batch.condition, batch.negative)
            said = without + guidance * (within - without)
        weight = (process.alpha(t) / process.sigma(t)).clamp(max=1).to(clean)
        total += weight * (clean - said).square().flatten(1).mean(1)
    return total / len(levels)


def starts_for(kind: str, box: Tensor, travel: float) -> RigidPart:
    """Candidates (B) around a part's box (2, 3), its lowest and highest corner: every axis, both senses.

    A part that turns may have its hinge at any edge of the box along the axis, or in the middle: 3 * 5 * 2 = 30;
    one that slides, 3 * 2 = 6.

    Args:
        kind: of the joint.
        box: of the part at rest.
        travel: radians or units of length.
    """
    low, high = box
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)] if kind == "revolute" else [(0.5, 0.5)]
    axes, origins, travels = [], [], []
    for k, (a, b), sense in product(range(3), places, (1.0, -1.0)):
        share = torch.full((3,), 0.5)
        share[(k + 1) % 3], share[(k + 2) % 3] = a, b
        axes.append(torch.eye(3)[k])
        origins.append(low + share * (high - low))
        travels.append(sense * travel)
    return RigidPart(kind, torch.stack(axes), torch.stack(origins), torch.tensor(travels))


def picked(starts: RigidPart, misfit: Tensor, count: int) -> RigidPart:
    """The likeliest candidates of a batch."""
    rows = misfit.argsort()[:count]
    return replace(starts, axis=starts.axis[rows], origin=starts.origin[rows], travel=starts.travel[rows])


def together(batch: RigidPart, joints: Sequence[RigidPart]) -> RigidPart:
    """A batch of candidates with single ones of the same kind behind it."""
    rows = [(joint.axis, joint.origin, joint.travel) for joint in joints]
    parts = zip((batch.axis, batch.origin, batch.travel), zip(*rows, strict=True), strict=True) if rows else ()
    merged = [torch.cat([whole, torch.stack(single)]) for whole, single in parts]
    return RigidPart(batch.kind, *merged) if merged else batch


def _batch(clean: Tensor, condition: Condition | None, negative: Condition | None, step: int, steps: int) -> Batch:
    size = len(clean)

    def spread(given: Condition | None) -> Condition | None:
        return given and {name: value.expand(size, *value.shape[1:]) for name, value in given.items()}

    return Batch(
        size, tuple(clean.shape[1:]), condition=spread(condition), negative=spread(negative), step=step, steps=steps
    )


def _as_samples(clean: Tensor, teacher: Denoiser) -> Samples:
    """Rendered videos as the samples of a student of one call."""
    top = torch.full((len(clean),), teacher.process.noisiest, dtype=torch.float64)
    return Samples(clean, clean.detach(), top, torch.zeros_like(top), torch.zeros(len(clean), dtype=torch.long))
