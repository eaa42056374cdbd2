"""Two scalars per step for the finished student (Q-Sched, arXiv 2509.01624): what rounding shifted, sampling mends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.metrics import load_features
from fewstep.plan import Plan
from fewstep.schedules import DistributionMatch
from fewstep.schedules.tuning import Family, Problem, searcher
from fewstep.zoo import placed

if TYPE_CHECKING:
    from fewstep.jobs.distill.job import DistillJob, Trained

ITEMS = 64
"""Pairs of condition and seed that every candidate is drawn with."""


def tuned(job: DistillJob, trained: Trained) -> Plan:
    """The student's plan after the search; the plan as it was where no budget is given.

    The student's samples as a set are compared with the teacher's (features of decoded pictures): a student need not
    draw from a seed what its teacher draws from it.
    """
    budget = job.recipe.train.q_sched
    if not budget:
        return job.plan

    def compute() -> Plan:
        network = job.network(trained)
        conditions = job.material.conditions(job.recipe.data.conditions, False, ITEMS)
        seeds = [5_000_003 * (job.recipe.train.seed + 1) + i for i in range(ITEMS)]

        def generate(plan: Plan, items: Sequence[int]) -> Tensor:
            some = None if conditions is None else [conditions[i] for i in items]
            return job.draw(network, plan, some, [seeds[i] for i in items])

        features = load_features(placed(job.recipe.evaluation.features[0]))
        with torch.no_grad():
            reference = features(job.generator(job.material.teacher, conditions, [s + ITEMS for s in seeds]))
        objective = DistributionMatch(generate, features, reference, ITEMS)
        family = Family("ramp")
        problem = Problem(job.plan, family, objective, log=job.run.scratch("q-sched") / "scores.jsonl")
        searcher("coarse-to-fine")(problem, budget, job.recipe.train.seed)
        return family.apply(job.plan, torch.tensor(problem.outcome().theta, dtype=torch.float64))

    return job.run.unit(
        "q-sched", compute, save=lambda plan, draft: plan.save(draft), load=Plan.load, artifact="plan.json"
    )
