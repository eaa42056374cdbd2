"""MDT-dist: velocities of a map to the data matched, and its samples judged by the map itself."""

from __future__ import annotations

from claims.claim import Arm, Claim, Question
from fewstep.distillation.chain import evenly
from fewstep.distillation.method import method


def draws(process):
    """One step; two with fresh noise, which a map to the data is meant for; two without, as the authors sample."""
    return {"1 step": evenly(process, 1), "2 steps": evenly(process, 2), "2 steps, chained": evenly(process, 2, 0.0)}


def mdt(**options):
    """Without guidance unless given."""
    given = {"guidance": 1.0, "sample_guidance": 1.0, **options}
    return lambda process, updates: method("mdt", process, **given)


ARMS = {
    "teacher": Arm(mdt(), draws, share=0.0),
    "both": Arm(mdt(), draws),
    "matching": Arm(mdt(distillation=0.0), draws),
    "matching, not normalised": Arm(mdt(distillation=0.0, normalise=None), draws),
    "consistency": Arm(lambda process, updates: method("consistency_distillation", process, guidance=1.0), draws),
    "LCM": Arm(lambda process, updates: method("lcm", process, guidance=1.0), draws),
}
PAIRS = (("both", "consistency"), ("both", "LCM"), ("both", "matching"), ("matching", "consistency"))
QUESTIONS = (
    *(Question(better, than, draw=draw) for draw in ("1 step", "2 steps") for better, than in PAIRS),
    Question("both", "teacher", draw="1 step"),
    Question("both", "matching", "recall", "1 step", higher=True),
    Question("both", "both", draw="2 steps", than_draw="2 steps, chained"),
)

CLAIM = Claim(
    paper="MDT-dist (arXiv 2509.04406)",
    says="Velocity matching with velocity distillation beats consistency distillation in one and two steps.",
    asks="Equal passes, no guidance. The derivative is a central difference, two passes of the student. The residual "
    "is normalised as a whole, not the derivative alone as in the released code; without it as an arm.",
    arms=ARMS,
    questions=QUESTIONS,
)
