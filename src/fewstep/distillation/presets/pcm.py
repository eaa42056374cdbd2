"""Phased consistency: jumps to the edge of the own segment of the trajectory."""

from __future__ import annotations

from fewstep.distillation.parts import (
    FlowMapTerm,
    Intervals,
    Method,
    Metric,
    OdeSteps,
    OptimizerSettings,
    PreviousGridPoint,
    PseudoHuber,
    SquaredError,
    StudentJump,
    StudentStates,
    TeacherGuidance,
    TeacherStates,
    TrainingStages,
    TwoLeg,
    UniformGrid,
    evenly,
    needing,
    noised_data,
    preset,
)
from fewstep.process import Process


@preset("pcm")
def pcm(process: Process, *, steps: int = 4, guidance: float = 5.0, parts: int = 48, huber: float = 1e-3) -> Method:
    """Phased consistency model: as many segments as steps, sampled without fresh noise (arXiv 2405.18407).

    loss = huber(X_{e,t}(x_t) - sg X_{e,m}(Phi_{m,t}(x_t))),  e the lower edge of the segment of t
    """
    grid = UniformGrid(parts)
    term = FlowMapTerm(
        Intervals(grid, PreviousGridPoint(UniformGrid(steps)), PreviousGridPoint(grid)),
        TwoLeg(OdeSteps(), StudentJump()),
        metric=PseudoHuber(huber, elementwise=True),
        space="state",
        guidance=TeacherGuidance(guidance),
    )
    return Method(
        {"consistency": term},
        evenly(process, steps, fresh=0.0),
        needs=needing(data=True, guided=guidance != 1),
        settings=OptimizerSettings(learning_rate=5e-6),
    )


@preset("mlcm", staged=True)
def mlcm(
    process: Process,
    *,
    steps: int = 4,
    guidance: float = 8.0,
    segments: int = 8,
    parts: int = 48,
    sub_steps: int = 3,
    rollout: int = 4,
    first_stage: float = 12 / 14,
    second_rate: float = 0.1,
    metric: Metric = SquaredError(),
    data: bool = False,
) -> Method:
    """Multistep latent consistency without data: segments on the teacher's states, then milestones (arXiv 2406.05768).

        loss = d(X_{e,t}(x_t), sg X_{e,m}(Phi_{m,t}(x_t))) in segments;
        then d(f(x_t), sg f(Phi^p_{m,t}(x_t))), p steps of the teacher to the next edge m

    metric: the paper's is the distance of features of a latent perceptual network (`Features`).
    first_stage: share of the training within segments; 1 or 0 leaves a stage out. Within segments alone no jump to the
    data is learned, and the student is run as a deterministic chain. data: noised data instead of the teacher's states,
    which the paper argues against. second_rate: learning rate between milestones, of that within segments.
    sub_steps, rollout: DDIM steps between milestones (p), and steps of the student that make its own states (q).
    """
    fine, coarse, scale = UniformGrid(parts), UniformGrid(segments), TeacherGuidance(guidance)
    within = FlowMapTerm(
        Intervals(fine, PreviousGridPoint(coarse), PreviousGridPoint(fine)),
        TwoLeg(OdeSteps(), StudentJump()),
        noised_data if data else TeacherStates(segments),
        metric,
        space="state",
        guidance=scale,
    )
    between = FlowMapTerm(
        Intervals(coarse, middle=PreviousGridPoint(coarse)),
        TwoLeg(OdeSteps(steps=sub_steps), StudentJump()),
        StudentStates(evenly(process, rollout)),
        metric,
        space="state",
        guidance=scale,
    )
    rates = ((first_stage, 1.0), (1.0, second_rate)) if 0 < first_stage < 1 else ()
    stages = ((first_stage, within),) * (first_stage > 0) + ((1.0, between),) * (first_stage < 1)
    return Method(
        {"consistency": TrainingStages(stages)},
        evenly(process, steps, fresh=float(first_stage < 1)),
        needs=needing(data=data, guided=guidance != 1),
        settings=OptimizerSettings(learning_rate=1e-4, rates=rates),
    )
