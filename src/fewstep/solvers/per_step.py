"""A strategy for every step: form, order, differences, relaxation, corrector and noise level, chosen row by row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from fewstep.errors import PlanError
from fewstep.plan import Identity, Plan
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.solvers.fitted import fitted_form
from fewstep.solvers.grids import Grid
from fewstep.solvers.integrals import choice
from fewstep.solvers.registry import solver
from fewstep.solvers.stages import Stages
from fewstep.solvers.statistics import ModelStatistics
from fewstep.solvers.taylor import ExpansionForm, Strategy, integrate, standard_form

ORDERS = (1, 2, 3, 4)
STEP_FORMS = ("data", "noise", "fitted")


@dataclass(frozen=True)
class Decision:
    """The strategy of one step (USF, arXiv 2312.07243); `dataclasses.asdict` is its JSON, `Decision(**json)` reads it.

    order: Taylor order, 1 to 4; a step with less history takes the highest that it has points for.
    form: what is expanded: `data`, `noise`, or `fitted` (DPM-Solver-v3, needs statistics).
    points: points for the first derivative alone; None takes order - 1 of them, fewer is a low-order difference.
    relax: the first derivative is multiplied by 1 + relax h.
    corrector: the state this step makes is corrected with the evaluation there (free; never in the last row).
    tau: noise level of a stochastic step in the data form; 0 is the ODE, 1 ancestral.

    Raises:
        PlanError: a value out of range, or noise in another form than `data`.
    """

    order: int = 2
    form: str = "data"
    points: int | None = None
    relax: float = 0.0
    corrector: bool = False
    tau: float = 0.0

    def __post_init__(self) -> None:
        choice("order", self.order, ORDERS)
        choice("form", self.form, STEP_FORMS)
        if self.points is not None and not 1 <= self.points <= max(self.order - 1, 1):
            raise PlanError(
                f"points of an order-{self.order} step must be 1 to {max(self.order - 1, 1)}",
                value=self.points,
                hint="Raise the order, or leave points out.",
            )
        if not math.isfinite(self.relax):
            raise PlanError("relax must be finite", value=self.relax, hint="0 leaves the derivative as it is.")
        if not (self.tau >= 0 and math.isfinite(self.tau)):
            raise PlanError("tau must be finite and not negative", value=self.tau, hint="1000 renoises completely.")
        if self.tau and self.form != "data":
            raise PlanError("only the data form takes noise", value=self.form, hint='Set form="data", or tau=0.')


@solver(order=1, source="arXiv 2312.07243", needs=("decisions",))
def per_step(
    process: Process,
    prediction: Prediction,
    grid: Grid,
    *,
    decisions: Sequence[Decision],
    statistics: ModelStatistics | None = None,
) -> Plan:
    """One decision per step (USF, arXiv 2312.07243). Order of the lowest decision. Stochastic where a tau is not 0.

        x_{k+1} = kept x_k + Sum_i moments_i D_i + noise z

    with D_i the i-th derivative in lambda of what the decision's form expands (x0, eps, or the q of `dpm_solver_v3`),
    from the points that it names. In the data form, g = 1 + tau^2:

        kept = sigma_{k+1} / sigma_k e^{-tau^2 h},  moments_i = alpha_{k+1} g h^{i+1} phi_{i+1}(-g h),
        noise = sigma_{k+1} sqrt(1 - e^{-2 tau^2 h}),  phi_i(z) = (phi_{i-1}(z) - 1 / (i-1)!) / z,  phi_0 = exp

    A step to a clean end, or from a time without signal, is DDIM whatever its decision says, because lambda is
    infinite there.

    Raises:
        PlanError: not one decision per step, or a fitted one without statistics.
    """
    if len(decisions) != len(grid):
        raise PlanError(
            f"the grid has {len(grid)} steps", value=len(decisions), hint="Give one decision for each of them."
        )
    if statistics is None and any(d.form == "fitted" for d in decisions):
        raise PlanError("fitted steps need statistics", hint="Pass those of `estimate_statistics`.")
    s = Stages(process, prediction, grid)
    fitted = None if statistics is None else fitted_form(s, statistics)
    strategies = [_strategy(s, k, decision, fitted) for k, decision in enumerate(decisions)]
    plan = s.plan(integrate(s, strategies), "per_step", decisions=[dataclasses.asdict(d) for d in decisions])
    if statistics is None:
        return plan
    return plan.replace(identity=Identity(model=statistics.model, guidance=statistics.guidance))


def _strategy(s: Stages, k: int, decision: Decision, fitted: ExpansionForm | None) -> Strategy:
    order = min(decision.order, k + 1)
    full = order - 1
    points = [full] * full
    if points and decision.points is not None:
        points[0] = min(decision.points, full)
    form = fitted if decision.form == "fitted" and fitted is not None else standard_form(s, decision.form, decision.tau)
    return Strategy(
        form,
        history=range(k - 1, k - order, -1),
        points=points,
        relax=decision.relax,
        corrected=[order] * order if decision.corrector and k + 1 < len(s) else None,
    )
