"""Averages whose width can be chosen after the training (arXiv 2312.02696, section 3 and appendix C).

Power-function averages of a few widths are kept and stored now and then; any other width is put together from those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fewstep.errors import FewstepError
from fewstep.files import read_tensors, write_tensors
from fewstep.runs import processes
from fewstep.train.ema import named_tensors
from fewstep.train.shards import like, whole

WIDTHS = (0.05, 0.10)
"""Relative standard deviations that are kept, as in the paper."""


def exponent(width: float) -> float:
    """gamma of the profile tau^gamma whose standard deviation is `width` times the training's length (eq. 123).

    Raises:
        FewstepError: a width that no profile has.
    """
    if not 0 < width < 0.289:  # gamma 0, the plain mean, has 1 / sqrt(12)
        raise FewstepError("the relative width of an average lies between 0 and 0.289", value=width)
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class PowerEMA:
    """Averages of named modules with profiles tau^gamma: beta_t = (1 - 1/t)^(gamma + 1) at update t (eq. 127)."""

    def __init__(self, modules: Mapping[str, nn.Module], widths: Sequence[float] = WIDTHS) -> None:
        self.widths, self.updates = tuple(widths), 0
        self._powers = [exponent(width) + 1 for width in widths]
        self.shadows = [{n: t.detach().clone().float() for n, t in _floats(modules)} for _ in widths]

    @torch.no_grad()
    def update(self, modules: Mapping[str, nn.Module]) -> None:
        """One step."""
        self.updates += 1
        now = [tensor.float() for _, tensor in _floats(modules)]
        for power, shadow in zip(self._powers, self.shadows, strict=True):
            beta = (1 - 1 / self.updates) ** power
            torch._foreach_lerp_(list(shadow.values()), now, 1 - beta)

    def state(self) -> dict[str, torch.Tensor]:
        """All averages by `WIDTH/NAME`."""
        return {f"{w:g}/{n}": t for w, shadow in zip(self.widths, self.shadows, strict=True) for n, t in shadow.items()}

    def load(self, state: Mapping[str, torch.Tensor], updates: int) -> None:
        """Continue from stored averages."""
        for name, tensor in self.state().items():
            tensor.copy_(like(state[name], tensor))
        self.updates = updates

    def store(self, folder: Path) -> None:
        """Write a snapshot for `reconstruct_average`."""
        state = {name: whole(tensor) for name, tensor in self.state().items()}
        if processes.leads():
            write_tensors(folder / f"{self.updates:08d}.safetensors", state)


def reconstruct_average(folder: str | Path, width: float, at: int | None = None) -> dict[str, torch.Tensor]:
    """The average of this width at update `at` (the last stored one unless given), from all snapshots up to it.

    The least-squares fit of its profile by the stored ones (eq. 133 to 139). Tensors of buffers that are no floats are
    not averaged and not returned.

    Raises:
        FewstepError: no snapshots.
    """
    files = {int(file.stem): file for file in sorted(Path(folder).glob("*.safetensors"))}
    last = max(files, default=0) if at is None else at
    files = {step: file for step, file in files.items() if step <= last}
    if not files:
        raise FewstepError("no stored averages here", value=str(folder), hint="Train with ema_widths=[0.05, 0.1].")
    widths = sorted({float(name.partition("/")[0]) for name in read_tensors(next(iter(files.values())))})
    stored = [(step, width_) for step in files for width_ in widths]
    share = profile_shares([(t, exponent(w)) for t, w in stored], (last, exponent(width)))
    mixed: dict[str, torch.Tensor] = {}
    for step, file in files.items():
        for name, tensor in read_tensors(file).items():
            text, _, plain = name.partition("/")
            part = tensor.double() * share[stored.index((step, float(text)))]
            mixed[plain] = part if plain not in mixed else mixed[plain] + part
    return {name: tensor.float() for name, tensor in mixed.items()}


def profile_shares(stored: Sequence[tuple[float, float]], wanted: tuple[float, float]) -> list[float]:
    """Shares of stored profiles (last time, gamma) that come nearest to the wanted one in the L2 sense."""
    matrix = np.array([[_overlap(a, b) for b in stored] for a in stored])
    goal = np.array([_overlap(a, wanted) for a in stored])
    found: list[float] = np.linalg.lstsq(matrix, goal, rcond=None)[0].tolist()
    return found


def _overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Integral of the product of two profiles (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t]."""
    (s, p), (t, q) = a, b
    low = min(s, t)
    return (p + 1) * (q + 1) / (p + q + 1) * (low / s) ** p * (low / t) ** q * low / (s * t)


def _floats(modules: Mapping[str, nn.Module]) -> list[tuple[str, torch.Tensor]]:
    return [(name, tensor) for name, tensor in named_tensors(modules) if tensor.is_floating_point()]
