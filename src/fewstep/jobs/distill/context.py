"""What the steps of a distillation share: the teacher's pipeline, the method, its data and the settings of its loop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fewstep.data import load as load_pictures
from fewstep.distillation.method import Method, find_preset, method
from fewstep.distillation.store import Solve, StoreHeader, TrajectoryStore, missing, write_store
from fewstep.errors import FewstepError
from fewstep.files import user_path
from fewstep.jobs.context import JobContext, first_seed
from fewstep.jobs.distill.batches import Batches, from_conditions, from_data, from_store
from fewstep.jobs.distill.networks import channels_of, device_of, loop_settings, middle_of
from fewstep.jobs.distill.recipe import DistillRecipe
from fewstep.metrics import load_features
from fewstep.pipelines import PipelineSampler, trace
from fewstep.pipelines.calls import class_count, condition_kind
from fewstep.pipelines.encoded import EncodedConditions, encode_conditions
from fewstep.pipelines.routed import deciding, partition
from fewstep.plan import Plan
from fewstep.train.classes import class_numbers
from fewstep.train.distillation import check_length
from fewstep.train.latents import encode_pictures
from fewstep.train.stage import StageConfig
from fewstep.zoo import placed


@dataclass(frozen=True, eq=False)
class DistillContext(JobContext[DistillRecipe]):
    """A teacher's pipeline, the method by which a student learns from it, and what it learns from."""

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
    def needs(self) -> frozenset[str]:
        """What the method needs, which is known without its networks."""
        return method(self.recipe.method, self.process, **self.recipe.method_options()).needs

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
            more["channels"] = channels_of(network, more["modules"], self.encoded, self.process)
        return method(name, self.process, **more)

    @cached_property
    def student_plan(self) -> Plan:
        """How the student is run."""
        return self.method.steps.plan(self.process, self.prediction)

    @property
    def config(self) -> StageConfig:
        """The settings of the loop: the method's own, changed by the recipe's."""
        return loop_settings(self.recipe.train, self.method, self.pipe)

    # --- what the student learns from -------------------------------------------------------------------------------

    @cached_property
    def encoded(self) -> EncodedConditions:
        """What the network is given, for all conditions of the training."""
        source = self.pictures[1] if self.pictures else self.conditions(self.recipe.data.conditions)
        return encode_conditions(self.teacher, self.process, source)

    @cached_property
    def pictures(self) -> tuple[Tensor, list[Any], Tensor] | None:
        """Real pictures (N, 3, H, W), their different conditions, and which each has (N,); None without."""
        data = self.recipe.data
        if data.source == "teacher" or not self.needs & {"data", "store"}:
            return None
        if "store" in self.needs:
            hint = "Leave data.source=teacher: its trajectories are drawn for you."
            raise FewstepError(f"{self.recipe.method} learns from trajectories of the teacher", hint=hint)
        images, captions = load_pictures(data.source, "train", data.size, data.broken)
        if condition_kind(self.pipe) == "class_labels":
            numbers = class_numbers(captions, self.pipe.labels)
            return images, list(range(class_count(self.pipe))), numbers
        known = sorted(set(captions))
        place = {caption: i for i, caption in enumerate(known)}
        return images, list(known), torch.tensor([place[caption] for caption in captions])

    def batches(self, student: int = 0) -> Batches:
        """The stream of batches that the method needs, of the conditions that this student owns."""
        owned = None if self.owners is None else (self.owners == student).nonzero().flatten()
        given = self.encoded, self.recipe.train.batch, device_of(self.pipe)
        if not self.needs & {"data", "store"}:
            return from_conditions(*given, owned)
        if owned is None and self.pictures is None:
            return from_store(*given, self.store)
        if "store" in self.needs:
            raise FewstepError("several students need a method without trajectories", value=self.recipe.method)
        latents, numbers = self.latents
        mine = torch.ones(len(numbers), dtype=torch.bool) if owned is None else torch.isin(numbers, owned)
        if not mine.any():
            raise FewstepError(f"student {student} owns no data", hint="Give more data, or train fewer students.")
        return from_data(*given, latents[mine], numbers[mine])

    @cached_property
    def owners(self) -> Tensor | None:
        """Which student owns each condition (N,); None where there is one student."""
        return None if self.parts is None else self.parts[0]

    @cached_property
    def parts(self) -> tuple[Tensor, Tensor | None] | None:
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
        found = encode_pictures(self.pipe.vae, images, [""] * len(images), numbers[:, None], device_of(self.pipe))
        return found.both[0], numbers

    @cached_property
    def store(self) -> TrajectoryStore:
        """Trajectories of the teacher, drawn here where they are absent."""
        settings = self.recipe.data
        place = user_path(settings.folder) if settings.folder else self.run.scratch("trajectories")
        header = self._header(self.conditions(settings.conditions))
        with self.run.progress("trajectories of the teacher", total=header.count) as advance:
            write_store(place, header, self._solve(header), advance)
        while missing(place):  # shards of other processes; of one that died they are anyone's
            time.sleep(0.2)
            write_store(place, header, self._solve(header))
        return TrajectoryStore.open(place, process=self.process)

    def _header(self, conditions: Sequence[Any] | None) -> StoreHeader:
        settings = self.recipe.data
        return StoreHeader(
            times=tuple(self.teacher_times[i] for i in self._kept),
            process=repr(self.process),
            model=str(self.identity.model),
            solver=f"{self.recipe.teacher.solver}, {self.recipe.teacher.steps} steps",
            guidance=self.recipe.guidance,
            shape=self.encoded.shape,
            count=settings.count,
            shard=max(1, min(64, settings.count)),
            seed=first_seed("trajectories", settings.seed),
            conditions=tuple(conditions or ()),
        )

    def _solve(self, header: StoreHeader) -> Solve:
        def solve(seeds: Sequence[int], numbers: Sequence[int]) -> Tensor:
            given = [header.conditions[i] for i in numbers] if header.conditions else None
            seen = trace(self.teacher, self.teacher_plan, given, list(seeds))
            states = torch.cat([seen.states, seen.final[None]]).transpose(0, 1)
            return states[:, self._kept].cpu()

        return solve

    @cached_property
    def teacher_plan(self) -> Plan:
        """The many-step plan of the teacher."""
        settings = self.recipe.teacher
        return self.solved(settings.solver, settings.steps)

    @cached_property
    def teacher_times(self) -> list[float]:
        """Process times of its states, the data at the end."""
        return [float(row.time) for row in self.teacher_plan.rows] + [0.0]

    @cached_property
    def _kept(self) -> list[int]:
        """Which of its states a store keeps."""
        rows, wanted = self.recipe.teacher.steps, self.recipe.data.states or self.recipe.teacher.steps
        wanted = min(wanted, rows)
        return [round(i * rows / wanted) for i in range(wanted)] + [rows]
