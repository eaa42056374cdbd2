"""What a Q-Sched run can be told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from fewstep.errors import FewstepError
from fewstep.jobs.pipeline_recipe import PipelineRecipe, Seeds, one_of
from fewstep.jobs.q_sched.names import beside, plain
from fewstep.recipes.base import RecipePart
from fewstep.zoo import SHIPPED

if TYPE_CHECKING:
    from fewstep.data import CaptionedImages

Prompts = str | list[str]
FEWEST = 4
"""Prompts that an evaluation needs."""
LEAST_ITEMS = 8
"""A set of fewer pictures cannot be compared: searches look at a quarter of the items first, and two make a pair."""


class QSchedRewards(RecipePart):
    """The two terms of JAQ. `auto`: the emoji rewards for the shipped model, CLIP and PickScore for any other.

    `none` leaves a term out; `sharpness`, `colourfulness` and `contrast` need no download.
    """

    alignment: str = "auto"
    """Of pictures with their prompts: clip:FOLDER_OR_ID, `none`; `auto` fits the model."""
    quality: str = "auto"
    """Of pictures alone: clip:FOLDER_OR_ID, quality:FOLDER, sharpness, colourfulness, contrast, `none`; `auto` fits the
    model."""
    k: float = Field(2.0, ge=0)
    """Weight of quality, after both terms were standardised, where there are two."""

    @property
    def both(self) -> bool:
        """Whether two terms are to be put on one scale."""
        return "none" not in (self.alignment, self.quality) and self.k > 0

    @model_validator(mode="after")
    def _something(self) -> QSchedRewards:
        if self.alignment == "none" and (self.quality == "none" or not self.k):
            raise ValueError("without alignment and quality nothing is left to search for")
        return self


class QSchedSearch(RecipePart):
    """How the coefficients are searched."""

    objective: Literal["auto", "jaq", "real", "teacher", "full-precision"] = "auto"
    """What is maximised: `jaq` as published, or minus the MMD of the calibration pictures' features from those of real
    pictures, of `evaluation.teacher`, or of the pipeline itself in full precision. `auto`: the teacher's where there is
    one, real ones where `pictures` names them, else those of full precision."""
    features: str = "auto"
    """Feature network of the sets; `auto` is the alignment reward's image tower, never the judge's."""
    pictures: str = "auto"
    """Real pictures: emoji, a folder or an npz, as `fewstep.data.load` reads them."""
    family: Literal["ramp-to-one", "ramp", "free", "per-channel"] = "ramp"
    """How many numbers describe the scalars: 2, 4, two per step, or two per step and channel."""
    searcher: str = "coarse-to-fine"
    """How they are searched: coarse-to-fine, grid, cma-es, tpe or gradient."""
    budget: float = Field(100, gt=0)
    """Network calls, in units of one candidate on all prompts and seeds."""
    low: float = Field(0.8, gt=0, lt=1)
    high: float = Field(1.2, gt=1)
    widen: bool = True
    """Make the box 1.5 times as wide on both sides, once, where the best candidate lies on its edge."""
    held_out: int = Field(240, ge=0)
    """Prompts, at most, of the test that decides whether the tuned plan is saved or the untuned one: captions of
    `pictures` where there are any, else those of `prompts` that are left over. 0 saves the tuned one."""
    landscape: bool = True
    """Draw the objective over the two scalars of the first step: up to 49 values, on a quarter of the items each."""
    prompts: Prompts = "auto"
    """To search on: the name of a set or a text file; `auto` fits the model."""
    count: int = Field(16, ge=1)
    """How many of the prompts."""
    seeds: Seeds = Field(default_factory=lambda: [1, 2])
    """Each prompt is drawn with so many: blocks of noise by number."""
    seed: int = 0
    """Of the searcher itself."""

    @field_validator("searcher")
    @classmethod
    def _known(cls, name: str) -> str:
        from fewstep.schedules.tuning import SEARCHERS

        return one_of(name, SEARCHERS)


class QSchedEvaluation(RecipePart):
    """Held-out prompts and seeds, and who judges."""

    prompts: Prompts = "auto"
    count: int = Field(250, ge=0)
    """How many of the prompts; 0 measures nothing, and the report shows the search alone."""
    seeds: Seeds = Field(default_factory=lambda: [101, 102, 103])
    pictures: str = "auto"
    """Real pictures that distances are measured to: emoji (its held-out ones), a folder or an npz; `none` measures how
    far pictures drift from full precision instead. `auto`: emoji for the shipped models, else none."""
    features: list[str] = Field(default_factory=lambda: ["auto"], min_length=1)
    """Feature networks of the distances; `auto` is the judge's image tower and a random network."""
    judge: str = "auto"
    """Alignment judge, never searched on; `none` leaves the column out."""
    teacher: str = "auto"
    """Multi-step pipeline shown for comparison; `none` for no teacher."""
    teacher_steps: int = Field(50, ge=1)
    teacher_guidance: float = Field(2.0, ge=1)
    beside: list[str] = Field(default_factory=list)
    """Other pipelines to show in the same table, with the same steps and scheme: equal bytes where the network is."""


class QSchedRecipe(PipelineRecipe):
    """Quantize a few-step pipeline, search its quantization-aware schedule, prove what each step cost and won."""

    kind: Literal["q-sched"] = "q-sched"
    model: str = "emoji-student"
    scheme: str = "w4a8"
    """Of the low-bit weights and inputs, such as w4a8; `none` tunes the pipeline in the bits that it has."""
    rewards: QSchedRewards = Field(default_factory=QSchedRewards)
    search: QSchedSearch = Field(default_factory=QSchedSearch)
    against: list[Literal["ptqd", "svdquant", "mixdq"]] = Field(default_factory=list)
    """Published ways to show in the same table at no more bytes: PTQD's correction of the plan; SVDQuant's float branch
    and MixDQ's bits per layer, each as it is and with Q-Sched on top."""
    evaluation: QSchedEvaluation = Field(default_factory=QSchedEvaluation)

    @field_validator("scheme")
    @classmethod
    def _parses(cls, scheme: str) -> str:
        from fewstep.quant import Scheme

        if scheme == "none":
            return scheme
        try:
            return str(Scheme.parse(scheme))
        except FewstepError as error:
            raise ValueError(str(error)) from error

    def resolved(self) -> QSchedRecipe:
        """Every `auto` replaced by what it means for this model."""
        shipped = self.model in SHIPPED
        split = "emoji" if shipped else "general"
        alignment, quality, judge = (
            ("clip:emoji-clip", "quality:emoji-quality", "clip:emoji-judge")
            if shipped
            else (
                "clip:openai/clip-vit-large-patch14",
                "clip:yuvalkirstain/PickScore_v1",
                "clip:openai/clip-vit-base-patch32",
            )
        )
        judge = _auto(self.evaluation.judge, judge)
        features = ["random"] if judge == "none" else [judge, "random"]
        teacher = _auto(self.evaluation.teacher, "emoji-teacher" if shipped else "none")
        return (
            super()
            .resolved()
            .model_copy(
                update={
                    "rewards": self.rewards.model_copy(
                        update={
                            "alignment": _auto(self.rewards.alignment, alignment),
                            "quality": _auto(self.rewards.quality, quality),
                        }
                    ),
                    "search": self._search(f"{split}:calibration", alignment, teacher),
                    "evaluation": self.evaluation.model_copy(
                        update={
                            "prompts": _auto(self.evaluation.prompts, f"{split}:evaluation"),
                            "pictures": _auto(self.evaluation.pictures, "emoji" if shipped else "none"),
                            "judge": judge,
                            "features": features if self.evaluation.features == ["auto"] else self.evaluation.features,
                            "teacher": teacher,
                        }
                    ),
                }
            )
        )

    def _search(self, calibration: str, alignment: str, teacher: str) -> QSchedSearch:
        """The search with every `auto` replaced."""
        from fewstep.data.prompts import load_prompts

        search, rewards = self.search, self.rewards
        prompts = _auto(search.prompts, calibration)
        meant = "jaq" if self.scheme == "none" else "full-precision"
        if search.pictures not in ("auto", "none"):
            meant = "real"
        if teacher != "none":
            meant = "teacher"
        if (rewards.alignment, rewards.quality) != ("auto", "auto"):
            meant = "jaq"  # rewards that are named are meant to be used
        elif search.objective == "auto" and len(load_prompts(prompts, search.count)) * len(search.seeds) < LEAST_ITEMS:
            meant = "jaq"
        tower = _auto(rewards.alignment, alignment)
        told = {
            "prompts": prompts,
            "objective": _auto(search.objective, meant),
            "features": _auto(search.features, tower if tower.startswith("clip:") else "pixels"),
            "pictures": _auto(search.pictures, "emoji" if self.model in SHIPPED else "none"),
        }
        return search.model_copy(update=told)

    def _check_objective(self, items: int) -> None:
        """Refuse an objective that lacks what it compares with, and a budget that allows no candidate."""
        from fewstep.metrics import FEATURES
        from fewstep.schedules.tuning import LEAST_BUDGET, standardising_cost

        search, before = self.search, 0.0
        if search.objective == "jaq":
            before = standardising_cost(items) if self.rewards.both else 0.0
        else:
            FEATURES.check(search.features)
            what = f"search.objective={search.objective} needs"
            if items < LEAST_ITEMS:
                hint = "Raise search.count or search.seeds, or set search.objective=jaq."
                raise FewstepError(f"{what} at least {LEAST_ITEMS} calibration items", value=items, hint=hint)
            if search.objective == "teacher" and self.evaluation.teacher == "none":
                raise FewstepError(
                    f"{what} a teacher", hint="Set evaluation.teacher, or search.objective=full-precision."
                )
            if search.objective == "full-precision" and self.scheme == "none":
                raise FewstepError(f"{what} a scheme", value="none", hint="Its own pictures leave nothing to tune.")
            if search.objective == "real" and search.pictures == "none":
                raise FewstepError(f"{what} real pictures", hint="Set search.pictures to a folder or an npz.")
        if search.budget < before + LEAST_BUDGET:
            reason = f": putting the two rewards on one scale costs {before:.3g}" if before else ""
            hint = f"Give at least {before + LEAST_BUDGET:.3g}{reason}."
            raise FewstepError("search.budget allows no candidate", value=search.budget, hint=hint)

    def searched(self) -> list[str]:
        """Prompts of the search."""
        from fewstep.data.prompts import load_prompts

        return load_prompts(self.search.prompts, self.search.count)

    def real_pictures(self) -> CaptionedImages:
        """Those that distances are measured to; never trained or searched on."""
        from fewstep.data import load

        name = self.evaluation.pictures
        return load(name, "evaluation" if name == "emoji" else "train")

    def held_out(self) -> list[str]:
        """Prompts of the evaluation: those that the search does not use."""
        from fewstep.data.prompts import load_prompts

        searched = set(self.searched())
        left = [prompt for prompt in load_prompts(self.evaluation.prompts) if prompt not in searched]
        return load_prompts(left, self.evaluation.count) if left and self.evaluation.count else []

    def check(self) -> None:
        """Refuse prompts that cannot be read, networks of no known kind, and an evaluation that is too small.

        Raises:
            FewstepError: one of them.
        """
        from fewstep.metrics import FEATURES
        from fewstep.rewards import REWARDS

        super().check()
        meant = self.resolved()
        rewards, evaluation = meant.rewards, meant.evaluation
        meant._check_objective(len(meant.searched()) * len(meant.search.seeds))
        if evaluation.count:
            meant._check_evaluation()
        for spec in (rewards.alignment, rewards.quality, evaluation.judge):
            REWARDS.check(spec)
        for spec in evaluation.features:
            FEATURES.check(spec)
        if len({plain(beside(model)) for model in evaluation.beside}) < len(evaluation.beside):
            hint = "Name each once, by paths that differ in letters or digits."
            raise FewstepError("two pipelines beside would share their files", value=evaluation.beside, hint=hint)
        if len(set(evaluation.features)) < len(evaluation.features):
            raise FewstepError("a feature network is given twice", value=evaluation.features, hint="Name it once.")

    def _check_evaluation(self) -> None:
        """Refuse one that is too small, or whose prompts the search uses."""
        from fewstep.data.prompts import load_prompts
        from fewstep.metrics import check_sizes

        evaluation = self.evaluation
        prompts, wanted = self.held_out(), load_prompts(evaluation.prompts, evaluation.count)
        if self.scheme == "none":  # nothing is measured
            prompts = wanted
        elif len(prompts) < min(FEWEST, len(wanted)):
            what = "the evaluation has too few prompts that the search does not use"
            hint = "Name others in evaluation.prompts or search.prompts, or lower search.count."
            raise FewstepError(what, value=len(prompts), hint=hint)
        # without real pictures the reference is drawn, as many as a system has (see `measure`)
        drawn = len(prompts) * len(evaluation.seeds)
        check_sizes(len(prompts), drawn if evaluation.pictures == "none" else len(self.real_pictures()))


def _auto(value: Any, meant: Any) -> Any:
    return meant if value == "auto" else value
