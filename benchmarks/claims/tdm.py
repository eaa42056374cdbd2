"""Trajectory distribution matching: separate intervals, deterministic steps, no data."""

from __future__ import annotations

from claims.claim import Arm, Claim, Question
from fewstep.distillation.method import method

FAIR = {"guidance": 1.0, "floor": 0.1}
# the floor of DMD2's normaliser is meant for thousands of numbers, and its adversary for pictures with texture
DMD2 = {**FAIR, "steps": 4, "modules": ("blocks.1",)}

CLAIM = Claim(
    paper="Learning Few-Step Diffusion Models by Trajectory Distribution Matching (arXiv 2503.06674)",
    says="Matching each interval of a deterministic trajectory beats DMD2 and consistency distillation at equal cost.",
    asks="Four steps, equal passes, the same tuning. DMD2 also with one update of its critic per update of the "
    "student, for the paper's five cost it three quarters of its updates. What its adversary looks at is not counted.",
    arms={
        "TDM": Arm(lambda process, updates: method("tdm", process, steps=4, **FAIR)),
        "TDM, overlapping": Arm(lambda process, updates: method("tdm", process, steps=4, overlap=True, **FAIR)),
        "DMD2": Arm(lambda process, updates: method("dmd2", process, **DMD2)),
        "DMD2, ratio 1": Arm(lambda process, updates: method("dmd2", process, ratio=1, **DMD2)),
        "DMD2, ratio 1, no data": Arm(
            lambda process, updates: method("dmd2", process, ratio=1, adversarial=0.0, **DMD2)
        ),
        "DMD2, ratio 1, no data, critic told": Arm(
            lambda process, updates: method("dmd2", process, ratio=1, adversarial=0.0, step_condition=True, **DMD2)
        ),
        "consistency": Arm(lambda process, updates: method("lcm", process, steps=4, guidance=1.0)),
    },
    questions=(
        Question("TDM", "DMD2"),
        Question("TDM", "DMD2, ratio 1"),
        Question("TDM", "DMD2, ratio 1, no data"),
        Question("DMD2, ratio 1, no data, critic told", "DMD2, ratio 1, no data"),
        Question("TDM", "DMD2, ratio 1, no data, critic told"),
        Question("TDM", "consistency"),
        Question("TDM", "TDM, overlapping"),
        Question("TDM", "DMD2, ratio 1", "recall", higher=True),
    ),
)
