"""Flash-DMD: a critic that is pulled towards the student, and an adversary for the clean calls alone."""

from __future__ import annotations

import dataclasses

from claims.claim import Arm, Claim, Make, Question
from fewstep.distillation.method import Method, method
from fewstep.distillation.roles import UpdateRule
from fewstep.process import Process

PULL, WEIGHT = 0.03, 0.1
TAPS = {"guidance": 1.0, "floor": 0.1, "modules": ("blocks.1",)}


def matching(ratio: int, pull: float = 0.0, told: bool = False) -> Make:
    """DMD2's matching without its adversary."""

    def make(process: Process, updates: int) -> Method:
        samples = method("dmd2", process, steps=4, guidance=1.0, adversarial=0.0, floor=0.1, step_condition=told)
        assert samples.critic is not None
        critic = dataclasses.replace(samples.critic, tracking=UpdateRule(ratio, pull=pull))
        return dataclasses.replace(samples, critic=critic)

    return make


CLAIM = Claim(
    paper="Flash-DMD: Towards High-Fidelity Few-Step Image Generation (arXiv 2511.20549)",
    says="A critic pulled towards the student follows it at one update instead of five, and an adversary for the clean "
    "calls alone beats one added at every call.",
    asks="Four steps. Ratio 5 costs three times the passes of ratio 1: at equal updates the student of each moves "
    "equally often. The adversaries read the teacher's features: there is no SAM of 8x8 digits; "
    "what they look at is not counted.",
    arms={
        "ratio 5": Arm(matching(5)),
        "ratio 1": Arm(matching(1)),
        "ratio 1, pulled": Arm(matching(1, PULL)),
        "ratio 1, critic told": Arm(matching(1, told=True)),
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
    premises={"a critic of one update lags": Question("ratio 5", "ratio 1")},
    questions=(
        Question("ratio 5", "ratio 1"),
        Question("ratio 1, pulled", "ratio 1", premise="a critic of one update lags"),
        Question("ratio 5", "ratio 1, pulled"),
        Question("ratio 1", "ratio 5"),
        Question("ratio 1, critic told", "ratio 1"),
        Question("adversary at clean calls", "adversary at every call"),
        Question("adversary at clean calls", "ratio 1"),
    ),
)
