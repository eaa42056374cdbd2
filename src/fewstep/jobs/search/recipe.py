"""What a schedule search can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from fewstep.jobs.pipeline_recipe import Conditions, PipelineRecipe, PlainSolver, Seed, Seeds, TuningBudget, one_of
from fewstep.recipes.base import RecipePart


class SearchTeacher(RecipePart):
    """The fine trajectory that schedules are measured against: the same network with many evaluations."""

    steps: int = Field(60, ge=2)
    """Network evaluations of the fine trajectory that schedules are measured against."""
    solver: PlainSolver = "unipc"


class SearchSettings(RecipePart):
    """How the schedule is searched."""

    method: str = "joint"
    """joint (all of them), s3 (times and solver strategies by evolution with a predictor), ld3 (times by gradient),
    amed (learned middle evaluations), gits (times from one teacher trajectory, seconds), autodiffusion (times and
    skipped layers by evolution), random (the control)."""
    solver: PlainSolver = "unipc"
    """What runs on the searched times, where the method does not choose the solver itself."""
    objective: Literal["teacher", "distribution"] = "teacher"
    """End where the teacher ends, or look like its results as a set (features of decoded images)."""
    features: str = "random"
    """Feature network of the distribution objective."""
    parts: list[str] = Field(default_factory=list)
    """What evolution varies, of times, strategy, first, skips, scales; the method's own choice unless given."""
    most_skipped: float = Field(0.1, gt=0, lt=1)
    """Largest share of a row's blocks that may be skipped."""
    budget: int = Field(200, ge=1)
    """Plans evaluated on all items; a gradient counts as three."""
    conditions: Conditions = "auto"
    """Prompts or class labels to search on: the name of a set or a text file; `auto` fits the pipeline."""
    items: int = Field(32, ge=2)
    """Pairs of condition and seed that every plan is evaluated on."""
    seed: Seed = 0
    """Of the items and of the search."""
    storage: str = ""
    """Optuna storage URL that several workers share (same command, other run directory); a file in the run directory
    unless given."""
    q_sched: TuningBudget = 0.0
    """Budget of a Q-Sched search of two scalars per step on top of what was found; 0 for none."""
    searcher: str = "coarse-to-fine"

    @field_validator("method")
    @classmethod
    def _method(cls, name: str) -> str:
        from fewstep.schedules import METHODS

        return one_of(name, METHODS)

    @field_validator("parts")
    @classmethod
    def _parts(cls, names: list[str]) -> list[str]:
        from fewstep.schedules.space import PARTS

        return [one_of(name, PARTS) for name in names]

    @field_validator("searcher")
    @classmethod
    def _searcher(cls, name: str) -> str:
        from fewstep.schedules.tuning import SEARCHERS

        return one_of(name, SEARCHERS)


class SearchEvaluation(RecipePart):
    """Held-out conditions and seeds."""

    conditions: Conditions = "auto"
    items: int = Field(64, ge=2)
    seeds: Seeds = Field(default_factory=lambda: [101, 102, 103])
    baselines: bool = True
    """Also measure the schedulers of diffusers at the same number of evaluations."""
    pictures: int = Field(6, ge=0)


class ScheduleRecipe(PipelineRecipe):
    """Find a better schedule for a pipeline at a fixed number of network evaluations."""

    kind: Literal["schedule"] = "schedule"
    model: str = "emoji-teacher"
    steps: int = Field(6, ge=1, le=100)
    """Network evaluations that the schedule may use."""
    teacher: SearchTeacher = Field(default_factory=SearchTeacher)
    search: SearchSettings = Field(default_factory=SearchSettings)
    evaluation: SearchEvaluation = Field(default_factory=SearchEvaluation)

    @model_validator(mode="after")
    def _finer(self) -> ScheduleRecipe:
        if self.teacher.steps <= self.steps:
            raise ValueError(f"teacher.steps must exceed steps ({self.teacher.steps} <= {self.steps})")
        return self

    @model_validator(mode="after")
    def _objective(self) -> ScheduleRecipe:
        from fewstep.schedules import BY_GRADIENT, least_budget

        search = self.search
        if search.objective == "distribution" and search.method in BY_GRADIENT:
            raise ValueError(
                f"search.method={search.method} goes by gradient, which search.objective=distribution lacks"
            )
        least = least_budget(search.method, search.items)
        if search.budget < least:
            raise ValueError(f"search.method={search.method} needs a search.budget of at least {least}")
        if search.objective == "distribution" and search.items < 8:
            raise ValueError("search.objective=distribution needs at least eight search.items")
        return self

    def check(self) -> None:
        """Refuse what cannot be read (see above), and a feature network of no known kind.

        Raises:
            FewstepError: one of them.
        """
        from fewstep.metrics import FEATURES

        super().check()
        FEATURES.check(self.search.features)
