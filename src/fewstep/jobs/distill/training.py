"""The training of one or several students, and the networks and pipelines that come out of it."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.jobs.context import Items
from fewstep.jobs.distill.context import DistillContext
from fewstep.jobs.distill.networks import device_of, drawable, engine_of, finished, kept_as, released, student_of
from fewstep.pipelines import attach, exchanged, identity_of
from fewstep.pipelines.protocol import Pipeline
from fewstep.pipelines.routed import Routed, deciding
from fewstep.plan import Plan
from fewstep.report.images import image_grid, save_image
from fewstep.train.distillation import stage_of
from fewstep.train.loop import accelerator_for, fit
from fewstep.train.memory import described, memory_of
from fewstep.train.shards import whole_state

TrainedStudents = list[dict[str, Any]]
"""Of every student its tensors and the record of its training."""
SAVE, LOAD = kept_as("record")


def train(context: DistillContext) -> TrainedStudents:
    """Of every student its tensors and the record of its training."""
    names = ["student", *(f"student-{k}" for k in range(1, context.recipe.train.students))]
    return [
        context.run.unit(
            name.replace("student", "train"), partial(_train, context, k), save=SAVE, load=LOAD, artifact=name,
            together=True,
        )
        for k, name in enumerate(names)
    ]  # fmt: skip


def _train(context: DistillContext, student: int) -> dict[str, Any]:
    config, settings = context.config, context.recipe.train
    batches = context.batches(student)
    torch.manual_seed(config.seed)  # heads of an adversary and adapters begin at random
    engine = engine_of(
        context.pipe, context.method, context.process, context.prediction, context.encoded, batches, settings
    )
    stage = stage_of(engine, config, lambda folder: None)
    memory = memory_of(stage, config, {n: m for n, m in context.pipe.components.items() if isinstance(m, nn.Module)})
    context.run.say(described(memory))
    if settings.pictures_every:
        stage = _drawing(context, stage, engine.modules["student"])
    name = "train" if student == 0 else f"train-{student}"
    place, keep = context.run.scratch(name), context.run.artifact(f"{name}-curves")
    try:
        progress = fit(stage, config, place, accelerator_for(config), quiet=context.run.quiet, keep=keep)
    finally:
        released(engine)
    record = {"settings": config.model_dump(mode="json"), "seconds": progress.seconds, "memory": memory}
    tensors = whole_state(engine.modules["student"])
    return {"tensors": tensors, "record": {**record, "steps": progress.step, "history": progress.history}}


def _drawing(context: DistillContext, stage: Any, student: nn.Module) -> Any:
    """The stage with a sheet of samples every so many steps; draws from seeds of its own."""
    seeds = list(range(8))
    items = Items(context.conditions(context.recipe.evaluation.conditions, len(seeds), held_out=True), seeds)

    def after(step: int) -> None:
        stage.after(step)
        if step % context.recipe.train.pictures_every == 0:
            images = draw(context, drawable(student, context.method, context.process), context.student_plan, items)
            if context.run.leads:
                save_image(image_grid(images), context.run.artifact(f"samples/{step:06d}.png"), over="all")

    return dataclasses.replace(stage, after=after)


def draw(context: DistillContext, network: nn.Module, plan: Plan, items: Items) -> Tensor:
    """Pictures (B, 3, H, W) of a network in this pipeline, run without guidance."""
    sampler = context.sampler(**{context.backbone: network}).changed(guidance=1.0)
    with torch.no_grad():
        return items.draw(sampler, plan)


def student_network(context: DistillContext, trained: TrainedStudents) -> nn.Module:
    """The trained student; several become one network that routes each condition to its owner."""
    place = device_of(context.pipe)
    students = [student_of(context.pipe, context.method, context.recipe.train, one["tensors"]) for one in trained]
    students = [finished(student, context.method, context.process) for student in students]
    if context.parts is None:
        return students[0].to(place)
    owners, centres = context.parts
    tensors = context.encoded.tensors
    name = deciding(tensors)
    table = [] if centres is not None else _table(tensors[name].cpu(), owners)
    return Routed.of(students, name, table, centres).to(place)


def student_pipeline(context: DistillContext, trained: TrainedStudents, plan: Plan) -> Pipeline:
    """The pipeline of the student, which follows its plan."""
    network = student_network(context, trained)
    if not context.recipe.train.quantize:  # low-bit layers keep the types of their scales
        network = network.to(next(context.backbones[context.backbone].parameters()).dtype)
    pipe = exchanged(context.pipe, {context.backbone: network})
    attach(pipe, plan.replace(identity=identity_of(pipe, 1.0)))
    return pipe


def _table(labels: Tensor, owners: Tensor) -> list[int]:
    """The owner of every class label up to the largest."""
    table = torch.zeros(int(labels.max()) + 1, dtype=torch.long)
    table[labels] = owners
    return [int(k) for k in table]
