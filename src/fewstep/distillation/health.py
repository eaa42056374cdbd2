"""What the numbers of a training say about it, and what to change: the four ways in which distillation goes wrong.

Numbers are named as the engine names them: `TERM/gap` and `TERM/cosine` compare critic and teacher, `samples/spread` is
the standard deviation of the student's samples, `adversary/real` and `adversary/fake` are logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

Records = Sequence[Mapping[str, float]]
LEAST = 8
"""Records below which nothing is said."""


@dataclass(frozen=True)
class Trend:
    """Mean of a number in the first and in the last quarter of the training."""

    first: float
    last: float

    @property
    def ratio(self) -> float:
        """Last over first."""
        return self.last / self.first if self.first else float("inf") if self.last else 1.0


def trend(history: Records, name: str) -> Trend | None:
    """The trend of the numbers of that name, averaged over all terms that have one; None where none has."""
    values = []
    for line in history:
        found = [v for key, v in line.items() if key == name or key.endswith(f"/{name}")]
        if found:
            values.append(fmean(found))
    if len(values) < LEAST:
        return None
    quarter = max(2, len(values) // 4)
    return Trend(fmean(values[:quarter]), fmean(values[-quarter:]))


def advice(history: Records) -> list[str]:
    """Sentences on what looks wrong, worst first; empty where nothing does."""
    if len(history) < LEAST:
        return []
    return [line for rule in (_collapse, _critic, _adversary, _explosion) for line in rule(history)]


def _collapse(history: Records) -> list[str]:
    spread = trend(history, "spread")
    if spread is None or spread.ratio > 0.5:
        return []
    return [
        f"Collapse: the spread of the student's samples fell from {spread.first:.3g} to {spread.last:.3g}. Lower the "
        "learning rate or the guidance, give the critic more updates, or train on data with an adversary."
    ]


def _critic(history: Records) -> list[str]:
    """Gap up and cosine down: the critic lags. Gap up, cosine flat and spread up: too much guidance."""
    gap, cosine, spread = (trend(history, name) for name in ("gap", "cosine", "spread"))
    if gap is None or cosine is None or gap.ratio < 1.5:
        return []
    grown = f"the gap between critic and teacher grew from {gap.first:.3g} to {gap.last:.3g}"
    if cosine.last < cosine.first - 0.02:
        return [
            f"The critic lags behind the student: {grown} and their cosine fell from {cosine.first:.3f} to "
            f"{cosine.last:.3f}. Raise the critic's ratio or learning rate, or lower the student's."
        ]
    if spread is not None and spread.ratio > 1.2:
        return [
            f"Too much guidance: {grown} at an equal cosine while the samples' spread rose from {spread.first:.3g} to "
            f"{spread.last:.3g}. Lower the guidance of the teacher."
        ]
    return []


def _adversary(history: Records) -> list[str]:
    real, fake = trend(history, "real"), trend(history, "fake")
    if real is None or fake is None or real.last - fake.last < 5:
        return []
    return [
        f"The adversary dominates: its logits are {real.last:.2f} for real and {fake.last:.2f} for the student's "
        "samples. Lower its learning rate or the weight of the adversarial term, or raise its penalty."
    ]


def _explosion(history: Records) -> list[str]:
    found = []
    for name in sorted({key for line in history for key in line if key.endswith("gradient")}):
        norm = trend(history, name)
        if norm is not None and norm.ratio > 20 and norm.last > 1:
            whose = name.removesuffix("gradient").removesuffix("/") or "student"
            found.append(
                f"The gradient of the {whose} grew from {norm.first:.3g} to {norm.last:.3g}: the training is about to "
                "diverge. Lower the learning rate or clip_norm, or warm up longer."
            )
    return found
