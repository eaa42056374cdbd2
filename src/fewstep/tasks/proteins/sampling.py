"""Plans of AlphaFold-3-type samplers by name, and the random motion of structures as a hook of the denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.errors import FewstepError, nearest
from fewstep.executor import Network, Noise
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import VE
from fewstep.process.time_conditioning import TimeConditioning
from fewstep.solvers import SOLVERS, Grid
from fewstep.solvers.stages import Stages, Update
from fewstep.tasks.proteins.geometry import centred, rotations, superposed

SIGMA_DATA = 16.0
"""Standard deviation of coordinates that the preconditioning assumes, in angstrom."""
LEVEL = TimeConditioning(lambda lam: -(lam + math.log(SIGMA_DATA)) / 4, lambda told: -(4 * told + math.log(SIGMA_DATA)))
"""log(sigma / 16) / 4, which networks after AlphaFold 3 take for their time."""
CLEAN = Prediction("sample")
"""What `moved` and the denoising functions of predictors give: coordinates in angstrom."""


@dataclass(frozen=True)
class StructureSampler:
    """Schedule and constants of a published sampler; levels are in angstrom, already times sigma_data = 16.

    Attributes:
        gamma: how far states are raised before each step.
        gamma_min: only where the next level is above it.
        noise_scale: of the noise that raises.
        step_scale: of the step.
        most: first level.
        least: last one of the power law.
        rho: power of the schedule.
        spacing: `open`: N steps between N + 1 levels, the last of which becomes zero; `closed`: N levels, then zero;
            `kept`: as `open`, and ends at the last level; `midpoints`: N - 1 steps between N levels in the middle of
            equal parts.
        source: where the numbers were read.
    """

    gamma: float
    gamma_min: float
    noise_scale: float
    step_scale: float
    most: float = 160 * SIGMA_DATA
    least: float = 4e-4 * SIGMA_DATA
    rho: float = 7.0
    spacing: str = "open"
    source: str = ""

    def levels(self, steps: int) -> list[float]:
        """Noise levels in angstrom, the end included.

        Raises:
            FewstepError: fewer steps than this schedule has.
        """
        fewest = 2 if self.spacing in ("closed", "midpoints") else 1
        if steps < fewest:
            raise FewstepError("too few steps for this schedule", value=steps, hint=f"It has {fewest} or more.")
        count = steps if self.spacing in ("closed", "midpoints") else steps + 1
        place = torch.linspace(0, 1, count, dtype=torch.float64)
        if self.spacing == "midpoints":
            place = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        first, last = self.most ** (1 / self.rho), self.least ** (1 / self.rho)
        levels = ((first + place * (last - first)) ** self.rho).tolist()
        if self.spacing == "open":
            return [*levels[:-1], 0.0]
        return [*levels, 0.0] if self.spacing == "closed" else levels


_KNOBS = ("gamma", "gamma_min", "noise_scale", "step_scale")
_ALGORITHM_18 = (0.8, 1.0, 1.003, 1.5)
SAMPLERS: dict[str, StructureSampler] = {
    "af3": StructureSampler(*_ALGORITHM_18, spacing="kept", source="doi 10.1038/s41586-024-07487-w, algorithm 18"),
    "protenix": StructureSampler(*_ALGORITHM_18, source="github.com/bytedance/Protenix"),
    "protenix-mini": StructureSampler(0.0, 1.0, 1.003, 1.0, source="arXiv 2507.11839"),
    "boltz-1": StructureSampler(
        0.605, 1.107, 0.901, 1.638, rho=8.0, spacing="closed", source="github.com/jwohlwend/boltz"
    ),
    "boltz-2": StructureSampler(
        *_ALGORITHM_18, least=1e-4 * SIGMA_DATA, spacing="closed", source="github.com/jwohlwend/boltz"
    ),
    "chai-1": StructureSampler(
        80.0, 80.0, 1.003, 1.0, most=80 * SIGMA_DATA, spacing="midpoints", source="github.com/chaidiscovery/chai-lab"
    ),
}
"""Published samplers by name. Chai's gamma is divided by the steps, at most sqrt(2) - 1, and raises states BELOW
gamma_min; its step is one of second order (`structure_plan`)."""


def structure_plan(
    name: str = "protenix-mini", steps: int = 2, *, levels: Sequence[float] = (), **changes: Any
) -> Plan:
    """A published sampler as a plan for a network that gives clean coordinates and is told sigma in angstrom.

        plan = structure_plan("boltz-2", 200)                       # as it ships
        plan = structure_plan("boltz-2", 5, gamma=0, step_scale=1)  # its schedule, as an ODE of five evaluations

    Args:
        name: one of `SAMPLERS`.
        steps: of the schedule; chai-1 takes one fewer, of two evaluations each.
        levels: noise levels in angstrom, the end included, in place of the schedule.
        changes: fields of `StructureSampler` to change.

    Raises:
        FewstepError: no such sampler or field; too few steps.
    """
    if name not in SAMPLERS:
        raise FewstepError("unknown structure sampler", value=name, hint=nearest(name, SAMPLERS))
    fields = vars(SAMPLERS[name])
    unknown = next((field for field in changes if field not in fields), None)
    if unknown is not None:
        raise FewstepError("a structure sampler has no such constant", value=unknown, hint=nearest(unknown, fields))
    chosen = StructureSampler(**{**fields, **changes})
    path = [float(level) for level in levels] or chosen.levels(steps)
    if len(path) < 2:
        raise FewstepError("levels must hold a start and an end", value=path, hint="End with 0: [2560, 56, 0].")
    origin = {"sampler": name, **{field: value for field, value in vars(chosen).items() if field != "source"}}
    if chosen.spacing == "midpoints":
        plan = _second_order(path, chosen)
    else:
        process = VE(path[0] * (1 + chosen.gamma), "sigma")
        grid = Grid(torch.tensor(path[:-1], dtype=torch.float64), path[-1] or None)
        knobs = {field: getattr(chosen, field) for field in _KNOBS}
        plan = SOLVERS["churned_euler"](process, CLEAN, grid, **knobs)
    return plan.replace(origin={**plan.origin, **origin})


def _second_order(path: Sequence[float], chosen: StructureSampler) -> Plan:
    """Chai-1's step: Heun's mean slope, added to Euler's result rather than in its place, as its code has it.

    e = y' + h d(y', t'),  y_{k+1} = e + h (d(y', t') + d(e, t_{k+1})) / 2,  h = t_{k+1} - t'
    """
    rate = min(chosen.gamma / len(path), math.sqrt(2) - 1)
    raised = [t * (1 + rate) if chosen.least <= t <= chosen.gamma_min else t for t in path[:-1]]
    times = [t for pair in zip(raised, path[1:], strict=True) for t in pair]
    if times[-1] == 0:
        times.pop()
    process = VE(max(times), "sigma")
    grid = Grid(torch.tensor(path[:-1], dtype=torch.float64), path[-1] or None)
    s = Stages(process, CLEAN, grid, times=torch.tensor(times, dtype=torch.float64))
    updates: list[Update] = []
    for k, (start, end) in enumerate(zip(raised, path[1:], strict=True)):
        h, at = end - start, 2 * k
        euler = s.x(at) + h * chosen.step_scale * s.noise(at)
        updates.append((euler, 0.0))
        if end > 0:
            fresh = 0.0
            if k + 1 < len(raised):
                fresh = chosen.noise_scale * math.sqrt(max(0.0, raised[k + 1] ** 2 - end**2))
            updates.append((s.x(at + 1) + (h / 2) * (s.noise(at) + s.noise(at + 1)), fresh))
    return s.plan(updates, "second_order")


def structure_denoiser(network: Callable[..., Tensor], noisiest: float = 2 * 160 * SIGMA_DATA) -> Denoiser:
    """The denoiser of a network with AlphaFold 3's preconditioning: coordinates in angstrom at sigma in angstrom.

    Args:
        network: (structures over sqrt(sigma^2 + 16^2), log(sigma / 16) / 4, **condition) -> raw output.
        noisiest: largest sigma that it may be asked at.
    """
    return Denoiser(network, VE(noisiest, LEVEL), Prediction("edm", sigma_data=SIGMA_DATA))


def moved(
    denoise: Callable[[Tensor, Tensor], Tensor],
    seeds: Sequence[int] | None,
    *,
    translation: float = 1.0,
    align: bool = False,
    mask: Tensor | None = None,
) -> Network:
    """The hook of AlphaFold 3's algorithm 18, line 3: centre and turn at every call; a network for plans.

    The state stays where it is: the network sees R (x - mean) + t and its result is turned back, which gives the next
    state in law, as noise has no direction. The mean is taken after the state is raised, not before; that differs by a
    translation.

    Args:
        denoise: (structures (B, L, 3), sigma 0-dim) -> clean coordinates (B, L, 3), in angstrom.
        seeds: one per structure, of the motions; None: centre alone, nothing random.
        translation: standard deviation of each coordinate of t, in angstrom.
        align: superpose the result on the centred state (Boltz' `alignment_reverse_diff`).
        mask: (B, L), 1 for the atoms that are there.
    """
    noise = None if seeds is None else Noise(Noise(seeds).seeds())  # not the stream that the plan draws from

    def network(x: Tensor, sigma: Tensor) -> Tensor:
        seen = centred(x, mask)
        if noise is None:
            found = denoise(seen, sigma)
        else:
            turn, shift = (noise.draw((n,)).to(x) for n in (4, 3))
            rotation = rotations(turn)
            there = seen @ rotation.transpose(1, 2) + translation * shift.unsqueeze(1)
            found = (denoise(there, sigma) - translation * shift.unsqueeze(1)) @ rotation
        return superposed(found, seen, mask) if align else found

    return network


def bound(denoiser: Denoiser, **condition: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """A denoiser with its conditions as (structures, sigma) -> clean coordinates."""
    return partial(_denoised, denoiser, condition)


def _denoised(denoiser: Denoiser, condition: dict[str, Any], x: Tensor, sigma: Tensor) -> Tensor:
    return denoiser(x, sigma.double().expand(len(x)), condition)
