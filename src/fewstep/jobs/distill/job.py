"""A distillation, unit by unit: open, follow the teacher, train, attach the plan, measure, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.distillation.health import advice
from fewstep.distillation.method import find_preset, method
from fewstep.errors import FewstepError
from fewstep.files import read_json, read_tensors, write_folder, write_json, write_tensors
from fewstep.jobs.distill.material import TrainingData
from fewstep.jobs.distill.measure import compare
from fewstep.jobs.distill.networks import (
    channels_of,
    drawable,
    engine_of,
    finished,
    middle_of,
    place_of,
    released,
    student_of,
    with_network,
)
from fewstep.jobs.distill.recipe import DistillRecipe
from fewstep.jobs.distill.report import write_report
from fewstep.jobs.distill.tune import tuned
from fewstep.metrics import load_features
from fewstep.pipelines import PipelineSampler, attach, backbone_of, identity_of, process_of, save_pipeline
from fewstep.pipelines.routed import Routed, deciding
from fewstep.plan import Plan
from fewstep.report.images import image_grid, save_image
from fewstep.runs import Run, environment
from fewstep.train.distillation import check_length, defaults, stage_of
from fewstep.train.loop import accelerator_for, fit
from fewstep.train.memory import described, estimate
from fewstep.train.shards import whole_state
from fewstep.train.stage import StageConfig
from fewstep.zoo import placed


def run(recipe: DistillRecipe, run: Run) -> Path:
    """Execute a recipe in a run directory and return the report.

    Leaves behind: `artifacts/pipeline` (a diffusers folder: the student with the plan that it runs by), the
    checkpoint it was trained to, `results.json` and `report.html`.
    """
    recipe.check()
    job = DistillJob(recipe, run)
    trained = job.train()
    if not run.leads:
        return run.path / "report.html"  # the rest is the first process's work
    plan = tuned(job, trained)
    run.unit("pipeline", lambda: job.student(trained, plan), save=save_pipeline, load=lambda folder: None)
    numbers, pictures = compare(job, trained, plan)
    advised = [line for one in trained for line in advice(one["record"]["history"])]
    results = {
        "recipe": recipe.plain(),
        "environment": environment(),
        "training": {k: v for k, v in trained[0]["record"].items() if k != "history"},
        "students": len(trained),
        "health": advised,
        "evaluation": numbers,
        "seconds": run.seconds(),
    }
    write_json(run.path / "results.json", results)
    if recipe.results:
        write_json(recipe.results, results)
    for line in advised:
        run.say(f"[yellow]{line}[/yellow]")
    return write_report(run, recipe, results, trained[0]["record"]["history"], plan, pictures)


Trained = list[dict[str, Any]]
"""Of every student its tensors and the record of its training."""


class DistillJob:
    """What the units share: the pipeline, its process, the method, its conditions and data."""

    def __init__(self, recipe: DistillRecipe, run: Run) -> None:
        self.recipe, self.run = recipe, run
        self.pipe = recipe.opened()
        if identity_of(self.pipe).quantization != "none":
            hint = "Distil the full-precision pipeline, and quantize the student (or set train.quantize)."
            raise FewstepError("low-bit weights cannot be trained", value=recipe.model, hint=hint)
        self.process, self.prediction = process_of(self.pipe, **recipe.call)
        self.generator = PipelineSampler(self.pipe, recipe.guidance, dict(recipe.call), recipe.batch)
        # the needs of a method are known without its networks, and the options that depend on them need its conditions
        self.method = method(recipe.method, self.process, **recipe.method_options())
        self.material = TrainingData(recipe, run, self.generator, self.process, self.prediction, self.method.needs)
        self.method = method(recipe.method, self.process, **self._options())
        if recipe.guidance != 1 and not find_preset(recipe.method).guidance:
            raise FewstepError(f"{recipe.method} takes no guidance from its teacher", hint="Set guidance=1.")
        train = recipe.train
        if train.students > 1 and (self.method.two_times or train.lora or train.quantize):
            what = "several students train all weights of a network with one time"
            raise FewstepError(what, value=train.students, hint="Set train.students=1.")
        check_length(self.config(), self.method)
        for spec in recipe.evaluation.features:  # may need a download: seen to be there before the training
            load_features(placed(spec))

    def _options(self) -> dict[str, Any]:
        """Options of the method, with what it is to know of this network: where an adversary looks at it."""
        options, network = self.recipe.method_options(), backbone_of(self.pipe)
        if find_preset(self.recipe.method).reads_layers and self.method.adversary is not None:
            names = options.setdefault("modules", [middle_of(network)])
            options.setdefault("channels", channels_of(network, names, self.material.encoded, self.process))
        return options

    @cached_property
    def plan(self) -> Plan:
        """How the student is run."""
        return self.method.steps.plan(self.process, self.prediction)

    # --- training ---------------------------------------------------------------------------------------------------

    def config(self) -> StageConfig:
        """The settings of the loop: the method's own, changed by the recipe's."""
        given = self.recipe.train
        own = {k: v for k, v in given.model_dump().items() if k in StageConfig.model_fields and v is not None}
        device = "cuda" if place_of(self.pipe).type == "cuda" else "cpu"
        return StageConfig(**{**defaults(self.method.settings), **own, "device": device})

    def train(self) -> Trained:
        """Of every student its tensors and the record of its training."""
        names = ["student", *(f"student-{k}" for k in range(1, self.recipe.train.students))]
        return [
            self.run.unit(
                name.replace("student", "train"),
                partial(self._train, k),
                save=_keep,
                load=_kept,
                artifact=name,
                together=True,
            )
            for k, name in enumerate(names)
        ]

    def _train(self, student: int) -> dict[str, Any]:
        config, settings = self.config(), self.recipe.train
        batches = self.material.batches(student)
        torch.manual_seed(config.seed)  # heads of an adversary and adapters begin at random
        engine = engine_of(
            self.pipe, self.method, self.process, self.prediction, self.material.encoded, batches, settings
        )
        stage = stage_of(engine, config, lambda folder: None)
        memory = estimate(stage, config, {n: m for n, m in self.pipe.components.items() if isinstance(m, nn.Module)})
        self.run.say(described(memory))
        if settings.pictures_every:
            stage = self._drawing(stage, engine.modules["student"])
        name = "train" if student == 0 else f"train-{student}"
        place, keep = self.run.scratch(name), self.run.artifact(f"{name}-curves")
        try:
            progress = fit(stage, config, place, accelerator_for(config), quiet=self.run.quiet, keep=keep)
        finally:
            released(engine)
        record = {"settings": config.model_dump(mode="json"), "seconds": progress.seconds, "memory": memory}
        tensors = whole_state(engine.modules["student"])
        return {"tensors": tensors, "record": {**record, "steps": progress.step, "history": progress.history}}

    def _drawing(self, stage: Any, student: nn.Module) -> Any:
        """The stage with a sheet of samples every so many steps; draws from seeds of its own."""
        seeds = list(range(8))
        conditions = self.material.conditions(self.recipe.evaluation.conditions, True, len(seeds))

        def after(step: int) -> None:
            stage.after(step)
            if step % self.recipe.train.pictures_every == 0:
                images = self.draw(drawable(student, self.method, self.process), self.plan, conditions, seeds)
                if self.run.leads:
                    save_image(image_grid(images), self.run.artifact(f"samples/{step:06d}.png"), over="all")

        return dataclasses.replace(stage, after=after)

    def draw(self, network: nn.Module, plan: Plan, conditions: Sequence[Any] | None, seeds: Sequence[int]) -> Tensor:
        """Pictures (B, 3, H, W) of a network in this pipeline, run without guidance."""
        generate = PipelineSampler(with_network(self.pipe, network), 1.0, dict(self.recipe.call), self.recipe.batch)
        with torch.no_grad():
            return generate(plan, conditions, seeds)

    def network(self, trained: Trained) -> nn.Module:
        """The trained student; several become one network that routes each condition to its owner."""
        place = place_of(self.pipe)
        students = [student_of(self.pipe, self.method, self.recipe.train, one["tensors"]) for one in trained]
        students = [finished(student, self.method, self.process) for student in students]
        if self.material.parts is None:
            return students[0].to(place)
        owners, centres = self.material.parts
        name = deciding(self.material.encoded.tensors)
        table = [] if centres is not None else _table(self.material.encoded.tensors[name].cpu(), owners)
        return Routed.of(students, name, table, centres).to(place)

    def student(self, trained: Trained, plan: Plan) -> Any:
        """The pipeline of the student, which follows its plan."""
        network = self.network(trained)
        if not self.recipe.train.quantize:  # low-bit layers keep the types of their scales
            network = network.to(next(backbone_of(self.pipe).parameters()).dtype)
        pipe = with_network(self.pipe, network)
        attach(pipe, plan.replace(identity=identity_of(pipe, 1.0)))
        return pipe


def _table(labels: Tensor, owners: Tensor) -> list[int]:
    """The owner of every class label up to the largest."""
    table = torch.zeros(int(labels.max()) + 1, dtype=torch.long)
    table[labels] = owners
    return [int(k) for k in table]


def _keep(trained: dict[str, Any], draft: Path) -> None:
    def fill(folder: Path) -> None:
        write_tensors(folder / "student.safetensors", trained["tensors"])
        write_json(folder / "record.json", trained["record"])

    write_folder(draft, fill)


def _kept(folder: Path) -> dict[str, Any]:
    return {"tensors": read_tensors(folder / "student.safetensors"), "record": read_json(folder / "record.json")}
