"""What the steps of a distillation share: the teacher's pipeline, the method, its data and the settings of its loop."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fewstep.distillation.method import Method, find_preset, method
from fewstep.errors import FewstepError
from fewstep.jobs.context import JobContext
from fewstep.jobs.distill.material import TrainingData
from fewstep.jobs.distill.networks import channels_of, loop_settings, middle_of
from fewstep.jobs.distill.recipe import DistillRecipe
from fewstep.metrics import load_features
from fewstep.pipelines import PipelineSampler
from fewstep.plan import Plan
from fewstep.train.distillation import check_length
from fewstep.train.stage import StageConfig
from fewstep.zoo import placed


@dataclass(frozen=True, eq=False)
class DistillContext(JobContext[DistillRecipe]):
    """A teacher's pipeline and the method by which a student learns from it."""

    def check(self) -> None:
        """Refuse what can be seen to be wrong before anything is drawn or trained.

        Raises:
            FewstepError: a low-bit teacher, guidance that the method does not take, several students of a kind that
                cannot be routed, a training shorter than its stages, or a feature network that cannot be opened.
        """
        recipe, train = self.recipe, self.recipe.train
        if self.identity.quantization != "none":
            hint = "Distil the full-precision pipeline, and quantize the student (or set train.quantize)."
            raise FewstepError("low-bit weights cannot be trained", value=recipe.model, hint=hint)
        if recipe.guidance != 1 and not find_preset(recipe.method).guidance:
            raise FewstepError(f"{recipe.method} takes no guidance from its teacher", hint="Set guidance=1.")
        if train.students > 1 and (self.method.two_times or train.lora or train.quantize):
            what = "several students train all weights of a network with one time"
            raise FewstepError(what, value=train.students, hint="Set train.students=1.")
        check_length(self.config, self.method)
        for spec in recipe.evaluation.features:  # may need a download
            load_features(placed(spec))

    @cached_property
    def teacher(self) -> PipelineSampler:
        """The pipeline as it is."""
        return self.sampler()

    @cached_property
    def data(self) -> TrainingData:
        """What the student learns from; the needs of a method are known without its networks."""
        needs = method(self.recipe.method, self.process, **self.recipe.method_options()).needs
        return TrainingData(self, self.teacher, needs)

    @cached_property
    def method(self) -> Method:
        """The method, told what it is to know of this network: where an adversary looks at it."""
        name, options = self.recipe.method, self.recipe.method_options()
        made = method(name, self.process, **options)
        if not find_preset(name).reads_layers or made.adversary is None:
            return made
        network = self.backbones[self.backbone]
        more: dict[str, Any] = {"modules": [middle_of(network)], **options}
        if "channels" not in more:
            more["channels"] = channels_of(network, more["modules"], self.data.encoded, self.process)
        return method(name, self.process, **more)

    @cached_property
    def student_plan(self) -> Plan:
        """How the student is run."""
        return self.method.steps.plan(self.process, self.prediction)

    @property
    def config(self) -> StageConfig:
        """The settings of the loop: the method's own, changed by the recipe's."""
        return loop_settings(self.recipe.train, self.method, self.pipe)
