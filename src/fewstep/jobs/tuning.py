"""Q-Sched's two scalars per step (arXiv 2509.01624) on top of any plan: what jobs offer as `q_sched`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from fewstep.jobs.context import Items
from fewstep.pipelines import PipelineSampler
from fewstep.plan import Plan
from fewstep.runs import Run
from fewstep.schedules import TeacherMatch
from fewstep.schedules.tuning import CandidateScore, Family, Objective, Problem, SearchOutcome, searcher

RAMP = Family("ramp")
"""Four numbers: the scalars of the first and of the last step, linear between."""


def tune(
    run: Run,
    plan: Plan,
    objective: Objective,
    budget: float,
    *,
    family: Family = RAMP,
    method: str = "coarse-to-fine",
    seed: int = 0,
    spent: float = 0.0,
    name: str = "q-sched",
    widen: bool = False,
) -> SearchOutcome:
    """The best scalars found for a plan; a search that was killed goes on from its log of scores.

    Args:
        run: its scratch folder `name` keeps the scores.
        plan: whose columns are scaled.
        objective: what is maximised.
        budget: in candidates scored on all items.
        family: how many numbers describe the scalars.
        method: name of the searcher.
        seed: of the searcher.
        spent: of the budget, before this search.
        name: of the search.
        widen: make the box wider once where the best candidate lies on its edge.

    Raises:
        FewstepError: the budget allows no candidate.
    """
    log = run.scratch(name) / "scores.jsonl"
    with spending(run, name, budget) as note:

        def watch(scored: CandidateScore) -> None:
            note(scored.spent, scored.value)

        problem = Problem(plan, family, objective, log=log, spent=spent, watch=watch)
        searcher(method, widen)(problem, budget, seed)
        return problem.outcome()


def tune_to_full_precision(
    run: Run,
    items: Items,
    full: tuple[PipelineSampler, Plan],
    low: tuple[PipelineSampler, Plan],
    budget: float,
    name: str = "q-sched",
) -> SearchOutcome:
    """The best scalars for a low-bit pipeline that is to end where full precision does; see `tune`.

    Args:
        run: keeps the scores.
        items: what both draw.
        full: the pipeline in full precision, and its plan.
        low: the pipeline in low bits, and the plan that is scaled.
        budget: in passes over the items.
        name: of the search.
    """
    with torch.no_grad():
        truth = items.draw(*full, "latent")
    sampler, plan = low
    return tune(run, plan, TeacherMatch(items.drawing(sampler, "latent"), truth), budget, name=name)


def scaled(plan: Plan, theta: Sequence[float], family: Family = RAMP) -> Plan:
    """The plan with the scalars that `tune` found."""
    return family.apply(plan, torch.tensor(theta, dtype=torch.float64))


@contextmanager
def spending(run: Run, name: str, budget: float) -> Iterator[Callable[[float, float], None]]:
    """A progress bar over a budget; yields `note(spent so far, value)`, which shows the best value."""
    with run.progress(name, total=round(budget)) as advance:
        best, done = float("-inf"), 0

        def note(spent: float, value: float) -> None:
            nonlocal best, done
            best = max(best, value)
            advance(int(spent) - done, note=f"best {best:.4f}")
            done = int(spent)

        yield note
