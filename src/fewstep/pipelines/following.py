"""What the rows of a plan ask of a running pipeline call: variants of its network, guidance, scaled inputs."""

from __future__ import annotations

from typing import Any

from fewstep.errors import IdentityError, PlanError
from fewstep.pipelines.caller import Caller
from fewstep.pipelines.calls import backbone_of, counts_from_zero
from fewstep.pipelines.protocol import Pipeline
from fewstep.plan import Plan
from fewstep.plan.combination import is_exactly, number
from fewstep.variants import MAIN, Follower, applied


def refuse_unfit(plan: Plan, pipe: Pipeline) -> None:
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


class Following:
    """One call of a pipeline whose network runs the variant, and that has the guidance, of the row that comes next.

    The scheduler says which row that is (`expect`), before the pipeline calls its network.
    """

    @classmethod
    def of(cls, plan: Plan, caller: Caller) -> Following | None:
        """None where the rows name nothing; FewstepError as `refuse_unfit`."""
        refuse_unfit(plan, caller.pipe)
        named = any(row.guidance is not None or row.network != MAIN for row in plan.rows)
        return cls(plan, caller) if named else None

    def __init__(self, plan: Plan, caller: Caller) -> None:
        self.plan, self.caller = plan, caller
        self._pipe: Any = caller.pipe  # its guidance is a private attribute, of some families
        self.coming = 0
        self.ran: int | None = None
        self._guides = any(row.guidance is not None for row in plan.rows)
        self._from_zero = counts_from_zero(caller.pipe)
        self._own_guidance = getattr(caller.pipe, "_guidance_scale", None)
        varies = any(row.network != MAIN for row in plan.rows)
        self._follower = Follower(backbone_of(caller.pipe), self._variant) if varies else None

    def expect(self, k: int) -> None:
        """Row k comes next."""
        self.coming = k
        if self._guides:
            scale = self.plan.rows[k].guidance
            self._pipe._guidance_scale = self._own_guidance if scale is None else scale - self._from_zero

    def serves(self, k: int) -> bool:
        """Whether the network and the guidance of row k were run."""
        return self.coming == k and (self.plan.rows[k].network == MAIN or self.ran == k)

    def close(self) -> None:
        """The network is as it was; a call that goes on, or a new one, has a guidance of its own."""
        if self._follower is not None:
            self._follower.close()

    def finish(self) -> None:
        """The network and the guidance are as they were."""
        self.close()
        if self._guides:
            self._pipe._guidance_scale = self._own_guidance

    def _variant(self) -> str:
        """The variant of the coming row, if it is the pipeline that calls its network, and not someone else."""
        if not self.caller.running:
            self.close()
            return MAIN
        self.ran = self.coming
        return self.plan.rows[self.coming].network


def check_served(plan: Plan, k: int, followed: bool, *, scaled: bool, entered: bool, doubled: bool) -> None:
    """Refuse to go on where the pipeline left out what row k needs.

    Args:
        plan, k: the row.
        followed: whether its variant of the network and its guidance were run.
        scaled: whether the network's input was scaled.
        entered: whether the pipeline knows the scale of the first state.
        doubled: whether the network saw two states for each, which is guidance.

    Raises:
        PlanError: something was left out, or all rows have run.
        IdentityError: the plan belongs to a model without guidance.
    """
    if k >= plan.steps:
        hint = "Call set_timesteps before the next image."
        raise PlanError(f"the plan has {plan.steps} rows and all have run", value=k, hint=hint)
    if doubled and plan.identity.guidance == 1.0:
        hint = "Call the pipeline with guidance_scale=1 (Z-Image: 0)."
        raise IdentityError("this plan belongs to a model that runs without guidance", hint=hint)
    row = plan.rows[k]
    if (row.network != MAIN or row.guidance is not None) and not followed:
        raise PlanError(
            f"row {k} runs a variant of the network, or a guidance, that was not run",
            value=(row.network, row.guidance),
            hint="Run the plan inside a pipeline of diffusers, or with `fewstep.executor`.",
        )
    hint = "Use a solver in the form of the process (ddim, dpm_solver_pp_2m, ...), not in sigma space."
    if not scaled and not is_exactly(row.input_scale, 1.0):
        what = "the plan scales the network's input, and this pipeline never asks for that"
        raise PlanError(what, value=row.input_scale, hint=hint)
    if k == 0 and not entered and abs(number(plan.prior_scale) - 1.0) > 1e-3:
        what = "the plan's first state is not unit noise, and this pipeline never asks for its scale"
        raise PlanError(what, value=number(plan.prior_scale), hint=hint)
    if k == 0 and not scaled and not is_exactly(plan.prior_offset, 0.0):
        raise PlanError(
            "the plan's first state has a mean, and this pipeline's network would not see it",
            hint="Run the plan with `fewstep.executor`, or use one without prior_offset.",
        )
