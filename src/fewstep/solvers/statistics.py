"""Empirical model statistics of DPM-Solver-v3: functions of half log-SNR, their integrals, and their file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from fewstep.errors import FewstepError, PlanError
from fewstep.files import read_tensors, write_tensors


@dataclass(frozen=True, eq=False)
class ModelStatistics:
    """The functions l, s, b of half log-SNR (arXiv 2310.13268) on a rising grid, and their origin.

    lam: (N + 1,), rising. l, s, b: each (N + 1,), or (N + 1, C, H, W) for one value per element. All float64;
    between the nodes they are linear.

    Raises:
        PlanError: shapes disagree, lam does not rise, or a value is not finite.
    """

    lam: Tensor
    l: Tensor  # noqa: E741  the paper's name
    s: Tensor
    b: Tensor
    model: str | None = None
    """Fingerprint of the network; None: any."""
    guidance: float | None = None
    samples: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("lam", "l", "s", "b"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name)).detach().double().cpu().contiguous())
        shapes = [tuple(t.shape) for t in (self.lam, self.l, self.s, self.b)]
        if self.lam.ndim != 1 or len(self.lam) < 2 or len({*shapes[1:]}) != 1 or shapes[1][:1] != shapes[0]:
            raise PlanError(
                "statistics need lam (N + 1,) and l, s, b of one shape (N + 1, ...)",
                value=shapes,
                hint="Make them with `estimate_statistics`.",
            )
        if not bool((self.lam.diff() > 0).all()):
            raise PlanError("lam of the statistics must rise strictly", hint="Sort it and drop duplicates.")
        if not all(bool(t.isfinite().all()) for t in (self.lam, self.l, self.s, self.b)):
            raise PlanError("statistics must be finite", hint="Estimate them again, in float32 or float64.")

    # --- variants ---------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one value: () for scalars, else that of one sample."""
        return tuple(self.l.shape[1:])

    def averaged(self) -> ModelStatistics:
        """One scalar per lam, for another resolution or for a plan file without tensors."""
        return self._with(*(t.flatten(1).mean(1) if t.ndim > 1 else t for t in (self.l, self.s, self.b)))

    def linear(self) -> ModelStatistics:
        """With l alone (s = b = 0): the part that is safe at few steps, where the integral of s becomes large."""
        return self._with(self.l, torch.zeros_like(self.s), torch.zeros_like(self.b))

    def _with(self, l: Tensor, s: Tensor, b: Tensor) -> ModelStatistics:  # noqa: E741
        return ModelStatistics(self.lam, l, s, b, self.model, self.guidance, self.samples, self.seed)

    # --- integrals, exact for the piecewise linear functions ---------------------------------------------------------

    def at(self, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """l, s, b at a 0-dim lam.

        Raises:
            PlanError: outside of the statistics.
        """
        cell, away = self._cell(lam)
        return tuple(t[cell] + away * rate[cell] for t, rate in zip((self.l, self.s, self.b), self._rates, strict=True))  # type: ignore[return-value]

    def between(self, start: Tensor, end: Tensor) -> Tensor:
        """The nodes strictly between two 0-dim lam."""
        first, last = torch.searchsorted(self.lam, torch.stack([start.detach(), end.detach()])).tolist()
        inside = self.lam[first:last]
        return inside[1:] if first < last and bool(inside[0] == start.detach()) else inside

    def integrals(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """b, and the integrals L and S from the first node, at points of any shape; each (*points.shape, *shape).

        Raises:
            PlanError: outside of the statistics.
        """
        cell, away = self._cell(points)
        away = away.reshape((*away.shape, *[1] * len(self.shape)))
        L, S = (
            total[cell] + away * (value[cell] + away * half[cell])
            for total, value, half in zip(self._sums, (self.l, self.s), self._halves, strict=True)
        )
        return self.b[cell] + away * self._rates[2][cell], L, S

    @cached_property
    def _ends(self) -> tuple[float, float]:
        return float(self.lam[0]), float(self.lam[-1])

    @cached_property
    def _rates(self) -> tuple[Tensor, Tensor, Tensor]:
        gaps = self._along(self.lam.diff())
        return self.l.diff(dim=0) / gaps, self.s.diff(dim=0) / gaps, self.b.diff(dim=0) / gaps

    @cached_property
    def _halves(self) -> tuple[Tensor, Tensor]:
        return self._rates[0] / 2, self._rates[1] / 2

    @cached_property
    def _sums(self) -> tuple[Tensor, Tensor]:
        gaps = self._along(self.lam.diff())
        sums = [torch.cumsum((t[1:] + t[:-1]) / 2 * gaps, 0) for t in (self.l, self.s)]
        return torch.cat([0 * sums[0][:1], sums[0]]), torch.cat([0 * sums[1][:1], sums[1]])

    def _along(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * len(self.shape))

    def _cell(self, lam: Tensor) -> tuple[Tensor, Tensor]:
        """Index of the piece, and the (differentiable) distance from its left node."""
        at = lam.detach()
        first, last = self._ends
        least, most = torch.stack(at.aminmax()).tolist()
        slack = 1e-6 * (last - first)  # rounding of time <-> lam
        if not first - slack <= least <= most <= last + slack:
            raise PlanError(
                f"the statistics cover half log-SNR {first:.4g} to {last:.4g}",
                value=[round(least, 4), round(most, 4)],
                hint="Set first and last times of the grid inside, or estimate them on a wider lam.",
            )
        cell = (torch.searchsorted(self.lam, at.contiguous(), right=True) - 1).clamp(0, len(self.lam) - 2)
        return cell, lam - self.lam[cell]

    # --- files -------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a safetensors file whose header says model, guidance, samples and seed; atomic.

        overwrite: replace a file that fewstep wrote; others are never replaced (FewstepError).
        """
        header = {"fewstep_statistics": "1", "samples": str(self.samples), "seed": str(self.seed)}
        header |= {} if self.model is None else {"model": self.model}
        header |= {} if self.guidance is None else {"guidance": repr(self.guidance)}
        tensors = {name: getattr(self, name) for name in ("lam", "l", "s", "b")}
        write_tensors(path, tensors, header, over="ours" if overwrite else "nothing")

    @classmethod
    def load(cls, path: str | Path) -> ModelStatistics:
        """Read what `save` wrote.

        Raises:
            FewstepError: the file is absent, truncated or of another kind.
        """
        tensors = read_tensors(path)
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
        if "fewstep_statistics" not in header or {*tensors} != {"lam", "l", "s", "b"}:
            raise FewstepError(f"{path} holds no statistics", value=sorted(tensors), hint="Write it with save.")
        guidance = header.get("guidance")
        return cls(
            **tensors,
            model=header.get("model"),
            guidance=None if guidance is None else float(guidance),
            samples=int(header.get("samples", 0)),
            seed=int(header.get("seed", 0)),
        )
