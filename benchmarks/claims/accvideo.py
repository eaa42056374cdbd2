"""AccVideo: jumps between stored states of the teacher, and an adversary at each of them."""

from __future__ import annotations

from claims.claim import REAL, Arm, Claim, Question, Real
from claims.mlcm import mirrored
from fewstep.distillation.chain import evenly
from fewstep.distillation.discriminator import NetworkFeatures
from fewstep.distillation.method import Method, method
from fewstep.distillation.parts import (
    flow_map_term,
    grid_jump_times,
    ode_steps,
    previous_grid_point,
    two_leg,
    uniform_grid,
)
from fewstep.testing.digits import DigitBed

KEYS = 4


def stored(bed: DigitBed) -> DigitBed:
    """Trajectories of the teacher."""
    return bed.stored(points=KEYS)


def keys(adversarial: float):
    """The jumps between the states at the times of the steps, with an adversary or without."""
    source = NetworkFeatures("teacher", ("blocks.1",))
    options = {"steps": KEYS, "adversarial": adversarial, "source": source}
    return lambda process, updates: method("accvideo", process, **options)


def noised(process, updates):
    """The same jumps from noised data, solved while training with as many steps as the stored ones."""
    grid = uniform_grid(KEYS)
    term = flow_map_term(grid_jump_times(grid, previous_grid_point(grid)), two_leg(ode_steps(steps=4)))
    return Method({"noised": term}, evenly(process, KEYS, fresh=0.0), needs=frozenset({"data"}))


CLAIM = Claim(
    paper="AccVideo (arXiv 2503.19462)",
    says="States that the teacher made itself teach better than noised data, the more so the less the data match it; "
    "an adversary at each key time helps.",
    asks="Four steps. The jumps from noised data are solved while training by four Euler steps as in the store, which "
    "costs passes: equal updates are the fair comparison of the three regressions. The store's passes are not counted. "
    "Mirrored digits stand for data that the teacher does not know.",
    arms={
        "teacher": Arm(noised, share=0.0),
        "stored": Arm(keys(0.0), bed=stored),
        "stored, adversary": Arm(keys(0.1), bed=stored),
        "noised data": Arm(noised),
        "noised, mirrored data": Arm(noised, bed=mirrored),
        "mirrored digits": Real(noised, bed=mirrored, share=0.0),
    },
    premises={"mirrored digits are other data": Question(REAL, "mirrored digits", beyond=0.1)},
    questions=(
        Question("stored", "teacher"),
        Question("stored", "noised data"),
        *(
            Question(better, "noised, mirrored data", premise="mirrored digits are other data")
            for better in ("stored", "noised data")
        ),
        Question("stored, adversary", "stored"),
        Question("stored, adversary", "stored", "recall", higher=True),
    ),
)
