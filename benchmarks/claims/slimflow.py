"""SlimFlow: a flow of half the weights from a loosened pairing, and one step from pairs and from its own flow."""

from __future__ import annotations

from claims.chain import Chain, Flow
from claims.claim import Arm, Claim, Question
from fewstep.distill.beds.digits import DigitBed
from fewstep.distill.method import method
from fewstep.distill.steps import evenly

SLIM, MANY, FEW = 88, 4096, 256


def many(bed: DigitBed) -> DigitBed:
    """Enough pairs."""
    return bed.stored(count=MANY)


def few(bed: DigitBed) -> DigitBed:
    """Too few pairs for one step to be learned from them."""
    return bed.stored(count=FEW)


def flow(process):
    """In one step and in many."""
    return {f"{n} steps": evenly(process, n, fresh=0.0) for n in (1, 16)}


def reflow(anneal: float):
    """Reflow, its pairs loosened over this share of the training; 2: never paired, which is flow matching."""
    return lambda process, updates: method("reflow", process, steps=1, anneal=anneal)


def distilled(two_steps: float):
    """Half of the updates reflow, half distil."""

    def make(process, updates):
        before = updates // 2
        options = {"reflow_steps": before, "distil_steps": updates - before, "anneal": 0.5, "two_steps": two_steps}
        return method("slim_flow", process, **options)

    return make


CLAIM = Claim(
    paper="SlimFlow (arXiv 2407.12718)",
    rates=(3e-4, 1e-3, 3e-3),
    says="A student smaller than its teacher cannot begin with the teacher's weights; pairs loosened at first replace "
    "that, and two steps of its own flow from fresh noise help one step where pairs are few.",
    asks="Students of half the teacher's weights, random at first. Reflow at equal passes: pairs loosened over half of "
    "the training, paired from the start, and flow matching for half of it before. Then one step, from 256 pairs or "
    "4,096, with the two-step term and without, at equal passes (the term costs some).",
    arms={
        "annealed": Flow(reflow(0.5), flow, many, SLIM),
        "paired": Flow(reflow(0.0), flow, many, SLIM),
        "matched, then paired": Chain(reflow(0.0), flow, lambda bed: bed, first=Arm(reflow(1e9), bed=many, width=SLIM)),
        "few pairs": Arm(distilled(0.0), bed=few, width=SLIM),
        "few pairs, two steps": Arm(distilled(1.0), bed=few, width=SLIM),
        "many pairs": Arm(distilled(0.0), bed=many, width=SLIM),
        "many pairs, two steps": Arm(distilled(1.0), bed=many, width=SLIM),
    },
    questions=(
        *(Question("annealed", "paired", draw=f"{n} steps") for n in (1, 16)),
        *(Question("annealed", "matched, then paired", draw=f"{n} steps") for n in (1, 16)),
        Question("few pairs, two steps", "few pairs"),
        Question("few pairs, two steps", "few pairs", "recall", higher=True),
        Question("many pairs, two steps", "many pairs"),
        Question("many pairs, two steps", "annealed", than_draw="1 steps"),
    ),
)
