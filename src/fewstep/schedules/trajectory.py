"""A teacher's trajectory: where a fine plan went, and what the network said there; the cache of every search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewstep.errors import PlanError
from fewstep.executor import Network, sample
from fewstep.plan import Plan, data_of, noise_of
from fewstep.plan.history import History, ready_rows


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The states and raw outputs of a deterministic plan.

    states: x_0..x_{K-1}, (K, B, ...); outputs: n_0..n_{K-1}, same shape.

    Raises:
        PlanError: not one state and one output per row, or a plan that draws noise.
    """

    plan: Plan
    states: Tensor
    outputs: Tensor

    def __post_init__(self) -> None:
        if self.plan.stochastic:
            raise PlanError("a teacher trajectory needs a deterministic plan", hint="Use ddim, unipc or heun.")
        if not len(self.states) == len(self.outputs) == self.plan.steps:
            raise PlanError("one state and one output per row are needed", value=(len(self.states), self.plan.steps))

    @classmethod
    def follow(cls, plan: Plan, network: Network, *, seeds: Sequence[int], shape: Sequence[int]) -> Trajectory:
        """The trajectory of the executor: B = len(seeds) samples of this shape; no gradients."""
        states, outputs = list[Tensor](), list[Tensor]()

        def noting(x: Tensor, time: Tensor) -> Tensor:
            raw = network(x, time)
            outputs.append(raw.to(x.dtype))
            # the network saw the state times the row's input scale
            states.append(x / plan.rows[len(states)].input_scale)
            return raw

        with torch.no_grad():
            sample(plan, noting, seeds=seeds, shape=shape)
        return cls(plan, torch.stack(states), torch.stack(outputs))

    @cached_property
    def final(self) -> Tensor:
        """Where the plan ends, (B, ...): needs no network call."""
        rows = ready_rows(self.plan, self.states.device, self.states.dtype)
        history, x = History.of(self.plan, rows), self.states[0]
        for k in range(len(rows)):
            x = history.advance(k, x, self.outputs[k])
            if k + 1 < len(rows):
                x = self.states[k + 1]  # what was really seen: the rounding of half precision included
        return x

    def data(self, k: int) -> Tensor:
        """The data estimate at row k, (B, ...)."""
        return self._estimate(data_of(self.plan.rows[k], k, self.plan.prediction), k)

    def noise(self, k: int) -> Tensor:
        """The noise estimate at row k, (B, ...)."""
        return self._estimate(noise_of(self.plan.rows[k], k, self.plan.prediction), k)

    def _estimate(self, combination: object, k: int) -> Tensor:
        p, m = combination.state.get(k, 0.0), combination.output.get(k, 0.0)  # type: ignore[attr-defined]
        return float(p) * self.states[k] + float(m) * self.outputs[k]

    def levels(self) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at the K rows and at the end, each (K + 1,) float64."""
        rows, plan = self.plan.rows, self.plan
        alpha = torch.tensor([*(float(r.alpha) for r in rows), float(plan.final_alpha)], dtype=torch.float64)
        sigma = torch.tensor([*(float(r.sigma) for r in rows), float(plan.final_sigma)], dtype=torch.float64)
        return alpha, sigma
