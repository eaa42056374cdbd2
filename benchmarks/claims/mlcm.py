"""Multistep latent consistency: segments first, then milestones; states from the teacher instead of noised data."""

from __future__ import annotations

from dataclasses import replace

from claims.claim import Arm, Claim, Question
from fewstep.distill.beds.digits import DigitBed
from fewstep.distill.method import method
from fewstep.distill.steps import evenly

STEPS = (1, 2, 4, 8)


def draws(process):
    """One model in all of these steps, noised anew between them."""
    return {f"{n} steps": evenly(process, n) for n in STEPS}


def chained(process):
    """The same without new noise: within segments no jump to the data is learned."""
    return {f"{n} steps": evenly(process, n, fresh=0.0) for n in STEPS}


def mirrored(bed: DigitBed) -> DigitBed:
    """Data that the teacher does not know: the digits from right to left."""
    data = bed.data
    return replace(bed, data=replace(data, train=data.train.unflatten(1, (8, 8)).flip(2).flatten(1)))


def segments(process, updates, **options):
    """The first stage alone."""
    return method("mlcm", process, guidance=1.0, first_stage=1.0, **options)


CLAIM = Claim(
    paper="Multistep Latent Consistency / TLCM (arXiv 2406.05768)",
    rates=(3e-4, 1e-3, 3e-3),
    says="Consistency within segments, then between their edges, gives one model for two to eight steps; its states "
    "come from the teacher, so that no data is needed and none can mismatch.",
    asks="One model per arm, measured in 1, 2, 4 and 8 steps at equal passes; the teacher's states cost passes, noised "
    "data does not. Segments alone are run as a deterministic chain, the others with fresh noise. Eight segments; "
    "three quarters of the updates within them, all or none as arms. Mirrored digits stand for data that the teacher "
    "does not know. No perceptual metric, no reward, no adversary.",
    arms={
        "LCM": Arm(lambda process, updates: method("lcm", process, guidance=1.0), draws),
        "segments, data": Arm(lambda p, n: segments(p, n, data=True), chained),
        "segments, mirrored data": Arm(lambda p, n: segments(p, n, data=True), chained, mirrored),
        "segments": Arm(segments, chained),
        "milestones": Arm(lambda process, updates: method("mlcm", process, guidance=1.0, first_stage=0.0), draws),
        "MLCM": Arm(lambda process, updates: method("mlcm", process, guidance=1.0, first_stage=0.75), draws),
    },
    questions=(
        *(Question("MLCM", "LCM", draw=f"{n} steps") for n in STEPS),
        *(Question("MLCM", "segments", draw=f"{n} steps") for n in STEPS),
        *(Question("MLCM", "milestones", draw=f"{n} steps") for n in STEPS),
        Question("segments", "LCM", draw="8 steps"),
        *(Question("segments", "segments, data", draw=f"{n} steps") for n in (4, 8)),
        *(Question("segments", "segments, mirrored data", draw=f"{n} steps") for n in (4, 8)),
    ),
)
