"""How many network calls each searcher needs to reach the published 50 x 50 grid.

    python benchmarks/search_curves.py --problem digits [--seeds 3] [--out results/search-digits.json]
    python benchmarks/search_curves.py --problem emoji --grid 2500

digits: the exact kernel denoiser on scikit-learn's digits (W4 weights, flow Euler, 4 steps); the objective is minus the
Frechet distance of 256 samples to the training images. emoji: the shipped student in W4A8 under JAQ, 16 prompts. The
noise of the objective is its spread over fresh noise seeds at the grid's optimum, which no searcher can beat.
Every searcher gets the same budget; the curve is the best value so far over network calls, in candidates.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fewstep.files import write_json
from fewstep.plan import Plan
from fewstep.runs import environment
from fewstep.schedules.tuning import SEARCHERS, Family, Objective, Problem, searcher

BUDGET = 125


@dataclass
class DigitsObjective:
    """Minus the Frechet distance (raw pixels) between samples and the training digits; one score per set."""

    network: Any
    train: torch.Tensor
    first_seed: int = 0
    size: int = 256
    per_item: bool = False

    def __call__(self, plan: Plan, items: Any) -> torch.Tensor:
        from fewstep.executor import sample
        from fewstep.metrics.distances import frechet

        seeds = [self.first_seed + i for i in items]
        return torch.tensor(-frechet(sample(plan, self.network, seeds=seeds, shape=(64,)), self.train))


def digits() -> tuple[Plan, Objective, Callable[[int], Objective]]:
    from fewstep.prediction import Prediction
    from fewstep.quant import quantize
    from fewstep.solvers import ddim, grids
    from fewstep.testing.kernel_digits import KernelDenoiser, load_digits

    data = load_digits()
    network = KernelDenoiser(data.train)
    quantize(network, "w4a16", rules=())
    plan = ddim(network.process, Prediction("velocity"), grids.uniform(network.process, 4))
    objective = DigitsObjective(network, data.train)
    return plan, objective, lambda seed: replace(objective, first_seed=10_000 * (seed + 1))


def emoji(prompts: int = 16) -> tuple[Plan, Objective, Callable[[int], Objective]]:
    from fewstep.data.prompts import load_prompts
    from fewstep.pipelines import PipelineSampler, backbone_of, load_pipeline, plan_of
    from fewstep.quant import quantize
    from fewstep.rewards import load_reward
    from fewstep.schedules.tuning import JAQ
    from fewstep.zoo import shipped

    pipe = load_pipeline("emoji-student")
    plan = plan_of(pipe, 4, guidance_scale=1.0)
    quantize(backbone_of(pipe), "w4a8")
    rewards = load_reward(f"clip:{shipped('emoji-clip')}"), load_reward(f"quality:{shipped('emoji-quality')}")
    objective = JAQ(PipelineSampler(pipe), *rewards, load_prompts("emoji:calibration", prompts), [1])
    objective.standardise(plan, Family())

    def other(seed: int) -> Objective:
        return replace(objective, seeds=[100 + seed])

    return plan, objective, other


def curve(problem: Problem) -> list[tuple[float, float]]:
    """(candidates spent, best fully scored value so far)."""
    points, best = [], -float("inf")
    for evaluation in problem.history:
        if evaluation.items == problem.objective.size and evaluation.value > best:
            best = evaluation.value
            points.append((evaluation.spent, best))
    return points


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    plan, objective, fresh = {"digits": digits, "emoji": emoji}[arguments.problem]()
    family = Family("ramp-to-one")
    log = Path(arguments.log) / arguments.problem if arguments.log else None
    start = time.perf_counter()
    full = Problem(plan, family, objective, log=log / "grid.jsonl" if log else None)
    searcher("grid")(full, arguments.grid, 0)
    grid = full.outcome()
    best = family.apply(plan, torch.tensor(grid.theta, dtype=torch.float64))
    with torch.no_grad():
        spread = torch.stack([fresh(s)(best, range(objective.size)).double().mean() for s in range(8)])
    print(
        f"grid {arguments.grid}: {grid.value:.4f} at {grid.theta}, identity {grid.identity_value:.4f}", file=sys.stderr
    )
    rows: dict[str, Any] = {}
    for name in (n for n in SEARCHERS if n != "grid"):
        if name == "gradient" and not objective.per_item:
            continue  # a distance between sets of CPU floats has no gradient here
        curves, values = [], []
        for seed in range(arguments.seeds):
            file = log / f"{name}-{seed}.jsonl" if log else None
            problem = Problem(plan, family, objective, log=file)
            searcher(name)(problem, BUDGET, seed)
            curves.append(curve(problem))
            values.append(problem.outcome().value)
        noise = float(spread.std())
        reached = [next((at for at, v in c if v >= grid.value - noise), None) for c in curves]
        rows[name] = {"curves": curves, "values": values, "reached_grid_within_noise_after": reached}
        print(f"{name:16s} {[round(v, 4) for v in values]} reached after {reached}", file=sys.stderr)
    return {
        "problem": arguments.problem,
        "environment": environment(),
        "budget": BUDGET,
        "seeds": list(range(arguments.seeds)),
        "grid": {"candidates": arguments.grid, "value": grid.value, "theta": grid.theta, "spent": grid.spent},
        "identity": grid.identity_value,
        "noise": float(spread.std()),
        "searchers": rows,
        "seconds": time.perf_counter() - start,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=("digits", "emoji"), default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--grid", type=int, default=2500)
    parser.add_argument("--log", default="", help="folder for score logs: a killed benchmark goes on")
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    found = main(given)
    write_json(given.out or f"results/search-{given.problem}.json", found)
