"""The student beside its teacher: at equal steps, and at as many as the teacher likes; held-out seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.jobs.context import Items, seeds_for, slug, tensor_unit
from fewstep.jobs.distill.context import DistillContext
from fewstep.jobs.distill.training import TrainedStudents, draw, student_network
from fewstep.jobs.sharing import SharedRows
from fewstep.metrics import evaluate, load_features
from fewstep.plan import Plan
from fewstep.solvers import SOLVERS, grids
from fewstep.zoo import placed

STUDENT, TEACHER_FEW, TEACHER = "student", "teacher, as few steps", "teacher"


Pictures = tuple[list[str], dict[str, Tensor]]
"""What N rows show, and pictures (N, 3, H, W) in [0, 1] of every system, of equal seeds."""


def compare_students(context: DistillContext, trained: TrainedStudents, plan: Plan) -> tuple[dict[str, Any], Pictures]:
    """Metrics of student and teacher against fresh samples of the teacher, and pictures of equal seeds."""
    settings = context.recipe.evaluation
    held_out = [context.items("evaluation", settings.conditions, settings.items, seed) for seed in settings.seeds]
    conditions = held_out[0].conditions
    names = [str(i) for i in range(settings.items)] if conditions is None else [str(c) for c in conditions]
    network = student_network(context, trained)
    grid = grids.uniform(context.process, len(context.method.steps))
    few = SOLVERS[context.recipe.teacher.solver](context.process, context.prediction, grid)

    def drawn(name: str, items: Sequence[Items]) -> Tensor:
        def compute() -> dict[str, Tensor]:
            with torch.no_grad():
                if name == STUDENT:
                    parts = [draw(context, network, plan, some) for some in items]
                else:
                    teacher = few if name == TEACHER_FEW else context.teacher_plan
                    parts = [
                        SharedRows(
                            context.run, "teacher", some.pairs, some.drawing(context.teacher), context.recipe.batch
                        )(teacher, range(len(some.seeds)))
                        for some in items
                    ]
            return {"images": (torch.stack(parts) * 255).round().to(torch.uint8).cpu()}

        key = slug(name)
        return tensor_unit(context.run, f"draw-{key}", compute, f"images/{key}.safetensors", shared=True)["images"]

    systems = {name: drawn(name, held_out) for name in (STUDENT, TEACHER_FEW, TEACHER)}
    others = context.conditions(settings.conditions, settings.reference, held_out=True)
    reference = drawn("reference", [Items(others, seeds_for("reference", 0, settings.reference))])[0]
    numbers = context.run.unit(
        "evaluate",
        lambda: evaluate(
            systems,
            reference,
            names,
            [load_features(placed(spec)) for spec in settings.features],
            paired_to=TEACHER,
            compare=[(STUDENT, TEACHER_FEW)],
        ),
    )
    picks = different(names, settings.pictures)
    rows = [f"item {i + 1}" if conditions is None else names[i] for i in picks]
    shown = {name: images[0][picks].float() / 255 for name, images in systems.items()}
    return numbers, (rows, shown)


def different(names: Sequence[str], count: int) -> list[int]:
    """Where `count` different names stand first, spread evenly over all different ones; fewer where there are fewer."""
    first = sorted({name: i for i, name in reversed(list(enumerate(names)))}.values())
    count = min(count, len(first))
    return [first[k * len(first) // count] for k in range(count)]
