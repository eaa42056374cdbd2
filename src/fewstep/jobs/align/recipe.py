"""The settings of an alignment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from fewstep.errors import FewstepError, nearest
from fewstep.jobs.distill.recipe import DistillTraining
from fewstep.jobs.pipeline_recipe import Conditions, PipelineRecipe
from fewstep.recipes.base import RecipePart

if TYPE_CHECKING:
    from fewstep.distillation.method import Preset


class AlignTraining(DistillTraining):
    """The optimisation; what is left out is the method's own."""

    steps: int = Field(100, ge=1)
    """Updates of the student."""
    batch: int = Field(8, ge=1)
    """Prompts per update; methods draw several pictures of each."""
    lora: int = Field(16, ge=0)
    """Rank of the adapter that is trained; without it the reference is the base. 0: all weights, and a copy."""
    every: int = Field(25, ge=1)
    """Updates between two measurements, where the alarm may stop the training."""


class AlignEvaluation(RecipePart):
    """Held-out conditions and seeds; the judge is never what was trained on."""

    conditions: Conditions = "auto"
    items: int = Field(32, ge=20)
    seeds: list[int] = Field(default_factory=lambda: [101, 102], min_length=1)
    reference: int = Field(64, ge=40)
    """Samples of the untouched student with other seeds that distances are measured to."""
    judge: str = "auto"
    """A reward that judges alone; `auto`: a shipped judge for a shipped model, the feature networks alone elsewhere."""
    features: list[str] = Field(default_factory=lambda: ["random", "pixels"], min_length=1)
    real: str = "auto"
    """Real pictures that distances are measured to as well: `emoji`, `mnist`, a folder or an npz, or `none`; `auto`:
    the held-out ones of a shipped model."""
    pictures: int = Field(8, ge=0)


class AlignRecipe(PipelineRecipe):
    """Tune a few-step pipeline towards rewards or votes."""

    kind: Literal["align"] = "align"
    model: str = "emoji-student"
    """The student: shipped name, diffusers folder, or hub id."""
    method: str = "pso"
    """pso, pso_offline, pso_dreambooth, dpo, step_dpo, grpo, refl, draft, nft, re_dmd, tilted_dmd or joint."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further options of the method, such as {"beta": 20}."""
    reward: list[str] = Field(default_factory=list)
    """Rewards by name, such as clip:FOLDER_OR_ID, quality:FOLDER or colourfulness; their weighted sum is raised."""
    weights: list[float] = Field(default_factory=list)
    """Of the rewards; 1 each unless given."""
    combine: Literal["sum", "pareto"] = "sum"
    """Of several rewards: their weighted sum, or, for pso, whoever is better in one and worse in none wins a pair."""
    train_prompts: Conditions = "auto"
    """What is trained on: a prompt set by name, prompts, or labels."""
    pairs: str = ""
    """Votes: a file of JSON lines {"prompt": ..., "chosen": FILE, "rejected": FILE}, for pso_offline and dpo;
    or a folder of a few captioned pictures, each preferred to what the student draws (pso_dreambooth)."""
    teacher: str = ""
    """The many-step pipeline of the same family, which joint, re_dmd and tilted_dmd distil from."""
    alarm: bool = True
    """Stop where the reward rises while judge or recall falls, and keep the best student before."""
    train: AlignTraining = Field(default_factory=AlignTraining)
    evaluation: AlignEvaluation = Field(default_factory=AlignEvaluation)

    @field_validator("method")
    @classmethod
    def _method(cls, name: str) -> str:
        from fewstep.alignment.presets import ALIGNMENTS

        if name not in ALIGNMENTS:
            raise ValueError(f"unknown method. {nearest(name, ALIGNMENTS)}")
        return name

    @property
    def facts(self) -> Preset:
        """What is known of the method."""
        from fewstep.alignment.presets import ALIGNMENTS

        return ALIGNMENTS[self.method]

    @model_validator(mode="after")
    def _options(self) -> AlignRecipe:
        known = self.facts.options
        for name in self.options:
            if name not in known:
                raise ValueError(f"{self.method} has no option {name}. {nearest(name, known)}")
        if self.weights and len(self.weights) != len(self.reward):
            raise ValueError(f"{len(self.reward)} rewards need {len(self.reward)} weights")
        return self

    def check(self) -> None:
        """Refuse what can be seen to be wrong before anything is opened.

        Raises:
            FewstepError: no prompts, neither rewards nor votes, or a teacher that is missing.
        """
        from fewstep.alignment.presets import ALIGNMENTS

        super().check()
        if self.train_prompts == []:
            raise FewstepError("there are no prompts to train on", hint="Give prompts, or leave them out for a set.")
        policy = ALIGNMENTS.get(str(self.options.get("policy")))
        offline = self.facts.votes or (policy is not None and policy.votes)
        if offline and not self.pairs:
            raise FewstepError(f"{self.method} learns from votes", hint="Give pairs=FILE (--pairs votes.jsonl).")
        if not offline and not self.reward:
            raise FewstepError(f"{self.method} needs a reward", hint="For instance --reward colourfulness.")
        if self.facts.distils and not self.teacher:
            hint = "Name the many-step pipeline that the student was distilled from: teacher=emoji-teacher."
            raise FewstepError(f"{self.method} distils from a teacher", hint=hint)
        if self.combine == "pareto" and (self.options.get("policy", self.method) != "pso" or len(self.reward) < 2):
            hint = "Use combine=sum with weights, or method=pso (or joint) with two rewards or more."
            raise FewstepError("only pairs are won by dominance, of two rewards or more", value=self.method, hint=hint)
        if self.evaluation.real not in ("auto", "none", "emoji", "mnist") and not Path(self.evaluation.real).exists():
            hint = "Give emoji, mnist, a folder or an npz, or none."
            raise FewstepError("evaluation.real: no such pictures", value=self.evaluation.real, hint=hint)
        if self.train.students > 1 or self.train.quantize or self.train.q_sched:
            raise FewstepError("an alignment trains one student in full precision", hint="Leave train.students out.")
