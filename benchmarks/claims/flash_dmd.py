"""Flash-DMD: a critic that is pulled towards the student, and an adversary for the clean calls alone."""

from __future__ import annotations

import dataclasses

from claims.claim import Arm, Claim, Make, Question
from fewstep.distill.method import Method, Tracking, method
from fewstep.process import Process

PULL, WEIGHT = 0.03, 0.1
TAPS = {"guidance": 1.0, "floor": 0.1, "modules": ("blocks.1",)}
FEW = 9.5 / 31.5
# a student's update costs 6.5 passes a sample, the critic's first 3 and each further one 5.5: at this share ratio 1
# makes as many updates of the student as ratio 5


def matching(ratio: int, pull: float = 0.0) -> Make:
    """DMD2's matching without its adversary."""

    def make(process: Process, updates: int) -> Method:
        made = method("dmd2", process, steps=4, guidance=1.0, adversarial=0.0, floor=0.1)
        assert made.critic is not None
        critic = dataclasses.replace(made.critic, tracking=Tracking(ratio, pull=pull))
        return dataclasses.replace(made, critic=critic)

    return make


CLAIM = Claim(
    paper="Flash-DMD: Towards High-Fidelity Few-Step Image Generation (arXiv 2511.20549)",
    says="A critic pulled towards the student follows it at one update instead of five, and an adversary for the clean "
    "calls alone beats one added at every call.",
    asks=f"Four steps. The first three arms make equally many updates of the student, two of them at {FEW:.0%} of the "
    "passes. The adversaries read the teacher's features: there is no SAM of 8x8 digits; "
    "what they look at is not counted.",
    arms={
        "ratio 5": Arm(matching(5)),
        "ratio 1": Arm(matching(1), share=FEW),
        "ratio 1, pulled": Arm(matching(1, PULL), share=FEW),
        "ratio 1, as many passes": Arm(matching(1)),
        "adversary at every call": Arm(
            lambda process, updates: method(
                "dmd2", process, steps=4, ratio=1, adversarial=WEIGHT, reads="teacher", **TAPS
            )
        ),
        "adversary at clean calls": Arm(
            lambda process, updates: method(
                "flash_dmd", process, steps=4, ratio=1, pull=0.0, adversarial=WEIGHT, **TAPS
            )
        ),
    },
    questions=(
        Question("ratio 5", "ratio 1"),
        Question("ratio 1, pulled", "ratio 1"),
        Question("ratio 5", "ratio 1, pulled"),
        Question("ratio 1, as many passes", "ratio 5"),
        Question("adversary at clean calls", "adversary at every call"),
        Question("adversary at clean calls", "ratio 1, as many passes"),
    ),
)
