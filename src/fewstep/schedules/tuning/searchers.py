"""Searchers: functions (problem, budget, seed) that look at candidates; the problem remembers what they saw.

A budget counts network calls in units of one candidate on all items, the identity's among them, and is never exceeded.
Every searcher maximises.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from fewstep.errors import FewstepError, NonFiniteError, Stop
from fewstep.registry import Registry
from fewstep.schedules.tuning.problem import Problem

Searcher = Callable[[Problem, float, int], None]


def grid(problem: Problem, budget: float, seed: int = 0) -> None:
    """The paper's search: every (s0, m0) of a square grid, all items each; budget 2501 is the published 50 x 50."""
    points = max(2, int(problem.left**0.5))
    candidates = [_from_corner(problem, corner) for corner in _square(problem, points)]
    problem.ahead(candidates)
    for theta in candidates:
        problem.score(theta)


def coarse_to_fine(problem: Problem, budget: float, seed: int = 0) -> None:
    """A coarse square grid on a quarter of the items, a finer one around its best, then an ascent with what is left.

    The landscapes are smooth with one ridge (tests/core, checks A and B), so few prompts find the neighbourhood and
    many prompts are spent only there. Families with more than two numbers start from the best ramp to one, so that they
    never end below it.
    """
    points = 7 if budget >= 60 else 5 if budget >= 24 else 3
    coarse = _rank(problem, _square(problem, points), 0.25, keep=max(2, int(budget * 0.06)))
    best = _rank(problem, coarse, 1.0, keep=1)[0]
    cell = (problem.family.high - problem.family.low) / (points - 1)
    if budget >= 24:
        around = [best + cell / 2 * torch.tensor(d).double() for d in itertools.product((-1, 0, 1), repeat=2)]
        fine = _rank(problem, around, 0.5, keep=max(2, int(budget * 0.04)))
        best = _rank(problem, [best, *fine], 1.0, keep=1)[0]
    _ascend(problem, _from_corner(problem, best), cell / 2, seed)


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

    Raises:
        FewstepError: the scores have no gradient.
    """
    objective = problem.objective
    generator = torch.Generator().manual_seed(seed)
    theta = problem.family.identity(problem.plan.steps).requires_grad_(True)
    share = objective.size if problem.whole else max(1, objective.size // 2)
    rounds = max(4, int((budget - problem.spent) / (3 * share / objective.size + 0.3)))
    optimiser = torch.optim.Adam([theta], lr=0.02, betas=(0.8, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, rounds, eta_min=0.002)
    for k in range(rounds):
        if problem.spent + 3 * share / objective.size + 1 > budget:
            break
        items = torch.randperm(objective.size, generator=generator)[:share].tolist()
        with torch.enable_grad():
            theta.grad = -_slope(objective(problem.family.apply(problem.plan, theta), items).mean(), theta)
        problem.pay(share, times=3)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            theta.copy_(problem.clip(theta))
        if k % 4 == 3 or k == rounds - 1:
            problem.score(theta.detach())
    if problem.spent + 1 <= budget:
        problem.score(theta.detach())


def _slope(value: Tensor, theta: Tensor) -> Tensor:
    if not value.requires_grad:
        hint = "Return a tensor that depends on the plan's coefficients, or use another searcher."
        raise FewstepError("the searcher `gradient` needs scores with a gradient", hint=hint)
    return torch.autograd.grad(value, theta)[0]


LEAST_BUDGET = 2.0
"""What any search costs: the identity and one candidate."""

SEARCHERS: Registry[Searcher] = Registry(
    "searcher",
    "fewstep.searchers",
    {"grid": grid, "coarse-to-fine": coarse_to_fine, "cma-es": cma_es, "tpe": tpe, "gradient": gradient},
)


KEPT = 0.25
"""Share of the budget that a search which may widen its box keeps for the time after."""


def searcher(name: str, widen: bool = False) -> Searcher:
    """A searcher by name, that looks at the identity first and ends when its budget is spent.

    widen: where the best candidate lies on the edge of the box, make the box wider once and climb on from there with
    the last quarter of the budget (which goes into the ascent in the same box otherwise).

    Raises:
        FewstepError: an unknown name; the searcher raises it for a budget that allows no candidate, and for scores that
            are not finite where nothing is changed, or the same everywhere.
    """
    look = SEARCHERS.find(name)

    def search(problem: Problem, budget: float, seed: int = 0) -> None:
        if budget < problem.spent + LEAST_BUDGET:
            what = "the budget allows no candidate beside the identity"
            raise FewstepError(what, value=budget, hint=f"Give at least {problem.spent + LEAST_BUDGET:g}.")
        kept = KEPT * (budget - problem.spent) if widen else 0.0
        problem.budget = max(problem.spent + LEAST_BUDGET, budget - kept)
        if not math.isfinite(problem.score(problem.family.identity(problem.plan.steps))):
            hint = "Look at the rewards or features: one gives NaN or infinity for pictures of this very pipeline."
            raise NonFiniteError("the plan as it is has no finite score", hint=hint)
        with suppress(Stop):
            look(problem, problem.budget, seed)
        if widen:
            problem.budget = budget
            _climb_on(problem, seed)
        _refuse_constant(problem)

    return search


def _refuse_constant(problem: Problem) -> None:
    """A search that saw the same score everywhere has found nothing, and its result would look like an optimum."""
    scores = problem.whole_scores
    if len(scores) > 2 and min(scores) == max(scores):
        hint = "Use another reward, or other features: these do not see what the coefficients change."
        raise FewstepError("every candidate has the same score", value=scores[0], hint=hint)


def _climb_on(problem: Problem, seed: int) -> None:
    """From the best candidate with what is left of the budget, in a wider box where it lies on the edge."""
    best = torch.tensor(problem.best.theta, dtype=torch.float64)
    step = 0.05 * (problem.family.high - problem.family.low)
    if problem.family.on_boundary(best):
        problem.widen()
        step *= 2
    with suppress(Stop):
        _ascend(problem, best, step, seed)


ROUND = 4
"""Candidates that Optuna names before it is told of the first: several processes score them side by side."""


def _optuna(
    problem: Problem, budget: float, seed: int, sampler: object, rungs: tuple[float, ...] = (0.25, 0.5, 1.0)
) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    names = [f"c{i}" for i in range(problem.size)]
    study.enqueue_trial(dict.fromkeys(names, 1.0))
    low, high = problem.family.low, problem.family.high
    while problem.left >= 1:
        trials = [study.ask() for _ in range(ROUND)]
        thetas = [torch.tensor([t.suggest_float(n, low, high) for n in names], dtype=torch.float64) for t in trials]
        alive, value = list(range(ROUND)), dict[int, float]()
        for rung, fraction in enumerate(rungs, start=1):
            problem.ahead([thetas[k] for k in alive], fraction)
            for k in list(alive):
                value[k] = problem.score(thetas[k], fraction)
                trials[k].report(value[k], rung)
                if fraction < 1 and trials[k].number > 0 and trials[k].should_prune():
                    study.tell(trials[k], state=optuna.trial.TrialState.PRUNED)
                    alive.remove(k)
        for k in alive:
            study.tell(trials[k], value[k])


def _ascend(problem: Problem, theta: Tensor, step: float, seed: int) -> None:
    """Uphill from `theta` until nothing helps: in quadratic models where their points can be paid for.

    Patterns stop on narrow ridges, which models follow; while a model costs more than is left, patterns climb faster.
    """
    problem.score(theta)
    if problem.left < 3 * problem.size:
        _pattern_search(problem, theta, step, seed)
    while problem.left >= 1:
        before = problem.best
        _trust_region(problem, torch.tensor(before.theta, dtype=torch.float64), step)
        step /= 4  # started again: a model that has shrunk around one point may have missed its side
        if problem.best.value <= before.value or step < FINEST:
            return


FINEST = 1e-4
"""Steps that are not worth a candidate."""


def _trust_region(problem: Problem, theta: Tensor, radius: float) -> None:
    """COBYQA (Ragonneau and Zhang 2023): quadratic models of the scores, inside the box."""
    from scipy.optimize import minimize

    minimize(
        lambda x: -problem.score(torch.from_numpy(x)),
        theta.numpy(),
        method="COBYQA",
        bounds=[(problem.family.low, problem.family.high)] * problem.size,
        options={"initial_tr_radius": radius, "final_tr_radius": FINEST, "maxfev": 100_000},
    )


def _pattern_search(problem: Problem, theta: Tensor, step: float, seed: int) -> None:
    """The axes, then a turned set of directions; a success is tried at twice the step, a failure of all at half."""
    generator = torch.Generator().manual_seed(seed)
    screen = 0.5 if problem.objective.per_item else 1.0  # half of the items decide whether to ask the other half
    best = problem.score(theta)
    turned = False
    while step > 0.004:
        improved = False
        for direction in _directions(problem, generator, turned):
            for sign in (1.0, -1.0):
                stride = sign * step
                while True:
                    trial = problem.clip(theta + stride * direction)
                    if problem.score(trial, screen) <= problem.score(theta, screen) or problem.score(trial) <= best:
                        break
                    theta, best, improved, stride = trial, problem.score(trial), True, 2 * stride
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
    candidates = [_from_corner(problem, c) for c in corners]
    problem.ahead(candidates, fraction)
    values = [problem.score(theta, fraction) for theta in candidates]
    order = sorted(range(len(corners)), key=lambda i: -values[i])
    return [problem.clip(corners[i]) for i in order[:keep]]
