"""SlimFlow: a flow of half the weights from a loosened pairing, and one step from pairs and from its own flow."""

from __future__ import annotations

import dataclasses

from claims.chain import Chain, Flow
from claims.claim import Arm, Claim, Question
from fewstep.distillation.chain import evenly
from fewstep.distillation.method import method
from fewstep.testing.digits import DigitBed

SLIM, MANY, FEW = 88, 4096, 256


def many(bed: DigitBed) -> DigitBed:
    """Enough pairs."""
    return bed.stored(count=MANY)


def few(bed: DigitBed) -> DigitBed:
    """Of the pairs that the flow was made from too few for one step to be learned from them."""
    assert bed.store is not None
    path, times, labels = bed.store
    return dataclasses.replace(bed, store=(path[:FEW], times, labels[:FEW]))


def same(bed: DigitBed) -> DigitBed:
    """All of them."""
    return bed


def flow(process):
    """In one step and in many."""
    return {f"{n} steps": evenly(process, n, fresh=0.0) for n in (1, 16)}


def reflow(anneal: float):
    """Reflow, its pairs loosened over this share of the training; 2: never paired, which is flow matching."""
    return lambda process, updates: method("reflow", process, steps=1, anneal=anneal)


def distilled(two_steps: float, pairs):
    """Half of the updates reflow, on all pairs; half distil, on these."""
    first = Arm(reflow(0.5), bed=many, width=SLIM)

    def make(process, updates):
        return method("slim_flow", process, reflow_steps=0, distil_steps=updates, two_steps=two_steps)

    return Chain(make, bed=pairs, first=first)


CLAIM = Claim(
    paper="SlimFlow (arXiv 2407.12718)",
    says="A student smaller than its teacher cannot begin with the teacher's weights; pairs loosened at first replace "
    "that, and two steps of its own flow from fresh noise help one step where pairs are few.",
    asks="Students of half the teacher's weights, random at first. Reflow at equal passes: pairs loosened over half of "
    "the training, paired from the start, and flow matching for half of it before. Then one step: the flow, made from "
    "all 4,096 pairs, is distilled on 256 of them or on all, with the two-step term and without, at equal passes (the "
    "term costs some).",
    arms={
        "annealed": Flow(reflow(0.5), flow, many, SLIM),
        "paired": Flow(reflow(0.0), flow, many, SLIM),
        "matched, then paired": Chain(reflow(0.0), flow, lambda bed: bed, first=Arm(reflow(1e9), bed=many, width=SLIM)),
        "few pairs": distilled(0.0, few),
        "few pairs, two steps": distilled(1.0, few),
        "many pairs": distilled(0.0, same),
        "many pairs, two steps": distilled(1.0, same),
    },
    premises={"256 pairs are few": Question("many pairs", "few pairs")},
    questions=(
        *(Question("annealed", "paired", draw=f"{n} steps") for n in (1, 16)),
        *(Question("annealed", "matched, then paired", draw=f"{n} steps") for n in (1, 16)),
        Question("few pairs, two steps", "few pairs", premise="256 pairs are few"),
        Question("few pairs, two steps", "few pairs", "recall", higher=True, premise="256 pairs are few"),
        Question("many pairs, two steps", "many pairs"),
        Question("many pairs, two steps", "annealed", than_draw="1 steps"),
    ),
)
