"""What a sampler costs beside its network: the executor against every diffusers scheduler it can stand in for.

    python benchmarks/executor.py --output results/executor.json

One 4 x 64 x 64 latent, a network that returns the same tensor at once. For each scheduler three loops take turns in one
process, so that a busy machine slows all of them alike: diffusers, the same plan as a diffusers scheduler, and the
executor; the median over the rounds counts. Then the time to build the table of every solver at 50 steps.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from clock import in_turn

from fewstep.errors import FewstepError
from fewstep.executor import sample
from fewstep.files import write_json
from fewstep.pipelines.probing import plan_of_scheduler
from fewstep.pipelines.scheduler import PlanScheduler
from fewstep.prediction import Prediction
from fewstep.process import VPDiscrete
from fewstep.runs.environment import environment
from fewstep.solvers import SOLVERS, grids

SHAPE, STEPS, BUILT = (4, 64, 64), 8, 50
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {**BETAS, "clip_sample": False},
    "EulerDiscreteScheduler": BETAS,
    "EulerAncestralDiscreteScheduler": BETAS,
    "HeunDiscreteScheduler": BETAS,
    "LMSDiscreteScheduler": BETAS,
    "PNDMScheduler": {**BETAS, "skip_prk_steps": True},
    "DPMSolverMultistepScheduler": BETAS,
    "DPMSolverSinglestepScheduler": BETAS,
    "DEISMultistepScheduler": BETAS,
    "UniPCMultistepScheduler": BETAS,
    "LCMScheduler": {**BETAS, "clip_sample": False},
    "TCDScheduler": {**BETAS, "clip_sample": False},
    "FlowMatchEulerDiscreteScheduler": {},
    "FlowMatchHeunDiscreteScheduler": {},
}


def loops(name: str, device: str) -> tuple[int, dict[str, Callable[[], torch.Tensor]]]:
    """The number of evaluations, and three ways to run one sampler from the same noise."""
    scheduler = getattr(diffusers, name)(**SCHEDULERS[name])
    plan = plan_of_scheduler(scheduler, STEPS)
    start = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
    output = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1)).to(device)

    def with_scheduler(which: Any, steps: int) -> torch.Tensor:
        which.set_timesteps(steps, device=device)
        x, extra = (
            start * which.init_noise_sigma,
            {"generator": torch.Generator().manual_seed(0)} if plan.stochastic else {},
        )
        for t in which.timesteps:
            if hasattr(which, "scale_model_input"):
                which.scale_model_input(x, t)
            x = which.step(output, t, x, return_dict=False, **extra)[0]
        return x

    ours = PlanScheduler.from_plan(plan)
    return plan.steps, {
        "executor": lambda: sample(plan, lambda x, t: output, seeds=[0], shape=SHAPE, state=start, device=device),
        "plan_scheduler": lambda: with_scheduler(ours, plan.steps),
        "diffusers": lambda: with_scheduler(scheduler, STEPS),
    }


def overhead(name: str, rounds: int, device: str) -> dict[str, Any]:
    """Microseconds per evaluation of the three loops, and how they compare."""
    evaluations, ways = loops(name, device)
    times = in_turn(ways, rounds, device)
    micro = {way: round(1e3 * statistics.median(taken) / evaluations, 1) for way, taken in times.items()}
    return {
        "microseconds_per_evaluation": micro,
        "diffusers_over_executor": round(micro["diffusers"] / micro["executor"], 2),
        "diffusers_over_plan_scheduler": round(micro["diffusers"] / micro["plan_scheduler"], 2),
    }


def building(rounds: int = 7) -> dict[str, float]:
    """Milliseconds to build the plan of every solver at 50 steps of Stable Diffusion's process."""
    process, found = VPDiscrete.from_betas(**BETAS_OF), {}
    for name, solver in SOLVERS.items():
        times = []
        for _ in range(rounds):
            before = time.perf_counter()
            try:
                solver(process, Prediction("epsilon"), grids.trailing(process, BUILT))
            except FewstepError:
                solver(process, Prediction("epsilon"), grids.distilled(process, BUILT))
            times.append(time.perf_counter() - before)
        found[name] = round(1e3 * statistics.median(times), 1)
    return found


BETAS_OF = {"schedule": "scaled_linear", "beta_start": BETAS["beta_start"], "beta_end": BETAS["beta_end"]}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", default="results/executor.json")
    options = parser.parse_args()
    rows = {name: overhead(name, options.rounds, options.device) for name in SCHEDULERS}
    ratios = [row["diffusers_over_executor"] for row in rows.values()]
    result = {
        **environment(),
        "steps": STEPS,
        "shape": [1, *SHAPE],
        "rounds": options.rounds,
        "schedulers": rows,
        "smallest_ratio": min(ratios),
        "median_ratio": round(statistics.median(ratios), 2),
        "milliseconds_to_build_50_steps": building(),
    }
    write_json(options.output, result)
    for name, row in rows.items():
        print(f"{name}: {row}")
    print(result["milliseconds_to_build_50_steps"])


if __name__ == "__main__":
    main()
