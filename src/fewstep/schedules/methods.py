"""The searches by name: functions (task) -> SearchResult. What a user chooses among with `fewstep search --method`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from fewstep.diagnostics import equalised_grid
from fewstep.errors import FewstepError, PlanError
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.registry import Registry
from fewstep.schedules.candidate import Candidate, ModelInfo, skipping
from fewstep.schedules.descent import descend
from fewstep.schedules.evolution import autodiffusion, random_search, s3
from fewstep.schedules.gits import gits, jump_errors
from fewstep.schedules.learnable import BoundSolver, LearnableSchedule, learn_grid, learn_intermediate, learn_scales
from fewstep.schedules.pool import EvaluationPool, PoolEntry
from fewstep.schedules.space import ScheduleSpace
from fewstep.schedules.task import WORST, SearchResult, SearchTask
from fewstep.solvers import Decision, Grid, grids, per_step


def search_gits(task: SearchTask) -> SearchResult:
    """Times from the teacher's trajectory by dynamic programming; no search at all (arXiv 2405.11326)."""
    plan = task.solver(task.model.process, task.model.prediction, _gits_grid(task, task.steps))
    value = task.value(plan)
    task.note(1, value)
    return SearchResult(_named(plan, "gits"), value, 1, ((1, value),))


def search_ld3(task: SearchTask) -> SearchResult:
    """Times and network times by gradient (arXiv 2405.15506)."""
    start, looked = _best_grid(task, task.steps)
    learnable = learn_grid(task.model.process, task.model.prediction, task.solver, start)
    return _descended(task, learnable, "ld3", task.budget, looked)


def search_amed(task: SearchTask) -> SearchResult:
    """Two evaluations per step, the place of the second and the length of the step learned (arXiv 2312.00094).

    The last step, to a clean end, has one; where the count does not come out, the first evaluation is a formula, as in
    the published settings.
    """
    model = task.model
    single = task.end is None
    spare = (task.steps + single) % 2
    grid, looked = _best_grid(task, (task.steps + single + spare) // 2)
    times = grid.times.clone()
    if len(times) < 2 + spare - (not single):
        raise FewstepError("amed needs a step with two evaluations", value=task.steps, hint="Use three steps or more.")
    if not bool(model.process.lam(times[0]).isfinite()):  # pure noise: the middle in log-SNR is nowhere
        times[0] = 0.999 * times[0]
    learnable = learn_intermediate(model.process, model.prediction, Grid(times, grid.end), analytic_first=bool(spare))
    return _descended(task, learnable, "amed", task.budget, looked)


def search_random(task: SearchTask) -> SearchResult:
    """Random schedules, the control of the evolutionary ones."""
    return _evolved(task, random_search, frozenset({"times", "strategy"}), task.budget)


def search_autodiffusion(task: SearchTask) -> SearchResult:
    """Times, and the blocks to skip in each row where the backbone has any, by evolution (arXiv 2309.10438)."""
    parts = {"times", "skips"} if task.model.blocks * task.most_skipped >= 1 else {"times"}
    return _evolved(task, autodiffusion, frozenset(parts), task.budget)


def search_s3(task: SearchTask) -> SearchResult:
    """Times and a solver strategy for every step, by predictor-guided evolution (arXiv 2312.07243)."""
    return _evolved(task, s3, frozenset({"times", "strategy", "first"}), task.budget)


LEAST_DESCENT = 25
"""Evaluations below which a joint search has none to spare for looking at grids and descending from them."""


def search_joint(task: SearchTask) -> SearchResult:
    """Everything: S3 over times and strategies, then times, network times and Q-Sched's scalars by gradient.

    The descent starts from the best schedule of the evolution and from LD3's own start, and the better end wins.
    """
    evolved = search_s3(dataclasses.replace(task, budget=max(1, round(0.4 * task.budget))))
    if task.budget - evolved.spent < LEAST_DESCENT:
        return SearchResult(_named(evolved.plan, "joint"), evolved.value, evolved.spent, evolved.history)
    model = task.model
    candidate = Candidate.from_document(evolved.plan.origin["candidate"])
    starts = {"joint-evolved": (grids.given(candidate.times, candidate.end), _solver_of(candidate, model))}
    if candidate.first != "network":  # its first row is a formula: the gradient search needs a row for every time
        starts = {}
    start, looked = _best_grid(task, task.steps)
    starts["joint-grid"] = (start, task.solver)
    share = (task.budget - evolved.spent - looked) / len(starts)
    found = [evolved]
    for stage, (grid, solver) in starts.items():
        learnable = learn_scales(learn_grid(model.process, model.prediction, solver, grid))
        own = looked if grid is start else 0
        found.append(_descended(task, learnable, "joint", share + own, own, stage))
    best = max(found, key=lambda f: f.value)
    history, spent = list[tuple[float, float]](), 0.0
    for f in found:
        history += [(spent + calls, value) for calls, value in f.history]
        spent += f.spent
    return SearchResult(_named(best.plan, "joint"), best.value, spent, tuple(history))


SearchMethod = Callable[[SearchTask], SearchResult]
METHODS: Registry[SearchMethod] = Registry(
    "search method",
    "fewstep.searches",
    {
        "gits": search_gits,
        "ld3": search_ld3,
        "amed": search_amed,
        "random": search_random,
        "autodiffusion": search_autodiffusion,
        "s3": search_s3,
        "joint": search_joint,
    },
)


def search_method(name: str) -> SearchMethod:
    """A method by name (FewstepError with the nearest name otherwise)."""
    return METHODS.find(name)


BY_GRADIENT = frozenset({"ld3", "amed", "joint"})
"""Methods that need an objective with a gradient."""

MOST_GRIDS = 9
"""Where a descent may start: the grid of GITS, two that equalise errors, and up to six usual ones."""


def least_budget(name: str, items: int) -> int:
    """A budget that is enough for a method, whatever the network.

    Args:
        name: of the method.
        items: of the objective.
    """
    if name not in ("ld3", "amed"):  # the others look at one schedule, or go without a descent
        return 1
    return math.ceil(MOST_GRIDS + _descent_cost(items, 1, 1) + 1)  # the end is looked at too


# --- inside ---------------------------------------------------------------------------------------------------------


def _gits_grid(task: SearchTask, steps: int) -> Grid:
    rows = gits(task.trajectory, [steps])[steps]
    times = [float(task.trajectory.plan.rows[k].time) for k in rows]
    return grids.given(times, task.end)


def _best_grid(task: SearchTask, steps: int) -> tuple[Grid, int]:
    """The grid that serves the solver best, of GITS', the error-equalising and the usual ones; and their number."""
    usual = ScheduleSpace(task.model, steps, last=_least(task), end=task.end).designs()
    options = [_gits_grid(task, steps), *_equalised(task, steps)]
    options += [grids.given(times, task.end) for times in dict.fromkeys(candidate.times for candidate in usual)]
    best = max(options, key=lambda g: task.value(task.solver(task.model.process, task.model.prediction, g)))
    return best, len(options)


def _equalised(task: SearchTask, steps: int) -> list[Grid]:
    """Times at which first-order steps along the teacher would err equally, for each of two orders of the solver."""
    errors = jump_errors(task.trajectory)
    times = [float(row.time) for row in task.trajectory.plan.rows][: len(errors)]
    found = []
    for order in (1, 2):
        try:
            grid = equalised_grid(task.model.process, times, errors, steps, order)
        except PlanError:
            continue  # a trajectory without error, or one that is too short: nothing to equalise
        found.append(Grid(grid.times, task.end))
    return found


def _least(task: SearchTask) -> float:
    """The cleanest time that the teacher itself asked."""
    return float(task.trajectory.plan.rows[-1].time)


def _descended(
    task: SearchTask, learnable: LearnableSchedule, name: str, budget: float, looked: int, stage: str = ""
) -> SearchResult:
    """Descend with what `looked` evaluations of starts, and one of the result, leave of the budget."""
    if not task.objective.per_item:
        hint = "Search for the teacher's results, or use an evolutionary method."
        raise FewstepError(f"{name} needs an objective with a gradient", value=type(task.objective).__name__, hint=hint)
    size = task.objective.size
    batch = _batch(size)

    def every(rounds: int) -> int:
        return max(1, rounds // 12)

    def spent(done: float, rounds: int) -> float:
        return looked + _descent_cost(size, done, every(rounds))

    rounds = max(1, round(size * budget / (3 * batch)))
    while rounds and spent(rounds, rounds) + 1 > budget:
        rounds -= 1
    if not rounds:
        hint = f"Give at least {math.ceil(spent(1, 1) + 1)} in all, or use gits."
        raise FewstepError(f"the budget allows no gradient step of {name}", value=budget, hint=hint)

    found = descend(
        learnable,
        task.objective,
        rounds=rounds,
        batch=batch,
        look_every=every(rounds),
        seed=task.seed,
        checkpoint=None if task.scratch is None else task.scratch / f"{stage or name}.safetensors",
        watch=lambda done, value: task.note(spent(done, rounds), value),
    )
    history = tuple((spent(done, rounds), value) for done, value in found.history)
    return SearchResult(_named(found.plan, name), task.value(found.plan), history[-1][0] + 1, history)


def _batch(items: int) -> int:
    """Items of one gradient."""
    return max(1, min(16, items // 2))


def _descent_cost(items: int, rounds: float, every: int) -> float:
    """Evaluations of gradients, three passes over a batch each, and of looks at half of the items in between."""
    return (3 * _batch(items) * rounds + math.ceil(rounds / every + 1) * 0.5 * items) / items


def _evolved(task: SearchTask, search: Callable[..., None], parts: frozenset[str], budget: int) -> SearchResult:
    def watch(entry: PoolEntry, count: int) -> None:
        task.note(count, entry.value)

    parts = task.parts or parts
    storage = task.storage or (None if task.scratch is None else task.scratch / f"{search.__name__}.journal")
    space = ScheduleSpace(
        task.model, task.steps, parts, last=_least(task), end=task.end, most_skipped=task.most_skipped
    )
    pool = EvaluationPool(
        task.score,
        storage=storage,
        name=f"{task.name}-{search.__name__}",
        task=f"{task.steps} steps, {sorted(parts)}, {task.objective.size} items",
        key=lambda candidate: candidate.folded(task.model),
        watch=watch,
    )
    search(space, pool, budget, seed=task.seed, starts=_starts(task, space))
    if not len(pool):
        raise FewstepError("the budget allows not even one schedule", value=budget, hint="Raise the budget.")
    best = pool.best()[0]
    if best.value <= WORST:
        hint = "Check the network, or search another space."
        raise FewstepError("no schedule of this space can be run", value=sorted(parts), hint=hint)
    history = tuple((float(k + 1), entry.value) for k, entry in enumerate(pool.entries()))
    return SearchResult(_named(best.candidate.plan(task.model), search.__name__), best.value, len(pool), history)


def _starts(task: SearchTask, space: ScheduleSpace) -> Sequence[Candidate]:
    """The usual solvers on the times that GITS reads from the teacher."""
    times = tuple(_gits_grid(task, task.steps).times.tolist())
    decisions: tuple[Decision, ...] = (
        Decision(order=2),
        Decision(order=2, corrector=True),
        Decision(order=3),
        Decision(order=1),
    )
    if "strategy" not in space.parts:
        decisions = decisions[:1]
    return [Candidate(times, (decision,) * len(times), task.end) for decision in decisions]


def _solver_of(candidate: Candidate, model: ModelInfo) -> BoundSolver:
    def solver(process: Process, prediction: Prediction, grid: Grid) -> Plan:
        plan = per_step(process, prediction, grid, decisions=candidate.decisions, statistics=model.statistics)
        return skipping(plan, candidate.skipped)

    return solver


def _named(plan: Plan, name: str) -> Plan:
    return plan.replace(origin={**plan.origin, "search": name})
