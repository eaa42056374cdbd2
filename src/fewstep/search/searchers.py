"""Searchers: functions (problem, budget, seed) that look at candidates; the problem remembers what they saw.

A budget counts network calls in units of one candidate on all items. Every searcher maximises.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.errors import FewstepError, nearest
from fewstep.search.problem import Problem

Searcher = Callable[[Problem, float, int], None]


def grid(problem: Problem, budget: float, seed: int = 0) -> None:
    """The paper's search: every (s0, m0) of a square grid, all items each; budget 2500 is the published 50 x 50."""
    points = max(2, int(budget**0.5))
    for corner in _square(problem, points):
        problem.score(_from_corner(problem, corner))


def coarse_to_fine(problem: Problem, budget: float, seed: int = 0) -> None:
    """A coarse square grid on a quarter of the items, a finer one around its best, then a pattern search.

    The landscapes are smooth with one ridge (tests/core, checks A and B), so few prompts find the neighbourhood and
    many prompts are spent only there. Families with more than two numbers start from the best ramp to one, so that they
    never end below it; the pattern search tries the axes, then a turned set of directions, and halves its step when
    none helps.
    """
    points = 7 if budget >= 60 else 5
    coarse = _rank(problem, _square(problem, points), 0.25, keep=max(2, int(budget * 0.06)))
    best = _rank(problem, coarse, 1.0, keep=1)[0]
    cell = (problem.family.high - problem.family.low) / (points - 1)
    around = [best + cell / 2 * torch.tensor(d).double() for d in itertools.product((-1, 0, 1), repeat=2)]
    fine = _rank(problem, around, 0.5, keep=max(2, int(budget * 0.04)))
    best = _rank(problem, [best, *fine], 1.0, keep=1)[0]
    problem.score(problem.family.identity(problem.plan.steps))
    _pattern_search(problem, _from_corner(problem, best), budget, cell / 2, seed)


def cma_es(problem: Problem, budget: float, seed: int = 0) -> None:
    """CMA-ES through Optuna, with successive halving over the items."""
    import optuna

    _optuna(problem, budget, seed, optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=1))


def tpe(problem: Problem, budget: float, seed: int = 0) -> None:
    """Tree-structured Parzen estimator through Optuna, with successive halving over the items."""
    import optuna

    _optuna(problem, budget, seed, optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=12))


def gradient(problem: Problem, budget: float, seed: int = 0) -> None:
    """Adam on the numbers themselves, through the unrolled plan and the straight-through low-bit network.

    A gradient costs about three forward passes and is counted so. Every fourth iterate is scored on all items.
    """
    objective = problem.objective
    generator = torch.Generator().manual_seed(seed)
    theta = problem.family.identity(problem.plan.steps).requires_grad_(True)
    problem.score(theta.detach())
    share = max(1, objective.size // 2)
    rounds = max(4, int((budget - problem.spent) / (3 * share / objective.size + 0.3)))
    optimiser = torch.optim.Adam([theta], lr=0.02, betas=(0.8, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, rounds, eta_min=0.002)
    for k in range(rounds):
        if problem.spent + 3 * share / objective.size + 1 > budget:
            break
        items = torch.randperm(objective.size, generator=generator)[:share].tolist()
        with torch.enable_grad():
            value = objective(problem.family.apply(problem.plan, theta), items).mean()
            (slope,) = torch.autograd.grad(-value, theta)
        problem.pay(share, times=3)
        theta.grad = slope
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            theta.copy_(problem.clip(theta))
        if k % 4 == 3 or k == rounds - 1:
            problem.score(theta.detach())
    if problem.spent + 1 <= budget:
        problem.score(theta.detach())


SEARCHERS: dict[str, Searcher] = {
    "grid": grid,
    "coarse-to-fine": coarse_to_fine,
    "cma-es": cma_es,
    "tpe": tpe,
    "gradient": gradient,
}


def searcher(name: str) -> Searcher:
    """A searcher by name (FewstepError with the nearest name otherwise)."""
    if name not in SEARCHERS:
        raise FewstepError("unknown searcher", value=name, mend=nearest(name, SEARCHERS))
    return SEARCHERS[name]


def _optuna(
    problem: Problem, budget: float, seed: int, sampler: object, rungs: tuple[float, ...] = (0.25, 0.5, 1.0)
) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    names = [f"c{i}" for i in range(problem.size)]
    study.enqueue_trial(dict.fromkeys(names, 1.0))
    while problem.spent + 1 <= budget:
        trial = study.ask()
        low, high = problem.family.low, problem.family.high
        theta = torch.tensor([trial.suggest_float(n, low, high) for n in names], dtype=torch.float64)
        for rung, fraction in enumerate(rungs, start=1):
            value = problem.score(theta, fraction)
            trial.report(value, rung)
            if fraction < 1 and trial.number > 0 and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, value)


def _pattern_search(problem: Problem, theta: Tensor, budget: float, step: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    best, half = problem.score(theta), problem.score(theta, 0.5)
    turned = False
    while step > 0.004 and problem.spent + 1.5 < budget:
        improved = False
        for direction in _directions(problem, generator, turned):
            for sign in (1.0, -1.0):
                if problem.spent + 1 > budget:
                    return
                trial = problem.clip(theta + sign * step * direction)
                # half of the items decide whether the other half is worth asking
                if problem.score(trial, 0.5) <= half:
                    continue
                value = problem.score(trial)
                if value > best:
                    theta, best, half, improved = trial, value, problem.score(trial, 0.5), True
                    break
        if not improved:
            step = step / 2 if turned else step
            turned = not turned


def _directions(problem: Problem, generator: torch.Generator, turned: bool) -> list[Tensor]:
    """The axes in random order, or a randomly turned set: along a ridge no axis goes uphill."""
    axes = torch.eye(problem.size, dtype=torch.float64)
    if turned:
        axes, _ = torch.linalg.qr(torch.randn(axes.shape, generator=generator, dtype=torch.float64))
    order = torch.randperm(problem.size, generator=generator).tolist()
    return [axes[:, i] for i in order]


def _square(problem: Problem, points: int) -> list[Tensor]:
    """Corners (s0, m0) of a square grid over the box."""
    line = torch.linspace(problem.family.low, problem.family.high, points, dtype=torch.float64)
    return [torch.stack([s, m]) for s in line for m in line]


def _from_corner(problem: Problem, corner: Tensor) -> Tensor:
    return problem.family.from_ramp(problem.clip(corner), problem.plan.steps)


def _rank(problem: Problem, corners: list[Tensor], fraction: float, keep: int) -> list[Tensor]:
    """The best corners at this fidelity, best first."""
    values = [problem.score(_from_corner(problem, c), fraction) for c in corners]
    order = sorted(range(len(corners)), key=lambda i: -values[i])
    return [problem.clip(corners[i]) for i in order[:keep]]
