"""A distillation, unit by unit: open, follow the teacher, train, attach the plan, measure, report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.data import load as load_pictures
from fewstep.data.prompts import load_prompts
from fewstep.distill.health import advice
from fewstep.distill.method import Method, method, options_of
from fewstep.distill.store import Header, Solve, Store, write
from fewstep.errors import FewstepError
from fewstep.files import read_json, read_tensors, write_folder, write_json, write_tensors
from fewstep.pipelines import Generator, attach, backbone_of, identity_of, process_of, save_pipeline, trace
from fewstep.pipelines.calls import class_count, condition_kind
from fewstep.pipelines.conditions import conditions_of
from fewstep.pipelines.encoded import Encoded, encode
from fewstep.pipelines.routed import Routed, deciding, partition
from fewstep.plan import Plan
from fewstep.report.images import grid, save_png
from fewstep.runs import Run, environment
from fewstep.solvers import SOLVERS, grids
from fewstep.systems.distill.batches import Batches, Conditioned, FromData, FromStore
from fewstep.systems.distill.measure import compare
from fewstep.systems.distill.networks import (
    channels_of,
    engine_of,
    finished,
    middle_of,
    place_of,
    released,
    student_of,
    with_network,
)
from fewstep.systems.distill.recipe import DistillRecipe
from fewstep.systems.distill.report import write_report
from fewstep.systems.distill.tune import tuned
from fewstep.systems.pipeline_recipe import Conditions
from fewstep.train.classes import class_numbers
from fewstep.train.distillation import defaults, stage_of
from fewstep.train.latents import encode as encode_pictures
from fewstep.train.loop import accelerator_for, fit
from fewstep.train.memory import described, estimate
from fewstep.train.stage import StageConfig


def run(recipe: DistillRecipe, run: Run) -> Path:
    """Execute a recipe in a run directory and return the report.

    Leaves behind: `artifacts/pipeline` (a diffusers folder: the student with the plan that it runs by), the
    checkpoint it was trained to, `results.json` and `report.html`.
    """
    job = Job(recipe, run)
    trained = job.train()
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


def takes_guidance(name: str, made: Method) -> bool:
    """Whether a method has a guidance of its own, or learns from samples of the teacher, which have it inside."""
    return "guidance" in options_of(name) or bool(made.needs & {"data", "store"})


class Job:
    """What the units share: the pipeline, its process, the method, its conditions and data."""

    def __init__(self, recipe: DistillRecipe, run: Run) -> None:
        self.recipe, self.run = recipe, run
        self.pipe = recipe.opened()
        self.process, self.prediction = process_of(self.pipe, **recipe.call)
        self.generator = Generator(self.pipe, recipe.guidance, dict(recipe.call), recipe.batch)
        # the needs of a method are known without its networks, and what it must be told of them needs its conditions
        self.method = method(recipe.method, self.process, **recipe.method_options())
        self.method = method(recipe.method, self.process, **self._options())
        if recipe.guidance != 1 and not takes_guidance(recipe.method, self.method):
            raise FewstepError(f"{recipe.method} takes no guidance from its teacher", mend="Set guidance=1.")

    def _options(self) -> dict[str, Any]:
        """Options of the method, with what it is to know of this network: where an adversary looks at it."""
        options, known, network = self.recipe.method_options(), options_of(self.recipe.method), backbone_of(self.pipe)
        if "modules" in known and self.method.adversary is not None:
            names = options.setdefault("modules", [middle_of(network)])
            if "channels" in known:
                options.setdefault("channels", channels_of(network, names, self.encoded, self.process))
        return options

    @cached_property
    def plan(self) -> Plan:
        """How the student is run."""
        return self.method.steps.plan(self.process, self.prediction)

    # --- conditions, data -------------------------------------------------------------------------------------------

    def conditions(self, wanted: Conditions, held_out: bool, count: int | None = None) -> list[Any] | None:
        """Prompts or labels of that many items, or all that there are."""
        source = self.recipe.prompts(wanted, held_out)
        if count is None:
            kind = condition_kind(self.pipe)
            count = {"batch_size": 1, "class_labels": class_count(self.pipe) if kind == "class_labels" else 1}.get(kind)
            if count is None:
                count = len(load_prompts(source if isinstance(source, str) else list(map(str, source))))
        return conditions_of(self.pipe, source, count)

    @cached_property
    def encoded(self) -> Encoded:
        """What the network is told, for all conditions of the training."""
        source = self.pictures[1] if self.pictures else self.conditions(self.recipe.data.conditions, held_out=False)
        return encode(self.generator, self.process, source)

    @cached_property
    def pictures(self) -> tuple[Tensor, list[Any], Tensor] | None:
        """Real pictures (N, 3, H, W), their different conditions, and which each has (N,); None without."""
        data = self.recipe.data
        if data.source == "teacher" or not self.method.needs & {"data", "store"}:
            return None
        if "store" in self.method.needs:
            mend = "Leave data.source=teacher: its trajectories are made for you."
            raise FewstepError(f"{self.recipe.method} learns from trajectories of the teacher", mend=mend)
        images, captions = load_pictures(data.source, "train", data.size)
        if condition_kind(self.pipe) == "class_labels":
            numbers = class_numbers(captions, self.pipe.labels)
            return images, list(range(class_count(self.pipe))), numbers
        known = sorted(set(captions))
        place = {caption: i for i, caption in enumerate(known)}
        return images, list(known), torch.tensor([place[caption] for caption in captions])

    def batches(self, student: int = 0) -> Batches:
        """The stream of batches that the method needs, of the conditions that this student owns."""
        owned = None if self.owners is None else (self.owners == student).nonzero().flatten()
        given = Conditioned(self.encoded, self.recipe.train.batch, place_of(self.pipe), owned)
        if not self.method.needs & {"data", "store"}:
            return given
        if owned is None and self.pictures is None:
            return FromStore(given, self.store)
        if "store" in self.method.needs:
            raise FewstepError("several students need a method without trajectories", value=self.recipe.method)
        latents, numbers = self.latents
        mine = torch.ones(len(numbers), dtype=torch.bool) if owned is None else torch.isin(numbers, owned)
        if not mine.any():
            raise FewstepError(f"student {student} owns no data", mend="Give more data, or train fewer students.")
        return FromData(given, latents[mine], numbers[mine])

    @cached_property
    def owners(self) -> Tensor | None:
        """Which student owns each condition (N,); None where there is one student."""
        return None if self._parts is None else self._parts[0]

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor | None] | None:
        """Owners of the conditions, and the centres of their parts."""
        count, tensors = self.recipe.train.students, self.encoded.tensors
        return None if count == 1 else partition(tensors[deciding(tensors)].cpu(), count)

    @cached_property
    def latents(self) -> tuple[Tensor, Tensor]:
        """All data (N, ...) with the numbers of their conditions (N,): real pictures, or the teacher's samples."""
        if self.pictures is None:
            return self.store.ends()
        images, _, numbers = self.pictures
        if getattr(self.pipe, "vae", None) is None:
            return images.float() / 127.5 - 1, numbers
        found = encode_pictures(self.pipe.vae, images, [""] * len(images), numbers[:, None], place_of(self.pipe))
        return found.both[0], numbers

    @cached_property
    def store(self) -> Store:
        """Trajectories of the teacher, made here where they are absent."""
        settings = self.recipe.data
        place = Path(settings.folder) if settings.folder else self.run.scratch("trajectories")
        header = self._header(self.conditions(settings.conditions, held_out=False))
        with self.run.progress("trajectories of the teacher", total=header.count) as advance:
            write(place, header, self._solve(header), advance)
        return Store.open(place, process=self.process)

    def _header(self, conditions: Sequence[Any] | None) -> Header:
        settings = self.recipe.data
        return Header(
            times=tuple(self.teacher_times[i] for i in self._kept),
            process=repr(self.process),
            model=str(identity_of(self.pipe).model),
            solver=f"{self.recipe.teacher.solver}, {self.recipe.teacher.steps} steps",
            guidance=self.recipe.guidance,
            shape=self.encoded.shape,
            count=settings.count,
            shard=max(1, min(64, settings.count)),
            seed=3_000_003 * (settings.seed + 1),
            conditions=tuple(conditions or ()),
        )

    def _solve(self, header: Header) -> Solve:
        def solve(seeds: Sequence[int], numbers: Sequence[int]) -> Tensor:
            given = [header.conditions[i] for i in numbers] if header.conditions else None
            seen = trace(self.generator, self.teacher, given, list(seeds))
            states = torch.cat([seen.states, seen.final[None]]).transpose(0, 1)
            return states[:, self._kept].cpu()

        return solve

    @cached_property
    def teacher(self) -> Plan:
        """The many-step plan of the teacher."""
        settings = self.recipe.teacher
        return SOLVERS[settings.solver](self.process, self.prediction, grids.uniform(self.process, settings.steps))

    @cached_property
    def teacher_times(self) -> list[float]:
        """Process times of its states, the data at the end."""
        return [float(row.time) for row in self.teacher.rows] + [0.0]

    @cached_property
    def _kept(self) -> list[int]:
        """Which of its states a store keeps."""
        rows, wanted = self.recipe.teacher.steps, self.recipe.data.states or self.recipe.teacher.steps
        wanted = min(wanted, rows)
        return [round(i * rows / wanted) for i in range(wanted)] + [rows]

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
                name.replace("student", "train"), partial(self._train, k), save=_keep, load=_kept, artifact=name
            )
            for k, name in enumerate(names)
        ]

    def _train(self, student: int) -> dict[str, Any]:
        config, settings = self.config(), self.recipe.train
        batches = self.batches(student)
        engine = engine_of(self.pipe, self.method, self.process, self.prediction, self.encoded, batches, settings)
        stage = stage_of(engine, config, lambda folder: None)
        told = estimate(stage, config, {n: m for n, m in self.pipe.components.items() if isinstance(m, nn.Module)})
        self.run.say(described(told))
        if settings.pictures_every:
            stage = self._drawing(stage, engine.modules["student"])
        place = self.run.scratch("train" if student == 0 else f"train-{student}")
        try:
            progress = fit(stage, config, place, accelerator_for(config), quiet=self.run.quiet)
        finally:
            released(engine)
        record = {"settings": config.model_dump(mode="json"), "seconds": progress.seconds, "memory": told}
        tensors = engine.modules["student"].state_dict()
        return {"tensors": tensors, "record": {**record, "steps": progress.step, "history": progress.history}}

    def _drawing(self, stage: Any, student: nn.Module) -> Any:
        """The stage with a sheet of samples every so many steps; draws from seeds of its own."""
        import dataclasses

        count = 8
        conditions = self.conditions(self.recipe.evaluation.conditions, True, count)

        def after(step: int) -> None:
            stage.after(step)
            if step % self.recipe.train.pictures_every == 0:
                images = self.draw(finished_now(student), self.plan, conditions, list(range(count)))
                save_png(grid(images), self.run.artifact(f"samples/{step:06d}.png"))

        def finished_now(module: nn.Module) -> nn.Module:
            return module.eval()

        return dataclasses.replace(stage, after=after)

    def draw(self, network: nn.Module, plan: Plan, conditions: Sequence[Any] | None, seeds: Sequence[int]) -> Tensor:
        """Pictures (B, 3, H, W) of a network in this pipeline, run without guidance."""
        generate = Generator(with_network(self.pipe, network), 1.0, dict(self.recipe.call), self.recipe.batch)
        with torch.no_grad():
            return generate(plan, conditions, seeds)

    def network(self, trained: Trained) -> nn.Module:
        """The trained student; several become one network that routes each condition to its owner.

        Raises:
            FewstepError: several students of a kind that cannot be put together.
        """
        place, settings = place_of(self.pipe), self.recipe.train
        students = [student_of(self.pipe, self.method, settings, one["tensors"]) for one in trained]
        students = [finished(student, self.method, self.process) for student in students]
        if self._parts is None:
            return students[0].to(place)
        if self.method.two_times or settings.lora or settings.quantize:
            raise FewstepError("several students must train all weights of a network with one time", mend="lora=0.")
        owners, centres = self._parts
        name = deciding(self.encoded.tensors)
        table = [] if centres is not None else _table(self.encoded.tensors[name].cpu(), owners)
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
