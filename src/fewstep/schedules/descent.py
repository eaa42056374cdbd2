"""Gradient search of a schedule: ordinary descent on the distance from a teacher (LD3, arXiv 2405.15506)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fewstep.errors import FewstepError, NonFiniteError
from fewstep.files import read_tensors, write_tensors
from fewstep.schedules.learnable import LearnableSchedule, detached
from fewstep.schedules.task import SearchResult
from fewstep.schedules.tuning.problem import Objective


def descend(
    learnable: LearnableSchedule,
    objective: Objective,
    *,
    rounds: int = 120,
    rate: float = 0.05,
    batch: int = 16,
    validation: float = 0.5,
    look_every: int = 10,
    seed: int = 0,
    checkpoint: Path | None = None,
    watch: Callable[[int, float], None] | None = None,
) -> SearchResult:
    """Adam on the parameters; the best plan on items that gave no gradient.

    LD3 uses RMSprop at 5e-3 for as many epochs as it takes; Adam at ten times that needs fewer network calls here.

    Args:
        objective: one score per item, with a gradient.
        validation: share of the items that only choose among iterates.
        batch: items per gradient.
        checkpoint: file that every look is kept in; a killed descent goes on from there to the same result.

    Returns:
        The plan, its score on the validation items, the rounds, and (round, validation score) of every look.

    Raises:
        FewstepError: fewer than two items.
        NonFiniteError: every iterate failed.
    """
    if objective.size < 2:
        raise FewstepError("a descent needs items to learn from and items to choose by", value=objective.size)
    held = min(objective.size - 1, max(1, round(validation * objective.size)))
    train, check = range(objective.size - held), range(objective.size - held, objective.size)
    state = _State.begun(learnable, rate)
    if checkpoint is not None and checkpoint.exists():
        state.load(checkpoint)
    for k in range(state.round, rounds + 1):
        looked = bool(state.history) and state.history[-1][0] == k
        if (k % look_every == 0 or k == rounds) and not looked:
            with torch.no_grad():
                value = float(objective(detached(learnable.build(state.detached())), check).mean())
            state.note(k, value)
            if checkpoint is not None:
                state.save(checkpoint)
            if watch is not None:
                watch(k, value)
        if k == rounds:
            break
        draw = torch.Generator().manual_seed(seed * 1_000_003 + k)  # of its round alone: a resumed descent draws alike
        items = torch.randperm(len(train), generator=draw)[:batch].tolist()
        with torch.enable_grad():
            loss = -objective(learnable.build(state.parameters), items).mean()
            slopes = torch.autograd.grad(loss, list(state.parameters.values()), allow_unused=True)
        state.step(slopes, 0.05 + 0.95 * (1 + math.cos(math.pi * k / rounds)) / 2)
    if state.best is None:
        raise NonFiniteError("every iterate of the descent gave NaN", hint="Lower the rate, or check the network.")
    plan = detached(learnable.build(state.best))
    value = max(v for _, v in state.history if math.isfinite(v))
    return SearchResult(plan, value, rounds, tuple(state.history))


@dataclass
class _State:
    """Parameters, the optimiser's memory, the best so far, and the way there."""

    parameters: dict[str, Tensor]
    optimiser: torch.optim.Adam
    rates: list[float]
    round: int = 0
    best: dict[str, Tensor] | None = None
    history: list[tuple[int, float]] = field(default_factory=list)

    @classmethod
    def begun(cls, learnable: LearnableSchedule, rate: float) -> _State:
        parameters = {name: p.clone().requires_grad_(True) for name, p in learnable.start.items()}
        rates = [rate * learnable.rates[name] for name in parameters]
        groups = [{"params": [p], "lr": r} for p, r in zip(parameters.values(), rates, strict=True)]
        return cls(parameters, torch.optim.Adam(groups, betas=(0.9, 0.99)), rates)

    def detached(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def note(self, k: int, value: float) -> None:
        known = [v for _, v in self.history if math.isfinite(v)]
        if math.isfinite(value) and (not known or value > max(known)):
            self.best = self.detached()
        self.history.append((k, value))
        self.round = k

    def step(self, slopes: Sequence[Tensor | None], factor: float) -> None:
        for p, slope in zip(self.parameters.values(), slopes, strict=True):
            p.grad = torch.zeros_like(p) if slope is None else slope.nan_to_num()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimiser.step()
        self.round += 1

    def save(self, file: Path) -> None:
        kept = {f"parameter.{name}": p for name, p in self.detached().items()}
        kept |= {f"best.{name}": p for name, p in (self.best or {}).items()}
        kept["history"] = torch.tensor(self.history, dtype=torch.float64)
        for name, p in self.parameters.items():
            kept |= {f"adam.{name}.{key}": value for key, value in self.optimiser.state.get(p, {}).items()}
        write_tensors(file, kept, over="all")  # it was absent, or read at the start

    def load(self, file: Path) -> None:
        kept = read_tensors(file)
        if any(f"parameter.{name}" not in kept for name in self.parameters):
            raise FewstepError("the checkpoint holds other parameters", value=str(file), hint="Delete it: start anew.")
        self.history = [(int(k), float(value)) for k, value in kept["history"].tolist()]
        self.round = self.history[-1][0]
        for name, p in self.parameters.items():
            with torch.no_grad():
                p.copy_(kept[f"parameter.{name}"])
            prefix = f"adam.{name}."
            memory = {key.removeprefix(prefix): value for key, value in kept.items() if key.startswith(prefix)}
            if memory:
                self.optimiser.state[p] = memory
        best = {key.removeprefix("best."): value for key, value in kept.items() if key.startswith("best.")}
        self.best = best or None
