"""The scheduler that saved pipelines name in `model_index.json`.

diffusers opens foreign components only from modules that are already imported, and its error names the module to
import. Importing this one is enough for the whole folder: it also makes the low-bit format of the backbone known.
"""

from __future__ import annotations

import functools
import sys
import warnings
import weakref
from types import FrameType
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor
from typing_extensions import Self

from fewstep.errors import PlanError
from fewstep.pipelines.adapters import check_adapters
from fewstep.pipelines.calls import backbone_of
from fewstep.plan import Plan
from fewstep.plan import scheduler as base
from fewstep.plan.combination import is_exactly, number
from fewstep.quant import register
from fewstep.variants import MAIN, Follower, applied

register()


class PlanScheduler(base.PlanScheduler):
    """`fewstep.plan.scheduler.PlanScheduler` as the component of a pipeline.

    replaced: configuration of the scheduler that the pipeline had, class name included; tells the network's process.
    adapters: the LoRA adapters that the plan belongs to (`fewstep.pipelines.adapters`).

    Raises:
        PlanError: the pipeline ignores what the plan needs (a scale of the network's input or of the first noise).
    """

    @register_to_config
    def __init__(
        self,
        plan: dict[str, Any] | None = None,
        prediction_type: str = "epsilon",
        num_train_timesteps: int = 1000,
        replaced: dict[str, Any] | None = None,
        adapters: dict[str, Any] | None = None,
    ) -> None:
        self._scaled: int | None = None
        self._entry_known = False
        self._follower: Follower | None = None
        self._varied: int | None = None
        self._own_guidance: float | None = None
        super().__init__(plan=plan, prediction_type=prediction_type, num_train_timesteps=num_train_timesteps)

    def remember(self, scheduler: Any) -> None:
        """Note the scheduler whose place this one takes."""
        if isinstance(scheduler, base.PlanScheduler):
            replaced = scheduler.config.get("replaced")
        else:
            replaced = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
            replaced = {"_class_name": type(scheduler).__name__, **replaced}
        self.register_to_config(replaced=replaced)

    def _check_watched(self) -> None:
        super()._check_watched()
        wanted = self.config.get("adapters") or {}
        pipe = self._watched[0]() if self._watched else None
        if pipe is not None:
            check_adapters(pipe, wanted)
        elif wanted:
            what = f"this plan belongs to the adapters {', '.join(wanted)}; whether they are loaded is not known."
            warnings.warn(f"{what} Open the pipeline with `fewstep.load_pipeline`.", stacklevel=3)

    @classmethod
    def from_plan(cls, plan: Plan) -> Self:
        """The scheduler of a plan."""
        scheduler = super().from_plan(plan)
        assert isinstance(scheduler, cls)
        return scheduler

    def follow(self, pipe: Any) -> None:
        """Make every network call of this pipeline run the variant and the guidance that its row names.

        Raises:
            FewstepError: a row names a variant that the pipeline's network does not have (`fewstep.variants`), or sets
                a guidance that the pipeline cannot change while it runs.
        """
        names = {row.network for row in self.plan.rows} - {MAIN}
        scales = [row.guidance for row in self.plan.rows if row.guidance is not None]
        if not names and not scales:
            return
        model = backbone_of(pipe)
        for name in names:
            applied(model, name)
        if scales and (min(scales) <= 1 or not hasattr(type(pipe), "guidance_scale")):
            what = f"{type(pipe).__name__} cannot change its guidance so while it runs"
            mend = "Rows may set scales above 1, in pipelines that have a `guidance_scale` property."
            raise PlanError(what, value=scales, mend=mend)
        self._follower = Follower(model, functools.partial(self._variant, weakref.ref(pipe)))

    def release(self) -> None:
        """Stop following: the network is as it was."""
        if self._follower is not None:
            self._follower.close()
            self._follower = None

    def _variant(self, reference: weakref.ref[Any]) -> str:
        """The variant of the coming row, if it is the pipeline that calls its network, and not someone else."""
        pipe = reference()
        if pipe is None or pipe.scheduler is not self or not _is_caller(pipe):
            return MAIN
        k = self.step_index if self.step_index is not None else self.begin_index or 0
        row = self.plan.rows[min(k, self.plan.steps - 1)]
        if self._varied is None:
            self._own_guidance = getattr(pipe, "_guidance_scale", None)
        if self._guides:
            pipe._guidance_scale = self._own_guidance if row.guidance is None else row.guidance
        self._varied = k
        return row.network

    @property
    def _guides(self) -> bool:
        return any(row.guidance is not None for row in self.plan.rows)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the first state."""
        self._entry_known = True
        return super().init_noise_sigma

    def set_timesteps(  # the whole signature, here and in `step`: pipelines inspect it
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Any = None,
        timesteps: Any = None,
        mu: float | None = None,
    ) -> None:
        """As in the plan's own scheduler."""
        super().set_timesteps(num_inference_steps, device, sigmas, timesteps, mu)
        self._scaled = self._varied = None

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The state times the row's input scale."""
        result = super().scale_model_input(sample, timestep)
        self._scaled = self.step_index
        return result

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noise clean data to the level of the rows at `timesteps` (image-to-image, inpainting)."""
        self._entry_known = True
        return super().add_noise(original_samples, noise, timesteps)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        **_: Any,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The next state; a learned variance (twice as many output as state channels) is dropped."""
        self._ensure_index(timestep)
        self._check_served()
        if model_output.ndim > 3 and model_output.shape[1] == 2 * sample.shape[1]:
            model_output = model_output[:, : sample.shape[1]]
        return super().step(model_output, timestep, sample, generator, return_dict)

    def _check_served(self) -> None:
        k = self.step_index or 0
        if k >= self.plan.steps:
            return
        row = self.plan.rows[k]
        if (row.network != MAIN or row.guidance is not None) and self._varied != k:
            raise PlanError(
                f"row {k} runs a variant of the network, or a guidance, that this pipeline has not made",
                value=(row.network, row.guidance),
                mend="Open the pipeline with `fewstep.load_pipeline`, or attach the plan with `fewstep.attach`.",
            )
        if self._scaled != k and not is_exactly(row.input_scale, 1.0):
            raise PlanError(
                "the plan scales the network's input, and this pipeline never asks for that",
                value=row.input_scale,
                mend="Use a solver in the form of the process (ddim, dpm_solver_pp_2m, ...), not in sigma space.",
            )
        if k == 0 and not self._entry_known and abs(number(self.plan.prior_scale) - 1.0) > 1e-3:
            raise PlanError(
                "the plan's first state is not unit noise, and this pipeline never asks for its scale",
                value=number(self.plan.prior_scale),
                mend="Use a solver in the form of the process (ddim, dpm_solver_pp_2m, ...), not in sigma space.",
            )
        if k == 0 and self._scaled != 0 and not is_exactly(self.plan.prior_offset, 0.0):
            raise PlanError(
                "the plan's first state has a mean, and this pipeline's network would not see it",
                mend="Run the plan with `fewstep.sample`, or use one without prior_offset.",
            )


def _is_caller(pipe: Any) -> bool:
    """Whether a method of the pipeline is running: after an interrupted call, its network belongs to others again."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_locals.get("self") is pipe:
            return True
        frame = frame.f_back
    return False


__all__ = ["PlanScheduler", "SchedulerMixin"]  # diffusers looks up SchedulerMixin here to learn how to load
