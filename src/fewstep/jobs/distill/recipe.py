"""The settings of a distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fewstep.errors import FewstepError, nearest
from fewstep.jobs.pipeline_recipe import Conditions, PipelineRecipe, PlainSolver, TuningBudget, checked
from fewstep.recipes.base import RecipePart


def _scheme(name: str) -> None:
    from fewstep.quant import Scheme

    if name:
        Scheme.parse(name)


class DistillTeacher(RecipePart):
    """How the teacher draws: what the student is measured against, and its data where there are none."""

    steps: int = Field(24, ge=2)
    solver: PlainSolver = "unipc"


class DistillData(RecipePart):
    """What the student learns from, for methods that need data or trajectories."""

    source: str = "teacher"
    """`teacher`: its own samples; or captioned pictures: `emoji`, `mnist`, a folder, an npz."""
    conditions: Conditions = "auto"
    """Prompts or labels of the training; with pictures their own captions are taken."""
    count: int = Field(512, ge=2)
    """Trajectories of the teacher."""
    states: int = Field(0, ge=0)
    """States that are kept of each trajectory besides the last; 0: all."""
    folder: str = ""
    """The trajectory store, which several workers may fill; in the run directory unless given."""
    seed: int = 0
    """Of the teacher's trajectories."""
    size: int = Field(64, ge=8)
    """Side of the pictures in pixels."""
    broken: Literal["stop", "skip"] = "stop"
    """At a picture that cannot be read: an error that names it, or a warning and the others."""


class DistillTraining(RecipePart):
    """The optimisation; what is left out is the method's own."""

    steps: int = Field(400, ge=1)
    """Updates of the student."""
    batch: int = Field(32, ge=1)
    """Samples per update."""
    learning_rate: float | None = Field(None, gt=0)
    """The method's own unless given."""
    warmup: int | None = Field(None, ge=0)
    ema: float | None = Field(None, ge=0, lt=1)
    ema_widths: list[float] = Field(default_factory=list)
    """Widths of averages to choose from afterwards (`fewstep.train.power_ema.reconstruct`), such as [0.05, 0.1]."""
    clip_norm: float | None = Field(None, gt=0)
    weight_decay: float | None = Field(None, ge=0)
    decay: Literal["cosine", "constant"] | None = None
    optimizer: Literal["adamw", "adamw8bit"] | None = None
    checkpoint_minutes: float | None = Field(None, gt=0)
    students: int = Field(1, ge=1)
    """So many students share out the conditions, each trained on its own (Multi-Student Distillation)."""
    lora: int = Field(0, ge=0)
    """Rank of adapters on one frozen base that serves teacher, critic and student; 0: all weights."""
    quantize: Annotated[str, checked(_scheme)] = ""
    """Train the student through the rounding of this scheme, such as w8a8 (quantization-aware)."""
    q_sched: TuningBudget = 0.0
    """Budget of a Q-Sched search of two scalars per step when the training is over; 0 for none."""
    gradient_checkpointing: bool = False
    trackers: list[str] = Field(default_factory=list)
    """Of accelerate: tensorboard, wandb, mlflow, ...; they get what the history of the report gets."""
    shard: bool = False
    """Where several processes train: each keeps a share of weights, moments and averages (FSDP2)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_every: int = Field(100, ge=1)
    pictures_every: int = Field(0, ge=0)
    """Draw a sheet of samples every so many steps; 0: never."""
    seed: int = 0
    """Of weights, data and noise."""


class DistillEvaluation(RecipePart):
    """Held-out conditions and seeds."""

    conditions: Conditions = "auto"
    items: int = Field(100, ge=20)
    seeds: list[int] = Field(default_factory=lambda: [101, 102], min_length=1)
    reference: int = Field(200, ge=40)
    """Samples of the teacher with other seeds that all are compared with."""
    features: list[str] = Field(default_factory=lambda: ["random", "pixels"], min_length=1)
    pictures: int = Field(8, ge=0)


class DistillRecipe(PipelineRecipe):
    """Train a student that draws in few steps what a pipeline draws in many."""

    kind: Literal["distill"] = "distill"
    model: str = "mnist-dit"
    """The teacher: shipped name, diffusers folder, or hub id."""
    steps: int = Field(4, ge=1, le=1000)
    """Network evaluations of the student."""
    method: str = "dmd2"
    """Name of a method; `fewstep distill` lists them."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further options of the method."""
    guidance: float = Field(1.0, ge=1)
    """Guidance of the teacher that the student is to have inside; it then runs without."""
    teacher: DistillTeacher = Field(default_factory=DistillTeacher)
    data: DistillData = Field(default_factory=DistillData)
    train: DistillTraining = Field(default_factory=DistillTraining)
    evaluation: DistillEvaluation = Field(default_factory=DistillEvaluation)

    @field_validator("method")
    @classmethod
    def _method(cls, name: str) -> str:
        from fewstep.distillation.method import presets

        known = presets()
        if name not in known:
            raise ValueError(f"unknown method. {nearest(name, known)}")
        return name

    @model_validator(mode="after")
    def _options(self) -> DistillRecipe:
        from fewstep.distillation.method import options_of

        known = options_of(self.method)
        for name in self.options:
            if name not in known:
                raise ValueError(f"{self.method} has no option {name}. {nearest(name, known)}")
        return self

    def resolved(self) -> DistillRecipe:
        """The recipe with every `auto`, and every setting that is the method's own, replaced by what it means here."""
        from fewstep.distillation.method import method
        from fewstep.process import RectifiedFlow
        from fewstep.train.distillation import defaults
        from fewstep.train.stage import StageConfig

        known = super().resolved()
        built = method(self.method, RectifiedFlow(), **self.method_options())  # settings depend on no process
        own = {**StageConfig().model_dump(), **defaults(built.settings)}
        left = {name: own[name] for name in DistillTraining.model_fields if getattr(self.train, name) is None}
        return known.model_copy(update={"train": self.train.model_copy(update=left)})

    def check(self) -> None:
        """Refuse what cannot be read (see above), pictures that are not there and unknown networks and trackers.

        Raises:
            FewstepError: one of them.
        """
        from fewstep.metrics import FEATURES
        from fewstep.train.trackers import known_tracker

        super().check()
        source = self.data.source
        if source not in ("teacher", "emoji", "mnist") and not Path(source).exists():
            raise FewstepError("data.source: no such pictures", value=source, hint="Give teacher, a folder or an npz.")
        for spec in self.evaluation.features:
            FEATURES.check(spec)
        for name in self.train.trackers:
            known_tracker(name)

    def method_options(self) -> dict[str, Any]:
        """Options of the preset: those given, with the recipe's steps and guidance where it knows them.

        Stages that would outlast the training are laid over it.
        """
        from fewstep.distillation.method import fitting_options, options_of
        from fewstep.process import RectifiedFlow

        known = options_of(self.method)
        shared = {"steps": self.steps, "guidance": self.guidance}
        given = {**{k: v for k, v in shared.items() if k in known}, **self.options}
        return fitting_options(self.method, RectifiedFlow(), self.train.steps, **given)
