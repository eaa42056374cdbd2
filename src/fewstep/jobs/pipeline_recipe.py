"""What every recipe that runs a pipeline can be told, and how it opens it.

Recipes import torch and what knows the names only where they check and open: the command line asks them for its
options.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from typing_extensions import Self

from fewstep.errors import FewstepError
from fewstep.pipelines.protocol import Pipeline
from fewstep.recipes.base import Recipe
from fewstep.zoo import SHIPPED, shipped

Conditions = str | list[str] | list[int]
"""A prompt set by name, prompts, or class labels; `auto` fits the pipeline (every label in turn, or prompts)."""


def one_of(name: str, known: Collection[str]) -> str:
    """The name, for validators.

    Raises:
        ValueError: it is not known.
    """
    if name not in known:
        raise ValueError(f"must be one of {', '.join(known)}")
    return name


def _plain_solver(name: str) -> str:
    from fewstep.solvers import FACTS, SOLVERS

    return one_of(name, [n for n in SOLVERS if FACTS[n].calls == 1 and not FACTS[n].stochastic])


PlainSolver = Annotated[str, AfterValidator(_plain_solver)]
"""The name of a solver that follows any grid, calls once per time and draws no noise."""


def _enough(budget: float) -> float:
    from fewstep.schedules.tuning import LEAST_BUDGET

    if 0 < budget < LEAST_BUDGET:
        raise ValueError(f"must be 0 or at least {LEAST_BUDGET:g}, the plan as it is and one other")
    return budget


TuningBudget = Annotated[float, Field(ge=0), AfterValidator(_enough)]
"""Budget of a Q-Sched search in candidates scored on all items; 0 for none."""


def checked(check: Callable[[str], object]) -> AfterValidator:
    """The validator of a text that `check` refuses by a `FewstepError`."""

    def validate(text: str) -> str:
        try:
            check(text)
        except FewstepError as error:
            raise ValueError(f"{error.what}. {error.hint}".strip()) from error  # the value is named by pydantic
        return text

    return AfterValidator(validate)


def _different(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed is given twice, and would count the same pictures twice")
    return seeds


Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_different)]


def _device(name: str) -> str:
    """A device that torch knows and this machine has.

    Raises:
        ValueError: it is none.
    """
    if name != "auto":
        import torch

        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(f"no such device here: {str(error).splitlines()[0]}") from error
    return name


class PipelineRecipe(Recipe):
    """A pipeline, how it is called, and where."""

    model: str
    """Shipped name, diffusers folder, or hub id."""
    steps: int = Field(4, ge=1, le=1000)
    """Network evaluations of a sample."""
    guidance: float = Field(1.0, ge=0)
    """`guidance_scale` of the pipeline call; 1 is without."""
    call: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the pipeline call: height, width, ..."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    variant: str = ""
    """Of the weight files of a pipeline, such as fp16."""
    device: Annotated[str, AfterValidator(_device)] = "auto"
    batch: int = Field(32, ge=1)
    piece: int = Field(16, ge=1)
    """Pairs of condition and seed that a search draws and scores at once, the least that several processes share.
    Another number rounds otherwise; the number of processes changes nothing."""
    results: str = ""
    """A JSON file that also receives the numbers, besides the run directory."""

    @property
    def place(self) -> str:
        """The device that `auto` stands for."""
        from fewstep.runs.environment import best_device

        return best_device() if self.device == "auto" else self.device

    def prompts(self, conditions: Conditions, held_out: bool) -> Conditions:
        """What `auto` stands for: every class label, or the calibration or the evaluation prompts."""
        if conditions != "auto":
            return conditions
        if labels := self._labels():
            return labels
        split = "emoji" if self.model in SHIPPED else "general"
        return f"{split}:evaluation" if held_out else f"{split}:calibration"

    def _labels(self) -> list[int]:
        """The class labels that a shipped model or a folder names; none elsewhere."""
        from fewstep.files import read_json

        place = shipped(self.model) if self.model in SHIPPED else Path(self.model)
        index = place / "model_index.json"
        named = read_json(index).get("id2label") if index.is_file() else None
        return sorted(map(int, named)) if isinstance(named, dict) else []

    def _conditions(self) -> dict[str, Conditions]:
        """By section what the pipeline is told there."""
        found = {name: getattr(getattr(self, name), "conditions", None) for name in type(self).model_fields}
        return {name: value for name, value in found.items() if value is not None}

    def shared_prompts(self) -> list[str]:
        """Prompts of the evaluation that another section has too: they are held out by their noise alone."""
        from fewstep.data.prompts import load_prompts

        told = {name: self.prompts(value, name == "evaluation") for name, value in self._conditions().items()}
        sets = {name: load_prompts(value) if isinstance(value, str) else value for name, value in told.items()}
        own = sets.pop("evaluation", [])
        others = set(chain.from_iterable(sets.values()))
        return [prompt for prompt in dict.fromkeys(own) if isinstance(prompt, str) and prompt in others]

    def resolved(self) -> Self:
        """The recipe with every `auto` replaced by what it means for this model, on this machine."""
        told = {
            name: getattr(self, name).model_copy(update={"conditions": self.prompts(value, name == "evaluation")})
            for name, value in self._conditions().items()
        }
        return self.model_copy(update={"device": self.place, **told})

    def check(self) -> None:
        """Refuse conditions that cannot be read, and results that cannot be written.

        Raises:
            FewstepError: one of them.
        """
        from fewstep.data.prompts import load_prompts

        for name, value in self._conditions().items():
            conditions = self.prompts(value, name == "evaluation")
            if isinstance(conditions, str) or not conditions:
                load_prompts(conditions)  # type: ignore[arg-type]
        if self.results and Path(self.results).is_dir():
            raise FewstepError("results is a folder", value=self.results, hint="Name a JSON file.")

    def opened(self) -> Pipeline:
        """The pipeline on its device; no weight takes a gradient (searches differentiate schedules).

        Raises:
            FewstepError: it cannot be opened, or draws no such conditions.
        """
        import torch

        from fewstep.pipelines import load_pipeline
        from fewstep.pipelines.conditions import conditions_of

        options = {"variant": self.variant} if self.variant else {}
        pipe = load_pipeline(self.model, dtype=getattr(torch, self.dtype), **options).to(self.place)
        for name, value in self._conditions().items():
            conditions_of(pipe, self.prompts(value, name == "evaluation"))
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False)
        return pipe
