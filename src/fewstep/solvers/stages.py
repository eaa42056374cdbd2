"""The nodes of a time grid as symbols, in which solvers write their updates, and their assembly into a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import PlanError
from fewstep.plan import Coefficient, Combination, Plan, Row, data_of, noise_of, state
from fewstep.prediction import Prediction
from fewstep.process import Process, RectifiedFlow
from fewstep.solvers.grids import Grid

Update = tuple[Combination, Any] | tuple[Combination, Any, Coefficient]
"""The next state: a combination, plus so many times fresh noise, plus a constant (none if left out)."""


class Stages:
    """Nodes 0..K of a grid (K network calls, then the end): scales as 0-dim float64 tensors, estimates as symbols.

    With `sigma_space` the state is x / alpha (k-diffusion's convention: alpha = 1, sigma = sigma / alpha) and the
    network receives it times alpha: the same process, rescaled. `times` are the times of the network calls where they
    are not those of the grid: a solver may call between its steps, or twice at one time.
    """

    def __init__(
        self,
        process: Process,
        prediction: Prediction,
        grid: Grid,
        *,
        sigma_space: bool = False,
        times: Tensor | None = None,
    ) -> None:
        self.process, self.prediction, self.grid = process, prediction, grid
        self._times = grid.times if times is None else times
        alphas, sigmas = process.alpha(self._times), process.sigma(self._times)
        refuse_impossible(process, prediction, self._times, sigma_space)
        if grid.end is None:
            end_alpha, end_sigma = torch.ones(1).double(), torch.zeros(1).double()
        else:
            end = torch.tensor([grid.end], dtype=torch.float64)
            refuse_outside(process, end)
            end_alpha, end_sigma = process.alpha(end), process.sigma(end)
        self._scales, self._sigma_space = torch.ones_like(alphas), sigma_space
        if sigma_space:
            self._scales = alphas
            sigmas, alphas = sigmas / alphas, torch.ones_like(alphas)
            end_sigma, end_alpha = end_sigma / end_alpha, torch.ones_like(end_alpha)
        self.alpha: tuple[Tensor, ...] = torch.cat([alphas, end_alpha]).unbind()
        self.sigma: tuple[Tensor, ...] = torch.cat([sigmas, end_sigma]).unbind()
        self._lams: dict[int, Tensor] = {}
        self._estimates: dict[tuple[str, int], Combination] = {}
        self._rows = [self._row(k) for k in range(len(self))]

    def __len__(self) -> int:
        return len(self._times)

    def time(self, k: int) -> Tensor:
        """Process time at node k, which must be a network call."""
        return self._times[k]

    def lam(self, k: int) -> Tensor:
        """Half log-SNR at node k (infinite at a clean end)."""
        if k not in self._lams:
            self._lams[k] = self.alpha[k].log() - self.sigma[k].log()
        return self._lams[k]

    def x(self, k: int) -> Combination:
        """The state at node k."""
        return state(k)

    def data(self, k: int) -> Combination:
        """The data estimate of the network at node k."""
        return self._estimate("data", data_of, k)

    def noise(self, k: int) -> Combination:
        """The noise estimate of the network at node k."""
        return self._estimate("noise", noise_of, k)

    def _estimate(self, kind: str, make: Callable[[Row, int, Prediction], Combination], k: int) -> Combination:
        if (kind, k) not in self._estimates:  # multistep solvers ask for each one several times
            # plain numbers where nothing is learned: combining 0-dim tensors would be most of a plan's time
            self._estimates[kind, k] = make(self._rows[k].map(plain), k, self.prediction)
        return self._estimates[kind, k]

    def plan(self, updates: Sequence[Update], solver: str, **settings: Any) -> Plan:
        """The plan whose rows make the states of these updates."""
        rows = []
        for row, (update, noise, *constant) in zip(self._rows, updates, strict=True):
            tables = {
                kind: {j: plain(c) for j, c in getattr(update, kind).items() if not _is_zero(c)}
                for kind in ("state", "output")
            }
            offset = 0.0 if not constant or _is_zero(constant[0]) else plain(constant[0])
            changed = {**tables, "noise": plain(noise), "offset": offset}
            rows.append(Row(**{**vars(row.map(plain)), **changed}))
        # plans are written as JSON, which has no infinity
        settings = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in settings.items()}
        first_alpha, first_sigma = float(self.alpha[0].detach()), float(self.sigma[0].detach())
        return Plan(
            rows=tuple(rows),
            prediction=self.prediction,
            final_alpha=plain(self.alpha[-1]),
            final_sigma=plain(self.sigma[-1]),
            prior_scale=first_sigma if first_alpha == 1.0 else math.hypot(first_alpha, first_sigma),
            origin={"solver": solver, "process": repr(self.process), "steps": len(self), **self._shift(), **settings},
        )

    def _shift(self) -> dict[str, float]:
        """The shift of a flow: pipelines with dynamic shift compare it with that of the picture they are asked for."""
        return {"shift": self.process.shift} if isinstance(self.process, RectifiedFlow) else {}

    def _row(self, k: int) -> Row:
        return Row(
            time=self._times[k],
            network_time=self.process.network_time(self._times[k]),
            alpha=self.alpha[k],
            sigma=self.sigma[k],
            state={},
            output={},
            input_scale=self._input_scale(k),
        )

    def _input_scale(self, k: int) -> Coefficient:
        if self.prediction.kind != "edm" and not self._sigma_space:
            return 1.0  # also on a learned grid: nothing is scaled
        scale = self._scales[k]
        return scale * self.prediction.input_scale(scale * self.alpha[k], scale * self.sigma[k])


def refuse_impossible(process: Process, prediction: Prediction, times: Tensor, sigma_space: bool = False) -> None:
    """Name what would otherwise show as coefficients that are not finite, or as a wrong plan (PlanError)."""
    times = times.detach()
    refuse_outside(process, times)
    alphas, sigmas = process.alpha(times), process.sigma(times)
    if bool((alphas == 0).any()) and (sigma_space or prediction.kind in ("epsilon", "score")):
        what = "sigma / alpha is infinite" if sigma_space else f"a {prediction.kind} network says nothing of the data"
        raise PlanError(
            f"{what} where there is no signal (zero terminal SNR)",
            value=float(times[alphas == 0][0]),
            hint="Start the grid below pure noise, or use ddim with a v_prediction or velocity network.",
        )
    if bool((sigmas == 0).any()):
        raise PlanError(
            "the network would be asked about clean data (sigma = 0)",
            value=float(times[sigmas == 0][0]),
            hint="End the grid there (`end=`) instead of calling there.",
        )


def refuse_outside(process: Process, times: Tensor) -> None:
    """Refuse times that the process does not have: no network was trained there (PlanError)."""
    low, high = process.cleanest, process.noisiest
    room = 1e-6 * (high - low)  # grids are computed
    inside = (times >= low - room) & (times <= high + room) & process.sigma(times).isfinite()
    if not bool(inside.all()):
        raise PlanError(
            f"the grid leaves the times of {type(process).__name__}",
            value=float(times[~inside][0]),
            hint=f"Stay between {low:g} and {high:g}, or give the process the range that its network was trained on.",
        )


def plain(value: Coefficient) -> Coefficient:
    """Numbers become floats; what depends on a learned grid stays a tensor."""
    if isinstance(value, Tensor):
        return value if value.requires_grad or value.ndim else float(value)
    return float(value)


def _is_zero(value: Coefficient) -> bool:
    if not isinstance(value, Tensor):
        return value == 0
    return not value.requires_grad and not bool(value.any())
