"""Average velocities between any two times: MeanFlow, its distillation, alpha-Flow, Lagrangian flow maps."""

from __future__ import annotations

from fewstep.distillation.parts import (
    Method,
    OptimizerSettings,
    TeacherGuidance,
    TimeDerivative,
    TimeDistribution,
    VelocitySource,
    adaptive_weight,
    data_velocity,
    eulerian_target,
    evenly,
    flow_map_term,
    fraction_of_jump,
    jump_times,
    lagrangian_target,
    logit_normal_times,
    needing,
    ode_steps,
    preset,
    ramp,
    same_noise_step,
    second_draw,
    self_guided_velocity,
    squared_error,
    student_jump,
    teacher_velocity,
    two_leg,
    uniform_times,
)
from fewstep.errors import FewstepError, nearest
from fewstep.process import Process

LAWS: dict[str, TimeDistribution] = {"logit_normal": logit_normal_times(-0.4, 1.0), "uniform": uniform_times(1e-3, 1.0)}
SETTINGS = OptimizerSettings(learning_rate=1e-4, betas=(0.9, 0.95), ema=0.9999)


def law_of(times: str) -> TimeDistribution:
    """A law of times by name.

    Raises:
        FewstepError: there is none.
    """
    if times not in LAWS:
        raise FewstepError("unknown law of times", value=times, hint=nearest(times, LAWS))
    return LAWS[times]


@preset("mean_flow")
def mean_flow(
    process: Process,
    *,
    steps: int = 1,
    guidance: float = 1.0,
    teacher: bool = False,
    omega: float = 1.0,
    kappa: float = 0.0,
    interval: tuple[float, float] = (0.0, 1.0),
    derivative: str = "jvp",
    equal: float = 0.75,
    power: float = 1.0,
    c: float = 1e-2,
    times: str = "logit_normal",
) -> Method:
    """MeanFlow: the average velocity satisfies its own differential equation (arXiv 2505.13447).

        loss = |u_{s,t}(x_t) - sg(v - (t - s) du/dt)|^2 / (same + c)^power,  v = noise - data or the teacher's

    Args:
        process: of the teacher.
        steps: calls of the student.
        guidance: of the teacher, where its velocity is taken.
        teacher: the teacher's velocity in place of the data's, the distillation form (2511.13019).
        omega: MeanFlow's own guidance, without a teacher: weight of v (see `self_guided_velocity`).
        kappa: likewise: weight of the student's own velocity.
        interval: likewise: fractions of the range in which it acts.
        derivative: `jvp` or `difference`.
        equal: share of samples with s = t.
        power: as in the formula.
        c: as in the formula.
        times: the paper's `logit_normal` law draws one time in 2,500 above 0.95, so that one step from pure noise is
            learned late; `uniform` suits small budgets.
    """
    law = law_of(times)
    direction: VelocitySource = teacher_velocity if teacher else data_velocity
    if (omega, kappa) != (1.0, 0.0):
        direction = self_guided_velocity(omega, kappa, interval, direction)
    needs = needing(data=True, guided=guidance != 1 or (omega, kappa) != (1.0, 0.0))
    term = flow_map_term(
        jump_times(law, second_draw(law), equal=equal),
        eulerian_target(direction, TimeDerivative(derivative)),
        metric=squared_error(total=True),
        weights=(adaptive_weight(power, c),),
        guidance=TeacherGuidance(guidance),
    )
    steps_ = evenly(process, steps, fresh=0.0)
    return Method({"mean_flow": term}, steps_, needs=needs, two_times=True, settings=SETTINGS)


@preset("alpha_flow")
def alpha_flow(
    process: Process,
    *,
    steps: int = 1,
    teacher: bool = False,
    guidance: float = 1.0,
    least: float = 0.05,
    equal: float = 0.5,
    times: str = "logit_normal",
) -> Method:
    """alpha-Flow: discrete MeanFlow, from flow matching (share 1) towards the limit (arXiv 2510.20771).

        loss = |u_{s,t} - sg(share v + (1 - share) u_{s,m}(x_m))|^2,  m = t - share (t - s),
        divided by (same + 1e-2): flow matching at share 1, MeanFlow at 0

    Args:
        process: of the teacher.
        steps: calls of the student.
        teacher: the teacher's step in place of the data's.
        guidance: of the teacher, where its step is taken.
        least: share of the jump that the first leg still takes at the end of the training.
        equal: share of samples with s = t.
        times: as in mean_flow.
    """
    law = law_of(times)
    share = ramp(1.0, least, 0.2, 0.8)
    term = flow_map_term(
        jump_times(law, second_draw(law), fraction_of_jump(share), equal),
        two_leg(ode_steps() if teacher else same_noise_step, student_jump()),
        metric=squared_error(total=True),
        weights=(adaptive_weight(),),
        guidance=TeacherGuidance(guidance),
    )
    needs = needing(data=True, guided=teacher and guidance != 1)
    steps_ = evenly(process, steps, fresh=0.0)
    return Method({"mean_flow": term}, steps_, needs=needs, two_times=True, settings=SETTINGS)


@preset("lagrangian")
def lagrangian(
    process: Process,
    *,
    steps: int = 1,
    guidance: float = 1.0,
    derivative: str = "jvp",
    equal: float = 0.25,
    least: float = 0.01,
) -> Method:
    """Lagrangian map distillation: the landing point moves with the teacher (arXiv 2406.07507).

        loss = |u_{s,t} - sg(v(X_{s,t}(x_t), s) + (t - s) du/ds)|^2 / (same + 1e-3)^(1/2)

    At its minimum dX_{s,t}/ds = v(X_{s,t}, s). The only derivative is in the end time: cheap, and safe with fused
    attention by `derivative="difference"`.

    Args:
        process: of the teacher.
        steps: calls of the student.
        guidance: scale g of the teacher's guidance; 1: none.
        derivative: `jvp` or `difference`.
        equal: share of samples with s = t.
        least: fraction of the range that no time is below.
    """
    law = uniform_times(least, 1.0)
    term = flow_map_term(
        jump_times(law, second_draw(law), equal=equal),
        lagrangian_target(slope=TimeDerivative(derivative)),
        metric=squared_error(total=True),
        weights=(adaptive_weight(0.5, 1e-3),),
        guidance=TeacherGuidance(guidance),
    )
    needs = needing(data=True, guided=guidance != 1)
    steps_ = evenly(process, steps, fresh=0.0)
    return Method({"flow_map": term}, steps_, needs=needs, two_times=True, settings=SETTINGS)
