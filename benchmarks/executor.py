"""What a sampler costs beside its network: the executor against the same diffusers scheduler.

    python benchmarks/executor.py --output results/executor.json

One 4 x 64 x 64 latent, 8 steps of DPM-Solver++ 2M, a network that returns the same tensor at once. The three loops take
turns in one process, so that a busy machine slows all of them alike; the median over the rounds counts.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from diffusers import DPMSolverMultistepScheduler

from fewstep.files import write_json
from fewstep.plan import Plan
from fewstep.runs.environment import environment
from fewstep.sample import sample

STEPS, SHAPE = 8, (4, 64, 64)


def loops(device: str) -> dict[str, Callable[[], torch.Tensor]]:
    """The three ways to run one sampler from the same noise."""
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DPMSolverMultistepScheduler(**config, timestep_spacing="trailing")
    plan = Plan.from_scheduler(scheduler, STEPS)
    plan_scheduler = plan.to_scheduler()
    start = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
    output = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1)).to(device)

    def with_scheduler(which) -> torch.Tensor:
        which.set_timesteps(STEPS, device=device)
        x = start
        for t in which.timesteps:
            which.scale_model_input(x, t)
            x = which.step(output, t, x, return_dict=False)[0]
        return x

    return {
        "executor": lambda: sample(plan, lambda x, t: output, seeds=[0], shape=SHAPE, state=start, device=device),
        "plan_scheduler": lambda: with_scheduler(plan_scheduler),
        "diffusers": lambda: with_scheduler(scheduler),
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", default="results/executor.json")
    options = parser.parse_args()
    ways = loops(options.device)
    images = {name: way().cpu() for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            before = time.perf_counter()
            way()
            if options.device != "cpu":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - before)
    micro = {name: round(1e6 * statistics.median(values) / STEPS, 1) for name, values in seconds.items()}
    result = {
        **environment(),
        "solver": "DPM-Solver++ 2M",
        "steps": STEPS,
        "shape": [1, *SHAPE],
        "rounds": options.rounds,
        "microseconds_per_step": micro,
        "diffusers_over_executor": round(micro["diffusers"] / micro["executor"], 2),
        "diffusers_over_plan_scheduler": round(micro["diffusers"] / micro["plan_scheduler"], 2),
        "largest_difference": {
            name: float((images[name] - images["diffusers"]).abs().max()) for name in ("executor", "plan_scheduler")
        },
    }
    write_json(options.output, result)
    for name, value in result.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
