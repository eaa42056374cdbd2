"""Two scalars per step for the finished student (Q-Sched, arXiv 2509.01624): what rounding shifted, sampling mends."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.jobs.distill.context import DistillContext
from fewstep.jobs.distill.training import TrainedStudents, draw, student_network
from fewstep.jobs.tuning import scaled, tune_scales
from fewstep.metrics import load_features
from fewstep.plan import Plan
from fewstep.schedules import DistributionMatch
from fewstep.zoo import placed

ITEMS = 64
"""Pairs of condition and seed that every candidate is drawn with."""


def tuned(context: DistillContext, trained: TrainedStudents) -> Plan:
    """The student's plan after the search; the plan as it was where no budget is given.

    The student's samples as a set are compared with the teacher's (features of decoded pictures): a student need not
    draw from a seed what its teacher draws from it.
    """
    recipe, plan = context.recipe, context.student_plan
    if not recipe.train.q_sched:
        return plan

    def compute() -> Plan:
        network = student_network(context, trained)
        items = context.items("tuning", recipe.data.conditions, ITEMS, recipe.train.seed)
        later = dataclasses.replace(items, seeds=[seed + ITEMS for seed in items.seeds])

        def generate(plan: Plan, numbers: Sequence[int]) -> Tensor:
            return draw(context, network, plan, items.pick(numbers))

        features = load_features(placed(recipe.evaluation.features[0]))
        with torch.no_grad():
            reference = features(later.draw(context.teacher, context.teacher_plan))
        objective = DistributionMatch(generate, features, reference, ITEMS)
        found = tune_scales(context.run, plan, objective, recipe.train.q_sched, seed=recipe.train.seed)
        return scaled(plan, found.theta)

    return context.run.unit("q-sched", compute, save=Plan.save, load=Plan.load, artifact="plan.json")
