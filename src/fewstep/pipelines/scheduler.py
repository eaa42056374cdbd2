"""A plan as a diffusers scheduler, so that any pipeline can run it and `save_pretrained` keeps it.

Saved pipelines name this class in `model_index.json`, and diffusers opens foreign components only from modules that are
already imported: `import fewstep` is enough for the whole folder (`fewstep.registration`).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from typing_extensions import Self

from fewstep.errors import FewstepError, IdentityError
from fewstep.pipelines.caller import Caller, check_call, refuse_shift, rows_per_step, step_counts
from fewstep.pipelines.following import Following, check_served
from fewstep.pipelines.replaced import COMPATIBLE, check_entries, settings_of
from fewstep.plan import Plan
from fewstep.plan.combination import is_exactly, number
from fewstep.plan.history import History, ready_rows, refuse_misfit
from fewstep.registration import component


@component
class PlanScheduler(SchedulerMixin, ConfigMixin):
    """Runs one plan, row by row. Its configuration holds the plan, so that saving and loading lose nothing.

    Steps are counted, never searched by time value. `set_timesteps` looks up the running pipeline call and checks it
    against what the plan belongs to; until the last row the pipeline's network runs what the rows name. Between calls
    the scheduler knows no pipeline, so that it can be copied, pickled and shared.

    Args:
        plan: the plan, or its JSON values as a saved configuration has them.
        prediction_type, num_train_timesteps: what pipelines read.
        replaced: configuration of the scheduler that the pipeline had (`fewstep.pipelines.replaced`).
        adapters: the LoRA adapters that the plan belongs to (`fewstep.pipelines.adapters`).

    Raises:
        PlanError: malformed `plan`, `replaced` or `adapters`; the pipeline ignores what the plan needs (a scale of the
            network's input or of the first noise).
    """

    order = 1
    _index: int | None
    _history: History | None
    _running: Plan
    _compatibles: ClassVar[list[str]] = COMPATIBLE

    @register_to_config
    def __init__(
        self,
        plan: Plan | dict[str, Any] | None = None,
        prediction_type: str = "epsilon",
        num_train_timesteps: int = 1000,
        replaced: dict[str, Any] | None = None,
        adapters: dict[str, Any] | None = None,
    ) -> None:
        check_entries(replaced, adapters)
        self.plan = plan if isinstance(plan, Plan) else Plan.from_dict(plan)
        self.register_to_config(plan=self.plan)  # written as JSON when it is saved, not in every call
        self._asked, self._by_rows, self._entry_known = 0, False, False
        self._scaled: int | None = None
        self._following: Following | None = None
        self._prepare(torch.device("cpu"))

    @classmethod
    def from_plan(cls, plan: Plan) -> Self:
        """The scheduler of a plan."""
        kind = plan.prediction.kind
        return cls(plan=plan, prediction_type="flow_prediction" if kind == "velocity" else kind)

    def remember(self, scheduler: Any) -> None:
        """Note the scheduler whose place this one takes, and keep its settings beside the plan.

        Samplers are changed by `X.from_config(pipe.scheduler.config)`, and pipelines read settings from there.
        """
        ours = isinstance(scheduler, PlanScheduler)
        replaced = (scheduler.config.get("replaced") or {}) if ours else settings_of(scheduler)
        settings = {k: v for k, v in replaced.items() if k != "_class_name"}
        defaults = scheduler.config.get("_use_default_values") or []  # another class takes its own for these
        self.register_to_config(**settings, replaced=replaced or None, _use_default_values=list(defaults))

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the running call: a copy serves another one."""
        return {**vars(self), "_following": None}

    def release(self) -> None:
        """Stop following a call: the network and the pipeline are as they were."""
        if self._following is not None:
            self._following.finish()
            self._following = None

    def check(self, caller: Caller) -> None:
        """Refuse a call that the plan does not belong to (IdentityError)."""
        check_call(self.plan, caller, self.config.get("adapters") or {})

    # --- what pipelines call ----------------------------------------------------------------------------------------

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the first state."""
        self._entry_known = True
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
            what = "this plan starts late by whole steps, which have several network evaluations"
            hint = f"Call the pipeline with num_inference_steps={self.call_steps}."
            raise IdentityError(what, value=self.plan.steps, hint=hint)
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
            IdentityError: another number of steps than the plan has, another schedule than it was read with, or a call
                that the plan does not belong to.
            FewstepError: a row names a variant that the network does not have (`fewstep.variants`), or sets a guidance
                that the pipeline cannot change while it runs.
        """
        if self._following is not None:  # a call that was interrupted; the new one has set its own guidance
            self._following.close()
            self._following = None
        asked = next((len(given) for given in (sigmas, timesteps) if given is not None), num_inference_steps)
        self.order = rows_per_step(
            self.plan, asked, original_inference_steps=original_inference_steps, strength=strength
        )
        refuse_shift(self.plan, self.config.get("replaced") or {}, self.config, mu)
        self._by_rows, self._scaled = asked != self.call_steps, None
        self._prepare(torch.device(device or "cpu"))
        caller = Caller.of(self)
        if caller is not None:
            self.check(caller)
            self._following = Following.of(self.plan, caller)
            self._expect(0)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The state times the row's input scale."""
        self._ensure_index(timestep)
        self._asked, self._scaled = len(sample), self._index
        sample = self._entered(sample)
        scale = self._running.rows[min(self._local, self._running.steps - 1)].input_scale
        scale = scale.to(sample) if isinstance(scale, Tensor) else scale
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

        A learned variance (twice as many output as state channels) is dropped. A tuple ends in the data estimate, after
        the last row the state itself: pipelines of consistency models draw it.

        Raises:
            PlanError: more steps than the plan has rows.
        """
        self._ensure_index(timestep)
        k = self._check_step(len(sample))
        if model_output.ndim > 3 and model_output.shape[1] == 2 * sample.shape[1]:
            model_output = model_output[:, : sample.shape[1]]
        width = torch.promote_types(sample.dtype, torch.float32)
        if self._history is None:
            self._history = History.of(self._running, ready_rows(self._running, sample.device, width))
        noise = None
        if not is_exactly(self._running.rows[k].noise, 0.0):
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=width)
        total = self._history.advance(k, self._entered(sample).to(width), model_output.to(width), noise)
        self._index = self._offset + k + 1
        self._expect(self._index)
        result = total.to(sample.dtype)
        if return_dict:
            return SchedulerOutput(prev_sample=result)
        estimate = result
        if k + 1 < self._running.steps:
            with suppress(FewstepError):  # an output that tells no data
                estimate = self._history.estimate(k, sample, model_output).to(sample.dtype)
        return result, estimate

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noise clean data to the level of the rows at `timesteps` (image-to-image, inpainting)."""
        self._entry_known = True
        at = self._begin
        if self._index is not None:  # inpainting asks for the level it stands at, which the final one ends
            at = min(self._index, self.plan.steps - 1)
        rows = [self.plan.rows[self.index_for_timestep(t) if at is None else at] for t in timesteps]
        levels = torch.tensor([(float(row.alpha), float(row.sigma)) for row in rows]).to(original_samples)
        alpha, sigma = levels.T.reshape(2, -1, *(1,) * (original_samples.ndim - 1))
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
        return self.plan.index_at(float(timestep.detach()) if isinstance(timestep, Tensor) else float(timestep))

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _prepare(self, device: torch.device) -> None:
        times = self.plan.network_times
        whole = not times.requires_grad and all(time.is_integer() for time in times.tolist())
        self.timesteps = times.to(device=device, dtype=torch.int64 if whole else torch.float32)
        self.sigmas = torch.tensor([*(number(row.sigma) for row in self.plan.rows), number(self.plan.final_sigma)])
        self.num_inference_steps = self.plan.steps
        self._start(None)

    def _start(self, first: int | None) -> None:
        """Begin at this row; None: at the first, unless the call tells another."""
        self._begin, self._offset = first, first or 0
        self._index, self._history = None, None
        self._running = self.plan.starting_at(first) if first else self.plan
        self._expect(self._offset)

    def _expect(self, k: int) -> None:
        """Tell the running call which row comes; after the last it is over."""
        if k == self.plan.steps:
            self.release()
        elif self._following is not None:
            self._following.expect(k)

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
        return sample + torch.as_tensor(self.plan.prior_offset).to(sample)

    def _ensure_index(self, timestep: Any) -> None:
        if self._index is None:
            if self._begin is None and timestep is not None:  # pipelines that start late without telling
                self._start(self.index_for_timestep(timestep))
            self._index = self._begin or 0

    def _check_step(self, batch: int) -> int:
        """The place of the coming row among those that run, for a batch of states; refuses what `step` may not do."""
        k = self._index or 0
        followed = self._following is not None and self._following.serves(k)
        doubled = self._asked == 2 * batch
        check_served(self.plan, k, followed, scaled=self._scaled == k, entered=self._entry_known, doubled=doubled)
        return self._local


__all__ = ["PlanScheduler", "SchedulerMixin"]  # diffusers looks up SchedulerMixin here to learn how to load
