"""A plan as a diffusers scheduler, so that any pipeline can run it and `save_pretrained` keeps it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fewstep.errors import FewstepError, IdentityError, PlanError
from fewstep.plan.combination import is_exactly, number
from fewstep.plan.files import from_document, to_document
from fewstep.plan.history import History, ready_rows, refuse_misfit
from fewstep.plan.plan import Plan, data_of


class PlanScheduler(SchedulerMixin, ConfigMixin):
    """Runs one plan, row by row. Its configuration IS the plan document, so that saving and loading lose nothing.

    Steps are counted, never searched by time value. The step count is checked in `set_timesteps`; what else the plan
    belongs to is checked by `fewstep.pipelines.scheduler`, which knows pipelines.

    Raises:
        PlanError: the plan document is not valid.
    """

    order = 1
    _compatibles: ClassVar[list[str]] = [  # whose settings may stand beside ours without a warning
        *(kind.name for kind in KarrasDiffusionSchedulers),
        *("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "EDMEulerScheduler"),
        *("LCMScheduler", "TCDScheduler", "SASolverScheduler", "CogVideoXDDIMScheduler"),
    ]

    @register_to_config
    def __init__(
        self,
        plan: dict[str, Any] | None = None,
        prediction_type: str = "epsilon",
        num_train_timesteps: int = 1000,
    ) -> None:
        self.plan = from_document(plan)
        self._begin: int | None = None
        self._index: int | None = None
        self._asked = 0
        self._by_rows = False
        self._history: History | None = None
        self._running, self._offset = self.plan, 0
        self._prepare(torch.device("cpu"))

    @classmethod
    def from_plan(cls, plan: Plan) -> PlanScheduler:
        """The scheduler of a plan."""
        kind = plan.prediction.kind
        scheduler = cls(plan=to_document(plan), prediction_type="flow_prediction" if kind == "velocity" else kind)
        scheduler.plan = plan  # the very coefficients: those of a search may require gradients
        scheduler._prepare(torch.device("cpu"))
        return scheduler

    # --- what pipelines call ----------------------------------------------------------------------------------------

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the first state."""
        return number(self.plan.prior_scale)

    @property
    def step_index(self) -> int | None:
        """Absolute index of the next row, None before the first."""
        return self._index

    @property
    def begin_index(self) -> int | None:
        """Absolute index of the first row to run (image-to-image)."""
        return self._begin

    @property
    def call_steps(self) -> int:
        """The `num_inference_steps` of calls: fewer than rows where a step runs the network several times."""
        return min(step_counts(self.plan))

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this row; rows whose history is then missing become first order.

        Raises:
            IdentityError: the call counts rows, where steps of several rows are started.
        """
        if begin_index and self._by_rows:
            raise IdentityError(
                "this plan starts late by whole steps, which have several network evaluations",
                value=self.plan.steps,
                hint=f"Call the pipeline with num_inference_steps={self.call_steps}.",
            )
        self._start(begin_index)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Any = None,
        timesteps: Any = None,
        mu: float | None = None,
        original_inference_steps: int | None = None,
        strength: float | None = None,
    ) -> None:
        """Get ready for a new image. Times are the plan's; `sigmas`, `timesteps`, `mu` count only by their length.

        original_inference_steps, strength: what LCM's pipelines hand over; those that the plan was read with.

        Raises:
            IdentityError: another number of steps than the plan has, or another schedule than it was read with.
        """
        given = [len(g) for g in (sigmas, timesteps) if g is not None]
        asked = given[0] if given else num_inference_steps
        counts = step_counts(self.plan)
        if asked not in counts:
            raise IdentityError(
                f"this plan has {self.plan.steps} steps",
                value=asked,
                hint=f"Call the pipeline with num_inference_steps={self.call_steps}.",
            )
        for name, value in (("original_inference_steps", original_inference_steps), ("strength", strength)):
            wanted = self.plan.origin.get(name)
            if value is not None and wanted is not None and value != wanted:
                hint = f"Use {name}={wanted}, or read a plan with it: fewstep.plan_of(pipe, steps, {name}=...)."
                raise IdentityError(f"this plan was read with {name}={wanted}", value=value, hint=hint)
        self.order, self._by_rows = counts[asked], asked != self.call_steps
        self._begin = None
        self._prepare(torch.device(device or "cpu"))

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The state times the row's input scale."""
        self._ensure_index(timestep)
        self._asked = len(sample)
        sample = self._entered(sample)
        scale = self._running.rows[min(self._local, self._running.steps - 1)].input_scale
        if isinstance(scale, Tensor):
            scale = scale.to(device=sample.device, dtype=sample.dtype)
        return sample if is_exactly(scale, 1.0) else sample * scale

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        **_: Any,
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """The next state from this state and the raw output, in float32, in the dtype of `sample`.

        A tuple ends in the data estimate, after the last row the state itself: pipelines of consistency models draw it.

        Raises:
            PlanError: more steps than the plan has rows.
        """
        self._ensure_index(timestep)
        self._check_guidance(len(sample))
        k = self._local
        if k >= self._running.steps:
            raise PlanError(
                f"the plan has {self.plan.steps} rows and all have run",
                value=self._index,
                hint="Call set_timesteps before the next image.",
            )
        width = torch.promote_types(sample.dtype, torch.float32)
        if self._history is None:
            self._history = History.of(self._running, ready_rows(self._running, sample.device, width))
        noise = None
        if not is_exactly(self._running.rows[k].noise, 0.0):
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=width)
        total = self._history.advance(k, self._entered(sample).to(width), model_output.to(width), noise)
        self._index = self._offset + k + 1
        result = total.to(sample.dtype)
        return (
            SchedulerOutput(prev_sample=result)
            if return_dict
            else (result, self._estimate(k, sample, model_output, result))
        )

    def _estimate(self, k: int, sample: Tensor, output: Tensor, result: Tensor) -> Tensor:
        """The data estimate at row k; the new state where the row is the last, or its output tells no data."""
        if k + 1 == self._running.steps:
            return result
        try:
            estimate = data_of(self._running.rows[k], k, self.plan.prediction)
        except FewstepError:
            return result
        p, m = (float(torch.as_tensor(c).mean()) for c in (estimate.state[k], estimate.output[k]))
        return (p * sample + m * output).to(sample.dtype)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noise clean data to the level of the rows at `timesteps` (image-to-image, inpainting)."""
        if self._begin is not None and self._index is None:
            rows = [self.plan.rows[self._begin]] * len(timesteps)
        elif self._index is not None:  # inpainting asks for the level it stands at, which the final one ends
            rows = [self.plan.rows[min(self._index, self.plan.steps - 1)]] * len(timesteps)
        else:
            rows = [self.plan.rows[self.index_for_timestep(t)] for t in timesteps]
        shape = (-1,) + (1,) * (original_samples.ndim - 1)
        like: dict[str, Any] = {"dtype": original_samples.dtype, "device": original_samples.device}
        alpha = torch.tensor([float(r.alpha) for r in rows], **like).reshape(shape)
        sigma = torch.tensor([float(r.sigma) for r in rows], **like).reshape(shape)
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """`add_noise` under the name and order of flow pipelines."""
        at = timestep if isinstance(timestep, Tensor) and timestep.ndim else torch.tensor([float(timestep)])
        return self.add_noise(sample, noise, at)

    def index_for_timestep(self, timestep: Any) -> int:
        """Absolute index of the row at this time.

        Raises:
            PlanError: the plan has no row there.
        """
        time = float(timestep.detach()) if isinstance(timestep, Tensor) else float(timestep)
        hits = (self._times - time).abs() < 1e-3
        if not bool(hits.any()):
            raise PlanError(
                "the plan has no row at this time",
                value=time,
                hint=f"Its times are {[round(float(t), 3) for t in self._times]}.",
            )
        places = hits.nonzero().flatten().tolist()
        # where a time stands twice, a call that starts there continues with the second, as in diffusers
        return int(places[1] if places[0] > 0 and len(places) > 1 else places[0])

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _prepare(self, device: torch.device) -> None:
        rows = self.plan.rows
        whole = all(number(r.network_time).is_integer() for r in rows)
        self._times = self.plan.network_times.detach().float()
        self.timesteps = self._times.to(device=device, dtype=torch.int64 if whole else torch.float32)
        if self.plan.network_times.requires_grad:
            self.timesteps = self.plan.network_times.to(device=device, dtype=torch.float32)
        levels = [number(r.sigma) for r in rows] + [number(self.plan.final_sigma)]
        self.sigmas = torch.tensor(levels)
        self.num_inference_steps = self.plan.steps
        self._reset()

    def _reset(self) -> None:
        self._index, self._history = None, None
        self._running, self._offset = self.plan, 0

    def _start(self, first: int) -> None:
        self._reset()
        self._begin = first
        if first:
            self._running, self._offset = self.plan.starting_at(first), first

    @property
    def _local(self) -> int:
        assert self._index is not None
        return self._index - self._offset

    def _entered(self, sample: Tensor) -> Tensor:
        """The state of row 0 gets the mean of the prior, which pipelines, whose first state is noise, cannot give."""
        if self._local == 0:
            refuse_misfit(self._running, sample.shape[1:])
        if self._index != 0 or is_exactly(self.plan.prior_offset, 0.0):
            return sample
        return sample + torch.as_tensor(self.plan.prior_offset).to(device=sample.device, dtype=sample.dtype)

    def _ensure_index(self, timestep: Any) -> None:
        if self._index is None:
            if self._begin is None and timestep is not None:  # pipelines that start late without telling
                self._start(self.index_for_timestep(timestep))
            self._index = self._begin or 0

    def _check_guidance(self, batch: int) -> None:
        """Guidance doubles the batch that the network sees: a plan made without it notices."""
        if self.plan.identity.guidance == 1.0 and self._asked == 2 * batch:
            raise IdentityError(
                "this plan belongs to a model that runs without guidance",
                hint="Call the pipeline with guidance_scale=1.",
            )


def step_counts(plan: Plan) -> dict[int, int]:
    """The step counts that a pipeline may call a plan with, and how many rows it takes for one step at each.

    Every plan can be called by its rows, which are network evaluations. One that was read from a scheduler whose steps
    have several (Heun, KDPM2, PNDM) can also be called as that scheduler is.
    """
    counts = {plan.steps: 1}
    read, order = plan.origin.get("steps"), plan.origin.get("order")
    if type(read) is int and type(order) is int and 1 <= read < plan.steps and order >= 1:
        counts[read] = order
    return counts
