"""What the steps of a job pass on: the opened pipeline with what is known of it, and the items it is run on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from fewstep.files import read_tensors, write_json, write_tensors
from fewstep.jobs.pipeline_recipe import Conditions, PipelineRecipe
from fewstep.pipelines import (
    PipelineSampler,
    backbones_of,
    exchanged,
    fuse_adapters,
    identity_of,
    plan_of,
    process_of,
    trace,
)
from fewstep.pipelines.adapters import adapters_of
from fewstep.pipelines.conditions import conditions_of
from fewstep.pipelines.protocol import Pipeline
from fewstep.plan import Identity, Plan
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.quant.calls import Call, recording_parts
from fewstep.runs import Run, environment
from fewstep.schedules import Trajectory
from fewstep.solvers import SOLVERS, grids

R = TypeVar("R", bound=PipelineRecipe)

# --- items --------------------------------------------------------------------------------------------------------

_STREAMS = {
    "evaluation": 1_000_003,
    "search": 2_000_003,
    "trajectories": 3_000_003,
    "calibration": 3_000_017,
    "tuning": 5_000_003,
    "reference": 7_000_003,
}
"""Where the seeds of each use begin.

What is searched, calibrated or trained on must not be drawn with the noise that it is judged with. So each use of seeds
has a stride of its own, and a user's small number k means the block of seeds from k strides on: blocks of one use lie
a million apart, and two uses share a seed only where multiples of their strides meet. The numbers themselves mean
nothing, but results depend on them: never change one.
"""


def first_seed(use: str, number: int = 0) -> int:
    """The seed of the first item; item i has the seed i later.

    Args:
        use: one of `evaluation`, `search`, `trajectories`, `calibration`, `tuning`, `reference`.
        number: the user's: one of `evaluation.seeds`, which count from 1, or a `seed`, which counts from 0.
    """
    return _STREAMS[use] * (number if use == "evaluation" else number + 1)


def seeds_for(use: str, number: int, count: int) -> list[int]:
    """One seed per item (see `first_seed`)."""
    first = first_seed(use, number)
    return list(range(first, first + count))


@dataclass(frozen=True)
class Items:
    """What pictures are drawn from: conditions, one per item or None for an unconditional pipeline, and seeds."""

    conditions: list[Any] | None
    seeds: list[int]

    @property
    def pairs(self) -> list[tuple[Any, int]]:
        """(condition, seed) of each item."""
        conditions = [None] * len(self.seeds) if self.conditions is None else self.conditions
        return list(zip(conditions, self.seeds, strict=True))

    def pick(self, numbers: Sequence[int]) -> Items:
        """Some of the items."""
        conditions = None if self.conditions is None else [self.conditions[i] for i in numbers]
        return Items(conditions, [self.seeds[i] for i in numbers])

    def draw(self, sampler: PipelineSampler, plan: Plan, output: str = "image") -> Tensor:
        """A sample of each, as `PipelineSampler` gives them."""
        return sampler(plan, self.conditions, self.seeds, output)

    def drawing(self, sampler: PipelineSampler, output: str = "image") -> Callable[[Plan, Sequence[int]], Tensor]:
        """(plan, numbers of items) -> their samples: what objectives of searches call."""
        return lambda plan, numbers: self.pick(numbers).draw(sampler, plan, output)


# --- the context --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class JobContext(Generic[R]):
    """A recipe, its run, and the pipeline it is about; nothing in it changes.

    Args:
        recipe: what the run was told.
        run: its directory.
        pipe: the opened pipeline.
        guidance: its `guidance_scale`, 1 where there is none.
        identity: what plans for it belong to.
    """

    recipe: R
    run: Run
    pipe: Pipeline
    guidance: float
    identity: Identity

    @classmethod
    def open(cls, recipe: R, run: Run, *, pipe: Pipeline | None = None, fuse: bool = False, **more: Any) -> Self:
        """Open the pipeline of a recipe.

        Args:
            recipe: names the pipeline, its device and its call.
            run: the run directory.
            pipe: a pipeline that is open already, taken as it is in the place of the one that the recipe names.
            fuse: add adapters into the weights, for jobs that write new weights; a `pipe` that was given keeps its own.
            more: further fields of the class.

        Raises:
            FewstepError: the pipeline cannot be opened.
        """
        if pipe is None:
            pipe = recipe.opened()
        elif fuse and adapters_of(pipe, active=False):
            pipe = exchanged(pipe, {name: copy.deepcopy(model) for name, model in backbones_of(pipe).items()})
        if fuse:
            fuse_adapters(pipe)
        if shared := len(recipe.shared_prompts()):
            run.say(
                f"[yellow]{shared} prompts of the evaluation are used elsewhere in this run too: they are held out by "
                "their noise alone. Name others for evaluation.conditions.[/yellow]"
            )
        guidance = max(1.0, recipe.guidance)
        return cls(recipe, run, pipe, guidance, identity_of(pipe, guidance), **more)

    @cached_property
    def plan(self) -> Plan:
        """What the pipeline follows today, as the plan of these weights and this guidance.

        Raises:
            FewstepError: it cannot be read, or belongs to other weights.
        """
        plan = self.read_plan()
        plan.check(self.identity)
        return plan.replace(identity=self.identity)

    def read_plan(self) -> Plan:
        """What the pipeline follows today, as it was found.

        Raises:
            FewstepError: it cannot be read.
        """
        guided = {"guidance_scale": self.recipe.guidance or None}
        return plan_of(self.pipe, self.recipe.steps, **guided, **self.recipe.call)

    @cached_property
    def process(self) -> Process:
        """How the pipeline's network was trained."""
        return self._trained[0]

    @property
    def prediction(self) -> Prediction:
        """What its output means."""
        return self._trained[1]

    @cached_property
    def _trained(self) -> tuple[Process, Prediction]:
        return process_of(self.pipe, **self.recipe.call)

    @cached_property
    def backbones(self) -> dict[str, nn.Module]:
        """The networks that denoise, by the names of their components."""
        return backbones_of(self.pipe)

    @property
    def backbone(self) -> str:
        """Name of the component that denoises, the first where there are two."""
        return next(iter(self.backbones))

    def part_kind(self, name: str) -> str:
        """What a component is: `backbone`, `text`, `vae`, or nothing for others."""
        if name in self.backbones:
            return "backbone"
        if name.startswith("text_encoder"):
            return "text"
        return "vae" if name in ("vae", "vqvae") else ""

    def solved(self, solver: str, steps: int) -> Plan:
        """The plan of a solver on equal steps."""
        return SOLVERS[solver](self.process, self.prediction, grids.uniform(self.process, steps))

    def followed(
        self, unit: str, sampler: PipelineSampler, plan: Plan, items: Items, artifact: str | None = None
    ) -> Trajectory:
        """Where a plan goes on these items: a unit of this name."""

        def compute() -> dict[str, Tensor]:
            seen = trace(sampler, plan, items.conditions, items.seeds)
            return {"states": seen.states, "outputs": seen.outputs}

        seen = tensor_unit(self.run, unit, compute, artifact)
        return Trajectory(plan, seen["states"], seen["outputs"])

    def calls_of(self, items: Items, limit: int | None = None) -> dict[str, list[Call]]:
        """Calls of every component while these items are drawn in full precision, at most `limit` of each."""
        with recording_parts(self.pipe.components, limit) as found, torch.no_grad():
            items.draw(self.sampler(), self.plan, "latent")
        return found

    def sampler(self, **parts: nn.Module) -> PipelineSampler:
        """A sampler of the pipeline with some parts exchanged; prompts are encoded anew."""
        pipe = exchanged(self.pipe, parts)
        return PipelineSampler(pipe, self.recipe.guidance, dict(self.recipe.call), self.recipe.batch)

    def conditions(self, wanted: Conditions, count: int | None = None, *, held_out: bool = False) -> list[Any] | None:
        """`count` conditions of the kind that the pipeline takes, or all there are; None for an unconditional one."""
        return conditions_of(self.pipe, self.recipe.prompts(wanted, held_out), count)

    def items(self, use: str, wanted: Conditions, count: int, number: int = 0) -> Items:
        """Items with the seeds of a use (see `first_seed`); those of an evaluation are held out from all others."""
        conditions = self.conditions(wanted, count, held_out=use == "evaluation")
        return Items(conditions, seeds_for(use, number, count))

    def write_results(self, **numbers: Any) -> dict[str, Any]:
        """Write `results.json`, and the file that the recipe names; return what was written."""
        results = {
            "recipe": self.recipe.plain(),
            "environment": environment(),
            **numbers,
            "seconds": self.run.seconds(),
        }
        write_json(self.run.path / "results.json", results, over="all")  # several processes may be writing it
        if self.recipe.results and self.run.leads:
            write_json(self.recipe.results, results)
        return results


def tensor_unit(
    run: Run,
    name: str,
    compute: Callable[[], dict[str, Tensor]],
    artifact: str | None = None,
    *,
    shared: bool = False,
) -> dict[str, Tensor]:
    """A unit whose result is named tensors, kept as `artifacts/<artifact>`, `<name>.safetensors` unless given.

    shared: see `Run.unit`.
    """

    def save(tensors: dict[str, Tensor], draft: Path) -> None:
        write_tensors(draft, {key: tensor.contiguous() for key, tensor in tensors.items()})

    place = artifact or f"{name}.safetensors"
    return run.unit(name, compute, save=save, load=read_tensors, artifact=place, shared=shared)


def slug(name: str) -> str:
    """The name of a plan or a system as part of the names of units and files."""
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
