"""Decoupled DMD: guidance makes a few-step student, matching keeps it sane, each at noise levels of its own."""

from __future__ import annotations

from claims.claim import Arm, Claim, Question
from fewstep.distillation.method import method

GUIDANCE = 2.0
COMMON = {"steps": 4, "ratio": 1}

CLAIM = Claim(
    paper="Decoupled DMD: CFG Augmentation as the Spear, Distribution Matching as the Shield (arXiv 2511.22677)",
    says="Guidance alone makes right samples and collapses, matching alone keeps the distribution; both together are "
    "best where guidance is asked at cleaner noise levels than the student's own.",
    asks=f"Four steps, guidance {GUIDANCE:g}, one update of the critic each, equal passes. Ten classes of digits are "
    "easy to tell apart: matching alone may suffice here.",
    arms={
        "guidance alone": Arm(
            lambda process, updates: method("decoupled_dmd", process, guidance=GUIDANCE, match=False, **COMMON)
        ),
        "matching alone": Arm(lambda process, updates: method("decoupled_dmd", process, guidance=1.0, **COMMON)),
        "both, shared levels": Arm(
            lambda process, updates: method("dmd2", process, guidance=GUIDANCE, adversarial=0.0, floor=0.1, **COMMON)
        ),
        "both, all levels": Arm(
            lambda process, updates: method("decoupled_dmd", process, guidance=GUIDANCE, cleaner=False, **COMMON)
        ),
        "both, decoupled": Arm(lambda process, updates: method("decoupled_dmd", process, guidance=GUIDANCE, **COMMON)),
        "both, decoupled, critic told": Arm(
            lambda process, updates: method("decoupled_dmd", process, guidance=GUIDANCE, step_condition=True, **COMMON)
        ),
        "matching alone, critic told": Arm(
            lambda process, updates: method("decoupled_dmd", process, guidance=1.0, step_condition=True, **COMMON)
        ),
    },
    questions=(
        Question("both, decoupled, critic told", "both, decoupled"),
        Question("matching alone, critic told", "matching alone"),
        Question("guidance alone", "matching alone", "right", higher=True),
        Question("matching alone", "guidance alone", "precision", higher=True),
        Question("matching alone", "guidance alone", "spread", higher=True),
        Question("matching alone", "guidance alone"),
        Question("both, decoupled", "both, shared levels"),
        Question("both, decoupled", "both, all levels"),
        Question("both, decoupled", "both, shared levels", "precision", higher=True),
        Question("both, decoupled", "both, shared levels", "spread", higher=True),
        Question("both, decoupled", "both, shared levels", "right", higher=True),
        Question("both, decoupled", "matching alone", "right", higher=True),
    ),
)
