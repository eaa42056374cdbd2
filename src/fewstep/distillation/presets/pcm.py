"""Phased consistency: jumps to the edge of the own segment of the trajectory."""

from __future__ import annotations

from fewstep.distillation.chain import evenly
from fewstep.distillation.flow_map import (
    Back,
    Edge,
    ElementHuber,
    Even,
    FlowMapTerm,
    Guidance,
    Intervals,
    InTurn,
    NoisedData,
    Solver,
    Squared,
    Student,
    StudentRollout,
    TeacherRollout,
    TwoLeg,
)
from fewstep.distillation.flow_map.metrics import Metric
from fewstep.distillation.method import Method, Settings, needing, preset
from fewstep.process import Process


@preset("pcm")
def pcm(process: Process, *, steps: int = 4, guidance: float = 5.0, parts: int = 48, huber: float = 1e-3) -> Method:
    """Phased consistency model: as many segments as steps, sampled without fresh noise (arXiv 2405.18407)."""
    grid = Even(parts)
    term = FlowMapTerm(
        Intervals(grid, Edge(Even(steps)), Back(grid)),
        TwoLeg(Solver(), Student()),
        metric=ElementHuber(huber),
        space="state",
        guidance=Guidance(guidance),
    )
    return Method(
        {"consistency": term},
        evenly(process, steps, fresh=0.0),
        needs=needing(data=True, guided=guidance != 1),
        settings=Settings(learning_rate=5e-6),
    )


@preset("mlcm")
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
    metric: Metric = Squared(),
    data: bool = False,
) -> Method:
    """Multistep latent consistency without data: segments on the teacher's states, then milestones (arXiv 2406.05768).

    metric: the paper's is the distance of features of a latent perceptual network (`Features`).
    first_stage: share of the training within segments; 1 or 0 leaves a stage out. Within segments alone no jump to the
    data is learned, and the student is run as a deterministic chain. data: noised data instead of the teacher's states,
    which the paper argues against. second_rate: learning rate between milestones, of that within segments.
    sub_steps, rollout: DDIM steps between milestones (p), and steps of the student that make its own states (q).
    """
    fine, coarse, scale = Even(parts), Even(segments), Guidance(guidance)
    within = FlowMapTerm(
        Intervals(fine, Edge(coarse), Back(fine)),
        TwoLeg(Solver(), Student()),
        NoisedData() if data else TeacherRollout(segments),
        metric,
        space="state",
        guidance=scale,
    )
    between = FlowMapTerm(
        Intervals(coarse, middle=Back(coarse)),
        TwoLeg(Solver(steps=sub_steps), Student()),
        StudentRollout(evenly(process, rollout)),
        metric,
        space="state",
        guidance=scale,
    )
    rates = ((first_stage, 1.0), (1.0, second_rate)) if 0 < first_stage < 1 else ()
    stages = ((first_stage, within),) * (first_stage > 0) + ((1.0, between),) * (first_stage < 1)
    return Method(
        {"consistency": InTurn(stages)},
        evenly(process, steps, fresh=float(first_stage < 1)),
        needs=needing(data=data, guided=guidance != 1),
        settings=Settings(learning_rate=1e-4, rates=rates),
    )
