"""The student beside its teacher: at equal steps, and at as many as the teacher likes; held-out seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.files import read_tensors, write_tensors
from fewstep.metrics import evaluate, load_features
from fewstep.plan import Plan
from fewstep.solvers import SOLVERS, grids
from fewstep.zoo import placed

if TYPE_CHECKING:
    from fewstep.jobs.distill.job import DistillJob, Trained

STUDENT, TEACHER_FEW, TEACHER = "student", "teacher, as few steps", "teacher"


@dataclass(frozen=True)
class ComparedPictures:
    """Pictures (N, 3, H, W) in [0, 1] of every system, of equal seeds, and what their N rows show."""

    names: list[str]
    systems: dict[str, Tensor]


def compare(job: DistillJob, trained: Trained, plan: Plan) -> tuple[dict[str, Any], ComparedPictures]:
    """Metrics of student and teacher against fresh samples of the teacher, and pictures of equal seeds."""
    settings = job.recipe.evaluation
    conditions = job.material.conditions(settings.conditions, True, settings.items)
    names = [str(i) for i in range(settings.items)] if conditions is None else [str(c) for c in conditions]
    seeds = [[1_000_003 * s + i for i in range(settings.items)] for s in settings.seeds]
    network = job.network(trained)
    few = SOLVERS[job.recipe.teacher.solver](
        job.process, job.prediction, grids.uniform(job.process, len(job.method.steps))
    )

    def drawn(name: str, conditions: Sequence[Any] | None, some: list[list[int]]) -> Tensor:
        def compute() -> Tensor:
            with torch.no_grad():
                if name == STUDENT:
                    parts = [job.draw(network, plan, conditions, s) for s in some]
                else:
                    parts = [job.generator(_plan(job, few, name), conditions, s) for s in some]
            return (torch.stack(parts) * 255).round().to(torch.uint8).cpu()

        file = f"images/{''.join(c if c.isalnum() else '-' for c in name)}.safetensors"
        return job.run.unit(
            f"draw-{file[7:-12]}",
            compute,
            save=lambda images, draft: write_tensors(draft, {"images": images}),
            load=lambda place: read_tensors(place)["images"],
            artifact=file,
        )

    systems = {name: drawn(name, conditions, seeds) for name in (STUDENT, TEACHER_FEW, TEACHER)}
    others = job.material.conditions(settings.conditions, True, settings.reference)
    reference = drawn("reference", others, [[7_000_003 + i for i in range(settings.reference)]])[0]
    numbers = job.run.unit(
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
    return numbers, ComparedPictures(rows, shown)


def different(names: Sequence[str], count: int) -> list[int]:
    """Where `count` different names stand first, spread evenly over all different ones; fewer where there are fewer."""
    first = sorted({name: i for i, name in reversed(list(enumerate(names)))}.values())
    count = min(count, len(first))
    return [first[k * len(first) // count] for k in range(count)]


def _plan(job: DistillJob, few: Plan, name: str) -> Plan:
    return few if name == TEACHER_FEW else job.material.teacher
