"""Updates that an exact teacher of the easier scale saves: linear students of Gaussian signals, x2 -> x4 -> x8.

    python benchmarks/yonos_exact.py
    python benchmarks/yonos_exact.py --seeds 3 --output quick.json

Signals of 32 numbers with covariance exp(-|i - j| / 6); a picture of scale f holds the means of f neighbours. The one
step starts from noise alone, so the best student is E[x | picture], a matrix. It is trained by stochastic gradients
(batches of 16, a rate of 0.02 that falls as one over the root of the updates) on the signals themselves or on what the
exact model of the easier scale says of them, with equal batches, from the easier model's own weights. Noted is the mean
square distance from the best student, per number, along the way. The part of the targets' variance that is left says
how much is saved once the start is forgotten: excess errors have that ratio.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.files import write_json
from fewstep.metrics.intervals import seed_interval
from fewstep.runs.environment import environment

SIZE, BATCH, RATE = 32, 16, 0.02
POINTS = (0, 100, 300, 1000, 3000, 10_000)
PLACES = torch.arange(SIZE).double()
COVARIANCE = torch.exp(-(PLACES[:, None] - PLACES).abs() / 6)
ROOT = torch.linalg.cholesky(COVARIANCE)


def reduction(factor: int) -> Tensor:
    return torch.eye(SIZE // factor).double().repeat_interleave(factor, 1) / factor


def best(factor: int) -> tuple[Tensor, float]:
    """E[x | y] = W y, and the variance that is left, per number."""
    a = reduction(factor)
    gain = torch.linalg.solve(a @ COVARIANCE @ a.T, a @ COVARIANCE).T
    return gain, float((COVARIANCE - gain @ a @ COVARIANCE).trace()) / SIZE


def excess(student: Tensor, factor: int) -> float:
    a, (gain, _) = reduction(factor), best(factor)
    away = (student - gain) @ a
    return float((away @ COVARIANCE @ away.T).trace()) / SIZE


def curve(easier: int, harder: int, taught: bool, seed: int) -> list[float]:
    g = torch.Generator().manual_seed(seed)
    teacher, small = best(easier)[0] @ reduction(easier), reduction(harder)
    # the easier model's weights, shown the harder picture with every number repeated
    student = best(easier)[0] @ torch.eye(SIZE // harder).double().repeat_interleave(harder // easier, 0)
    found = [excess(student, harder)]
    for step in range(1, POINTS[-1] + 1):
        x = torch.randn(BATCH, SIZE, generator=g, dtype=torch.float64) @ ROOT.T
        y, target = x @ small.T, x @ teacher.T if taught else x
        rate = RATE / (1 + step / 100) ** 0.5
        student = student - rate * (y @ student.T - target).T @ y / BATCH
        if step in POINTS:
            found.append(excess(student, harder))
    return found


def summary(values: list[float]) -> dict[str, Any]:
    interval = seed_interval(torch.tensor(values, dtype=torch.float64))
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--output", type=Path, default=Path("results/yonos-exact.json"))
    given = parser.parse_args()
    began, stages = time.monotonic(), {}
    for easier, harder in ((2, 4), (4, 8)):
        arms = {
            name: [curve(easier, harder, taught, seed) for seed in range(given.seeds)]
            for name, taught in (("direct", False), ("distilled", True))
        }
        ratios = [d[-1] / o[-1] for d, o in zip(arms["distilled"], arms["direct"], strict=True)]
        stages[f"x{easier} to x{harder}"] = {
            "excess": {name: [summary(list(v)) for v in zip(*runs, strict=True)] for name, runs in arms.items()},
            "ratio_at_the_end": summary(ratios),
            "variance_left": 1 - best(easier)[1] / best(harder)[1],
        }
    settings = {"points": POINTS, "batch": BATCH, "rate": RATE, "seeds": given.seeds}
    document = {"settings": settings, "stages": stages, "seconds": time.monotonic() - began}
    write_json(given.output, {**document, "environment": environment()})


if __name__ == "__main__":
    main()
