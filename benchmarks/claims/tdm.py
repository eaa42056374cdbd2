"""Trajectory distribution matching: separate intervals, deterministic steps, no data."""

from __future__ import annotations

from claims.claim import Arm, Claim, Question
from fewstep.distill.method import method

GUIDANCE, FLOOR = 1.0, 0.1
# the floor of DMD2's normaliser is meant for thousands of numbers, and its adversary for pictures with texture
DMD2 = {"guidance": GUIDANCE, "floor": FLOOR, "modules": ("blocks.1",)}

CLAIM = Claim(
    paper="Learning Few-Step Diffusion Models by Trajectory Distribution Matching (arXiv 2503.06674)",
    says="Matching each interval of a deterministic trajectory beats DMD2 and consistency distillation at equal cost.",
    asks="Four steps, equal passes, the same tuning.",
    arms={
        "TDM": Arm(lambda process, updates: method("tdm", process, steps=4, guidance=GUIDANCE)),
        "TDM, overlapping": Arm(lambda process, updates: method("tdm", process, guidance=GUIDANCE, overlap=True)),
        "DMD2": Arm(lambda process, updates: method("dmd2", process, steps=4, **DMD2)),
        "DMD2 without data": Arm(lambda process, updates: method("dmd2", process, steps=4, adversarial=0.0, **DMD2)),
        "consistency": Arm(lambda process, updates: method("lcm", process, steps=4, guidance=GUIDANCE)),
    },
    questions=(
        Question("TDM", "DMD2"),
        Question("TDM", "DMD2 without data"),
        Question("TDM", "consistency"),
        Question("TDM", "TDM, overlapping"),
        Question("TDM", "DMD2", "recall", higher=True),
    ),
)
