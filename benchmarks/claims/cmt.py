"""Consistency mid-training: does regression to stored trajectories help the methods that follow?"""

from __future__ import annotations

from claims.chain import after
from claims.claim import Arm, Claim, Question
from fewstep.distillation.chain import evenly
from fewstep.distillation.method import method
from fewstep.testing.digits import DigitBed


def stored(bed: DigitBed) -> DigitBed:
    """Trajectories of the teacher; their ends are the data of every arm."""
    return bed.stored()


def draws(process):
    """Deterministic chains."""
    return {f"{n} steps": evenly(process, n, fresh=0.0) for n in (1, 2, 4)}


def mean_flow(process, updates):
    """MeanFlow of the teacher's velocity."""
    return method("mean_flow", process, teacher=True, derivative="difference")


def uniform(process, updates):
    """MeanFlow at uniform times, which see pure noise far more often than the published law."""
    return method("mean_flow", process, teacher=True, derivative="difference", times="uniform")


def consistency(process, updates):
    """Consistency training by easy tuning."""
    return method("ect", process, steps=1)


def mid(pairs: str, last):
    """Half of the updates on stored states, half by the method."""
    return lambda process, updates: after(method("cmt", process, pairs=pairs), last(process, updates))


CLAIM = Claim(
    paper="Consistency mid-training (arXiv 2509.24526), MF-RAE (arXiv 2511.13019)",
    says="Regression of jumps between stored states of the teacher is a cheap and steady start for MeanFlow and for "
    "consistency models, whose own training from a diffusion model is long and brittle.",
    asks="Equal passes; mid-training takes half of the updates, which are cheaper than the others. The store's passes "
    "are not counted, and its ends are the data of all arms.",
    arms={
        "mid-training": Arm(lambda process, updates: method("cmt", process), draws, stored),
        "MeanFlow": Arm(mean_flow, draws, stored),
        "MeanFlow, uniform times": Arm(uniform, draws, stored),
        "mid-training, MeanFlow, uniform times": Arm(mid("all", uniform), draws, stored),
        "mid-training, MeanFlow": Arm(mid("all", mean_flow), draws, stored),
        "consistency": Arm(consistency, draws, stored),
        "mid-training, consistency": Arm(mid("to-end", consistency), draws, stored),
    },
    questions=(
        *(Question("mid-training, MeanFlow", "MeanFlow", draw=f"{n} steps") for n in (1, 2, 4)),
        *(Question("mid-training, consistency", "consistency", draw=f"{n} steps") for n in (1, 2)),
        Question("mid-training, MeanFlow", "mid-training", draw="1 steps"),
        Question("MeanFlow", "consistency", draw="1 steps"),
        *(Question("MeanFlow, uniform times", "MeanFlow", draw=f"{n} steps") for n in (1, 2, 4)),
        Question("mid-training, MeanFlow, uniform times", "MeanFlow, uniform times", draw="1 steps"),
    ),
)
