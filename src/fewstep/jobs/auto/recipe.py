"""What a choice under budgets can be told."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from fewstep.errors import FewstepError
from fewstep.jobs.pipeline_recipe import Conditions, PipelineRecipe, Seed, TuningBudget, checked
from fewstep.jobs.quantize.recipe import parse_size
from fewstep.recipes.base import RecipePart

_TIME = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s)?\s*")
OWN = "own"
"""In the place of a solver: what the pipeline's scheduler does."""


def parse_time(text: str) -> float:
    """Milliseconds of a time such as `200ms`, `1.5s` or `80`.

    Raises:
        FewstepError: it is none.
    """
    found = _TIME.fullmatch(text)
    if found is None:
        raise FewstepError("not a time", value=text, hint="Write for instance 200ms or 1.5s.")
    return float(found[1]) * (1000 if found[2] == "s" else 1)


RESIDENT = " int8"
"""After a scheme: int8 codes stay in memory beside the packed ones."""
MIXED = "mixed"
"""Before a number: a scheme for every layer, so that weights take so many bits in the mean."""


def _plain_scheme(name: str) -> str:
    from fewstep.quant import Scheme

    return name if name == "none" else str(Scheme.parse(name))


def _scheme(name: str) -> str:
    from fewstep.quant import Scheme

    if name.startswith(MIXED):
        try:
            return f"{MIXED} {float(name.removeprefix(MIXED)):g}"
        except ValueError as error:
            hint = f"Write for instance {MIXED} 4.5."
            raise FewstepError("bits per weight are a number", value=name, hint=hint) from error
    if name.endswith(RESIDENT) and not Scheme.parse(name.removesuffix(RESIDENT)).integer_product:
        hint = "Use a scheme with one scale per row and 8-bit inputs: w4a8row int8."
        raise FewstepError("no int8 product takes this scheme", value=name, hint=hint)
    return _plain_scheme(name.removesuffix(RESIDENT)) + RESIDENT * name.endswith(RESIDENT)


class AutoSpace(RecipePart):
    """What is tried."""

    steps: list[int] = Field(default_factory=lambda: [1, 2, 3, 4, 6, 8], min_length=1)
    """Numbers of network evaluations; a stored plan and a consistency scheduler keep their solver."""
    solvers: list[str] = Field(default_factory=lambda: [OWN, "ddim", "dpm_solver_pp_2m", "unipc"], min_length=1)
    """`own` is what the pipeline's scheduler does."""
    searched_times: bool = True
    """Also the times that the many-step trajectory suggests (GITS), for every solver but the pipeline's own."""
    guidance: list[Literal["falling", "rising"]] = Field(default_factory=lambda: ["falling", "rising"])  # type: ignore[arg-type]
    """Of guided pipelines, beside the same in every step: its excess over 1 from one and a half times to half of it, or
    back. The best plan of each number of steps tries them."""
    schemes: list[str] = Field(
        default_factory=lambda: [
            "none", "w8a8", "w4a16", "w4a8", "w3a8", "w4a8row", "w4a8row int8", "mixed 4.5", "mixed 6"
        ],
        min_length=1,
    )  # fmt: skip
    """Of the network; `none` leaves it as it is. `mixed 4.5`: a scheme for every layer, 4.5 bits per weight in all.
    `w4a8row int8` keeps int8 codes beside the packed ones: one more byte per weight, the speed of w8a8 on a CPU."""
    layer_seconds: float = Field(600.0, ge=0)
    """Schemes for every layer are left out where measuring the layers would take longer."""
    parts: list[str] = Field(default_factory=lambda: ["none", "w8a16"], min_length=1)
    """Of text encoders and autoencoder together."""
    per_step: bool = True
    """Try bits per step at the chosen low-bit point: inputs with more bits in some rows of the plan, fewer in others,
    at the same bytes and compute."""
    q_sched: TuningBudget = 24.0
    """Budget of the Q-Sched search of the chosen low-bit point; 0 for none."""

    @field_validator("schemes", "parts")
    @classmethod
    def _schemes(cls, names: list[str], info: ValidationInfo) -> list[str]:
        try:
            return [_scheme(name) if info.field_name == "schemes" else _plain_scheme(name) for name in names]
        except FewstepError as error:
            raise ValueError(str(error)) from error

    @field_validator("solvers")
    @classmethod
    def _solvers(cls, names: list[str]) -> list[str]:
        from fewstep.solvers import SOLVERS

        for name in names:
            if name != OWN and name not in SOLVERS:
                raise ValueError(f"unknown solver {name}: give {OWN} or one of {', '.join(SOLVERS)}")
        return names


class AutoSearch(RecipePart):
    """On what the candidates are compared."""

    conditions: Conditions = "auto"
    items: int = Field(16, ge=4)
    """Pairs of condition and seed; a first look uses a quarter of them."""
    seed: Seed = 0
    features: str = "random"
    """Feature network in which a picture is compared with the reference's picture of the same condition and seed."""
    reference_steps: int = Field(30, ge=2)
    """Of the full-precision reference; a stored plan and a consistency scheduler are their own reference."""
    rounds: int = Field(7, ge=3)
    """How often each call is timed."""


class AutoEvaluation(RecipePart):
    """Held-out conditions and seeds for the numbers of the front."""

    conditions: Conditions = "auto"
    items: int = Field(32, ge=4)
    seed: Seed = 101
    pictures: int = Field(4, ge=0)


class AutoRecipe(PipelineRecipe):
    """Choose steps, solver, times, bits and Q-Sched under budgets, and show the front of quality against cost."""

    kind: Literal["auto"] = "auto"
    model: str = "emoji-student"
    memory: Annotated[str, checked(lambda text: text and parse_size(text))] = ""
    """Bytes of all weights, such as 2GB or 6MB; no limit unless given."""
    latency: Annotated[str, checked(lambda text: text and parse_time(text))] = ""
    """Time per picture on this device, such as 200ms; no limit unless given."""
    space: AutoSpace = Field(default_factory=AutoSpace)
    search: AutoSearch = AutoSearch()
    evaluation: AutoEvaluation = AutoEvaluation()

    @property
    def bytes_limit(self) -> float:
        """Of all weights; infinite where there is no budget."""
        return parse_size(self.memory) if self.memory else float("inf")

    @property
    def time_limit(self) -> float:
        """Milliseconds per picture; infinite where there is no budget."""
        return parse_time(self.latency) if self.latency else float("inf")

    def check(self) -> None:
        """Refuse what cannot be read, and a feature network of no known kind.

        Raises:
            FewstepError: one of them.
        """
        from fewstep.metrics import FEATURES

        super().check()
        FEATURES.check(self.search.features)
