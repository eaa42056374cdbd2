"""Score implicit matching: a pseudo-Huber distance between scores, one step."""

from __future__ import annotations

from claims.claim import Arm, Claim, Question
from fewstep.distillation.method import method

FLOOR, HIGH = 0.1, (1e-2, 0.0)

CLAIM = Claim(
    paper="One-Step Diffusion Distillation through Score Implicit Matching (arXiv 2410.16794)",
    says="The pseudo-Huber distance makes a better one-step student than DMD and SiD, at more learning rates.",
    asks="One step, no data; each at the learning rate that suits it, and all at 1e-2, which is too high.",
    arms={
        "SIM": Arm(lambda process, updates: method("sim", process)),
        "SiD, alpha 1": Arm(lambda process, updates: method("sid", process, alpha=1.0, floor=FLOOR)),
        "SiD, alpha 1.2": Arm(lambda process, updates: method("sid", process, alpha=1.2, floor=FLOOR)),
        "DMD": Arm(lambda process, updates: method("dmd", process, guidance=1.0, pairs=0.0, floor=FLOOR)),
        "Diff-Instruct": Arm(lambda process, updates: method("diff_instruct", process)),
        "SIM at 1e-2": Arm(lambda process, updates: method("sim", process), setting=HIGH),
        "SiD, alpha 1, at 1e-2": Arm(
            lambda process, updates: method("sid", process, alpha=1.0, floor=FLOOR), setting=HIGH
        ),
        "DMD at 1e-2": Arm(
            lambda process, updates: method("dmd", process, guidance=1.0, pairs=0.0, floor=FLOOR), setting=HIGH
        ),
    },
    premises={
        f"1e-2 is too much for {name}": Question(name, f"{name}{comma} at 1e-2")
        for name, comma in (("SiD, alpha 1", ","), ("DMD", ""))
    },
    questions=(
        Question("SIM", "DMD"),
        Question("SIM", "SiD, alpha 1"),
        Question("SIM", "SiD, alpha 1.2"),
        Question("SIM", "Diff-Instruct"),
        Question("SIM", "DMD", "recall", higher=True),
        Question("SIM at 1e-2", "SiD, alpha 1, at 1e-2", premise="1e-2 is too much for SiD, alpha 1"),
        Question("SIM at 1e-2", "DMD at 1e-2", premise="1e-2 is too much for DMD"),
    ),
    momenta=(0.0,),
)
