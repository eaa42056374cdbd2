"""Q-Sched's two scalars per step (arXiv 2509.01624) on top of any plan: what jobs offer as `q_sched`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fewstep.jobs.context import Items
from fewstep.jobs.sharing import SharedRows
from fewstep.pipelines import PipelineSampler
from fewstep.plan import Plan
from fewstep.runs import Run
from fewstep.schedules import TeacherMatch
from fewstep.schedules.tuning import CandidateScore, Family, Objective, Problem, SearchOutcome, searcher

RAMP = Family("ramp")
"""Four numbers: the scalars of the first and of the last step, linear between."""


def tune_scales(
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
    log = score_log(run, name)
    with spending(run, name, budget) as note:

        def watch(scored: CandidateScore) -> None:
            note(scored.spent, scored.value)

        problem = Problem(plan, family, objective, log=log, spent=spent, watch=watch)
        searcher(method, widen)(problem, budget, seed)
        return problem.outcome()


def score_log(run: Run, name: str) -> Path | None:
    """The file that keeps the scores of a search; of several processes the first one writes it."""
    return run.scratch(name) / "scores.jsonl" if run.leads else None


def tune_to_full_precision(
    run: Run,
    items: Items,
    full: tuple[PipelineSampler, Plan],
    low: tuple[PipelineSampler, Plan],
    budget: float,
    piece: int,
    name: str = "q-sched",
) -> SearchOutcome:
    """The best scalars for a low-bit pipeline that is to end where full precision does; see `tune_scales`.

    Args:
        run: keeps the scores.
        items: what both draw.
        full: the pipeline in full precision, and its plan.
        low: the pipeline in low bits, and the plan that is scaled.
        budget: in passes over the items.
        piece: items drawn at once, which several processes share.
        name: of the search.
    """
    rows = {
        kind: SharedRows(run, f"{name}-{kind}", items.pairs, items.drawing(sampler, "latent"), piece)
        for kind, (sampler, _) in (("full", full), ("low", low))
    }
    truth = rows["full"](full[1], range(len(items.seeds)))
    return tune_scales(run, low[1], TeacherMatch(rows["low"], truth), budget, name=name)


def scaled(plan: Plan, theta: Sequence[float], family: Family = RAMP) -> Plan:
    """The plan with the scalars that `tune_scales` found."""
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
