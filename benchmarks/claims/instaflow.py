"""InstaFlow: straighten the flow, then distil it into one step."""

from __future__ import annotations

from claims.chain import Chain, Flow
from claims.claim import Arm, Claim, Question
from fewstep.distillation.chain import evenly
from fewstep.distillation.method import method
from fewstep.testing.digits import DigitBed

PAIRS, JUMPS, NARROW = 4096, 4, 48
SECOND = PAIRS * 4 * JUMPS  # passes of the second store, 16 Euler steps


def pairs(bed: DigitBed) -> DigitBed:
    """The teacher's."""
    return bed.stored(count=PAIRS)


def again(bed: DigitBed) -> DigitBed:
    """Those of the straightened flow, which fewer steps solve."""
    return bed.stored(count=PAIRS, points=JUMPS)


def flow(process):
    """In one step and in many."""
    return {f"{n} steps": evenly(process, n, fresh=0.0) for n in (1, 2, 16)}


def one(process):
    """In one step."""
    return {"1 steps": evenly(process, 1, fresh=0.0)}


def distil(process, updates):
    """Regression to the stored ends."""
    return method("instaflow", process)


def straighten(process, updates):
    """Reflow."""
    return method("reflow", process, steps=1)


def chain(width: int = 0) -> Chain:
    """Reflow, then distillation on pairs of the new flow."""
    first = Arm(straighten, bed=pairs, width=width)
    return Chain(distil, one, again, spent=SECOND, first=first)


CLAIM = Claim(
    paper="InstaFlow (arXiv 2309.06380)",
    says="Distilling a teacher into one step fails where its noise and its samples are joined by a rough map; reflow "
    "joins them anew by straighter paths, and distilling after it works.",
    asks="One step, equal passes. All arms share the teacher's store of 4,096 pairs (64 Euler steps), which is not "
    "counted; the pairs of the straightened flow (16 Euler steps) are. Half of the updates "
    "reflow. The paper says it of students that their own size binds, so it is also asked of a sixth of the weights, "
    "from random ones.",
    arms={
        "teacher": Flow(straighten, flow, pairs, share=0.0),
        "reflow": Flow(straighten, flow, pairs),
        "direct": Arm(distil, one, pairs),
        "reflow, then distilled": chain(),
        "direct, narrow": Arm(distil, one, pairs, width=NARROW),
        "reflow, then distilled, narrow": chain(NARROW),
    },
    questions=(
        Question("reflow", "teacher", "straightness", "16 steps"),
        Question("reflow", "teacher", draw="1 steps"),
        Question("reflow", "teacher", draw="2 steps"),
        Question("reflow, then distilled", "reflow", draw="1 steps"),
        Question("reflow, then distilled", "direct", draw="1 steps"),
        Question("reflow, then distilled, narrow", "direct, narrow", draw="1 steps"),
    ),
)
