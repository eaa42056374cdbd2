"""Multistep latent consistency: segments first, then milestones; states from the teacher instead of noised data."""

from __future__ import annotations

from dataclasses import replace

from claims.claim import REAL, Arm, Claim, Question, Real
from fewstep.distillation.chain import Chain, evenly
from fewstep.distillation.method import method
from fewstep.testing.digits import DigitBed

STEPS, PUBLISHED = (1, 2, 4, 8), "4 steps, published"


def draws(process):
    """One model in all of these steps, noised anew between them."""
    return {f"{n} steps": evenly(process, n) for n in STEPS} | {PUBLISHED: published(process)}


def published(process):
    """The authors' four calls of eight segments: the last begins at one eighth instead of a quarter."""
    return Chain(tuple(process.noisiest * part for part in (1.0, 0.75, 0.5, 0.125)))


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
        "MLCM, one rate": Arm(
            lambda process, updates: method("mlcm", process, guidance=1.0, first_stage=0.75, second_rate=1.0), draws
        ),
        "mirrored digits": Real(segments, bed=mirrored, share=0.0),
    },
    premises={
        "mirrored digits are other data": Question(REAL, "mirrored digits", beyond=0.1),
    },
    questions=(
        Question("segments", "LCM", draw="8 steps"),
        *(Question("MLCM", "LCM", draw=f"{n} steps") for n in STEPS),
        *(Question("MLCM", "segments", draw=f"{n} steps") for n in STEPS),
        *(Question("MLCM", "milestones", draw=f"{n} steps") for n in STEPS),
        *(Question("segments", "segments, data", draw=f"{n} steps") for n in (4, 8)),
        *(
            Question("segments", "segments, mirrored data", draw=f"{n} steps", premise="mirrored digits are other data")
            for n in (4, 8)
        ),
        *(Question("MLCM", "MLCM, one rate", draw=f"{n} steps") for n in (4, 8)),
        Question("MLCM", "MLCM", draw=PUBLISHED, than_draw="4 steps"),
    ),
)
