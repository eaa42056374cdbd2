"""The scheduler that saved pipelines name in `model_index.json`.

diffusers opens foreign components only from modules that are already imported: `import fewstep` is enough for the whole
folder (`fewstep.registration`).
"""

from __future__ import annotations

import math
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor
from typing_extensions import Self

from fewstep.errors import PlanError
from fewstep.pipelines.caller import Caller, check_call, refuse_shift
from fewstep.pipelines.calls import backbone_of
from fewstep.plan import Plan
from fewstep.plan import scheduler as base
from fewstep.plan.combination import is_exactly, number
from fewstep.registration import component
from fewstep.variants import MAIN, Follower, applied


@component
class PlanScheduler(base.PlanScheduler):
    """`fewstep.plan.scheduler.PlanScheduler` as the component of a pipeline.

    replaced: configuration of the scheduler that the pipeline had, class name included; tells the network's process.
    adapters: the LoRA adapters that the plan belongs to (`fewstep.pipelines.adapters`).

    It looks up the running pipeline call in `set_timesteps`, checks it against what the plan belongs to, and until the
    last row makes the network run what the rows name. Between calls it knows no pipeline, so that it can be copied,
    pickled and shared.

    Raises:
        PlanError: malformed `plan`, `replaced` or `adapters`; the pipeline ignores what the plan needs (a scale of the
            network's input or of the first noise).
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
        _check_entries(replaced, adapters)
        self._scaled: int | None = None
        self._entry_known = False
        self._following: _Following | None = None
        super().__init__(plan=plan, prediction_type=prediction_type, num_train_timesteps=num_train_timesteps)

    def remember(self, scheduler: Any) -> None:
        """Note the scheduler whose place this one takes, and keep its settings beside the plan.

        Samplers are changed by `X.from_config(pipe.scheduler.config)`, and pipelines read settings from there.
        """
        if isinstance(scheduler, base.PlanScheduler):
            replaced = scheduler.config.get("replaced") or {}
        else:
            ours = ("plan", "replaced", "adapters")  # left by a scheduler that was made from our configuration
            replaced = {k: v for k, v in scheduler.config.items() if not k.startswith("_") and k not in ours}
            if "shift" in replaced and hasattr(scheduler, "shift"):  # what set_shift has changed since
                replaced["shift"] = scheduler.shift
            replaced = {"_class_name": public_name(scheduler), **replaced}
        settings = {k: v for k, v in replaced.items() if k != "_class_name"}
        defaults = scheduler.config.get("_use_default_values") or []  # another class takes its own for these
        self.register_to_config(**settings, replaced=replaced or None, _use_default_values=list(defaults))

    @classmethod
    def from_plan(cls, plan: Plan) -> Self:
        """The scheduler of a plan."""
        scheduler = super().from_plan(plan)
        assert isinstance(scheduler, cls)
        return scheduler

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the running call: a copy serves another one."""
        return {**vars(self), "_following": None}

    def release(self) -> None:
        """Stop following a call: the network and the pipeline are as they were."""
        if self._following is not None:
            self._following.close()
            self._following = None

    def check(self, caller: Caller) -> None:
        """Refuse a call that the plan does not belong to (IdentityError)."""
        check_call(self.plan, caller, self.config.get("adapters") or {})

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
        original_inference_steps: int | None = None,
        strength: float | None = None,
    ) -> None:
        """As in the plan's own scheduler; the pipeline that calls is checked.

        Raises:
            IdentityError: the call is not one that the plan belongs to, or has a schedule of its own.
            FewstepError: a row names a variant that the network does not have (`fewstep.variants`), or sets a guidance
                that the pipeline cannot change while it runs.
        """
        self.release()
        super().set_timesteps(num_inference_steps, device, sigmas, timesteps, mu, original_inference_steps, strength)
        self._scaled = None
        refuse_shift(self.plan, self.config.get("replaced") or {}, self.config, mu)
        caller = Caller.of(self)
        if caller is not None:
            self.check(caller)
            self._following = _Following.of(self, caller)

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
        result = super().step(model_output, timestep, sample, generator, return_dict)
        if self.step_index == self.plan.steps:
            self.release()
        return result

    def _check_served(self) -> None:
        k = self.step_index or 0
        if k >= self.plan.steps:
            return
        row = self.plan.rows[k]
        if (row.network != MAIN or row.guidance is not None) and getattr(self._following, "varied", None) != k:
            raise PlanError(
                f"row {k} runs a variant of the network, or a guidance, that was not run",
                value=(row.network, row.guidance),
                hint="Run the plan inside a pipeline of diffusers, or with `fewstep.executor`.",
            )
        if self._scaled != k and not is_exactly(row.input_scale, 1.0):
            raise PlanError(
                "the plan scales the network's input, and this pipeline never asks for that",
                value=row.input_scale,
                hint="Use a solver in the form of the process (ddim, dpm_solver_pp_2m, ...), not in sigma space.",
            )
        if k == 0 and not self._entry_known and abs(number(self.plan.prior_scale) - 1.0) > 1e-3:
            raise PlanError(
                "the plan's first state is not unit noise, and this pipeline never asks for its scale",
                value=number(self.plan.prior_scale),
                hint="Use a solver in the form of the process (ddim, dpm_solver_pp_2m, ...), not in sigma space.",
            )
        if k == 0 and self._scaled != 0 and not is_exactly(self.plan.prior_offset, 0.0):
            raise PlanError(
                "the plan's first state has a mean, and this pipeline's network would not see it",
                hint="Run the plan with `fewstep.executor`, or use one without prior_offset.",
            )


def public_name(scheduler: Any) -> str:
    """The class of diffusers that a scheduler is, or that a user's own class extends."""
    names = (kind.__name__ for kind in type(scheduler).__mro__ if getattr(diffusers, kind.__name__, None) is kind)
    return next(names, type(scheduler).__name__)


def refuse_unfit(plan: Plan, pipe: Any) -> None:
    """Refuse a plan whose rows the pipeline cannot run.

    Raises:
        FewstepError: the network lacks a variant (`fewstep.variants`), or the pipeline cannot change its guidance.
    """
    for name in {row.network for row in plan.rows} - {MAIN}:
        applied(backbone_of(pipe), name)
    scales = [row.guidance for row in plan.rows if row.guidance is not None]
    if scales and (min(scales) <= 1 or not hasattr(type(pipe), "guidance_scale")):
        what = f"{type(pipe).__name__} cannot change its guidance so while it runs"
        hint = "Rows may set scales above 1, in pipelines that have a `guidance_scale` property."
        raise PlanError(what, value=scales, hint=hint)


class _Following:
    """One call of a pipeline whose network runs the variant, and the guidance, of the row that comes next."""

    @classmethod
    def of(cls, scheduler: PlanScheduler, caller: Caller) -> _Following | None:
        """None where the rows name nothing; FewstepError as `refuse_unfit`."""
        refuse_unfit(scheduler.plan, caller.pipe)
        rows = scheduler.plan.rows
        guides = any(row.guidance is not None for row in rows)
        return cls(scheduler, caller, guides) if guides or any(row.network != MAIN for row in rows) else None

    def __init__(self, scheduler: PlanScheduler, caller: Caller, guides: bool) -> None:
        self.scheduler, self.caller, self.guides = scheduler, caller, guides
        self.own_guidance = getattr(caller.pipe, "_guidance_scale", None)
        self.varied: int | None = None
        self.follower = Follower(backbone_of(caller.pipe), self.coming)

    def coming(self) -> str:
        """The variant of the coming row, if it is the pipeline that calls its network, and not someone else."""
        if not self.caller.running:
            self.scheduler.release()
            return MAIN
        scheduler = self.scheduler
        k = scheduler.step_index if scheduler.step_index is not None else scheduler.begin_index or 0
        row = scheduler.plan.rows[min(k, scheduler.plan.steps - 1)]
        if self.guides:
            self.caller.pipe._guidance_scale = self.own_guidance if row.guidance is None else row.guidance
        self.varied = k
        return row.network

    def close(self) -> None:
        """The network and the guidance are as they were."""
        self.follower.close()
        if self.guides:
            self.caller.pipe._guidance_scale = self.own_guidance


def _check_entries(replaced: Any, adapters: Any) -> None:
    """Refuse entries of a stored configuration that are not what `fewstep.attach` writes (PlanError)."""
    hint = "Attach the plan again with `fewstep.attach`, and save."
    if replaced is not None and not (isinstance(replaced, dict) and isinstance(replaced.get("_class_name"), str)):
        raise PlanError("`replaced` must be the configuration of a scheduler", value=replaced, hint=hint)
    for name, entry in (adapters if isinstance(adapters, dict) else {"": adapters} if adapters else {}).items():
        weight = entry.get("weight") if isinstance(entry, dict) else None
        known = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
        if not name or not known or not isinstance(entry.get("fingerprint"), str):
            raise PlanError("`adapters` must tell a fingerprint and a weight for every name", value=adapters, hint=hint)


__all__ = ["PlanScheduler", "SchedulerMixin"]  # diffusers looks up SchedulerMixin here to learn how to load
