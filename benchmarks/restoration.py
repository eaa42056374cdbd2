"""Does a short bridge need fewer steps? Residual shifting, a noise start, regression, interpolation, on digits.

    python benchmarks/restoration.py --folder runs/restoration
    python benchmarks/restoration.py --updates 100 --seeds 0 --output quick.json

Digits of scikit-learn (8 x 8, in [-1, 1]); the picture given is the mean of 2 x 2 pixels with noise of 0.05, enlarged.
One small network (the same for all, told state, picture given and noise level) is trained for the same number of
updates as residual shifting of 4 and of 15 steps, as a conditional diffusion from noise, and as a regression. On digits
that no training saw: PSNR, energy distance and Frechet distance of pixels to the true digits (the null: one half of
them against the other), sharpness (energy of differences over that of the truth), and how far the result is from the
small picture it was made of. The noise start has the better of two grids, by PSNR. Another table runs solvers on the
15-step model.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.denoiser import Guided
from fewstep.executor import sample
from fewstep.files import write_json
from fewstep.metrics.distances import energy_distance, frechet, psnr
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import Cosine, Process, ResidualShift
from fewstep.runs import Run
from fewstep.runs.environment import environment
from fewstep.solvers import SOLVERS, grids
from fewstep.tasks.restoration import anchored, box_downsampling, restored

SAMPLE = Prediction("sample")
SHIFTS = {4: ResidualShift(steps=4, least_noise=0.2), 15: ResidualShift(steps=15)}
NOISY = Cosine()
SMALLER = box_downsampling(2, (1, 8, 8))
NOISE, TRAINED, WIDTH = 0.05, 1400, 192


class Restorer(nn.Module):
    """Clean picture from (state, picture given, noise level): a perceptron that adds to the picture given."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [64 + 64 + 2, WIDTH, WIDTH, WIDTH]
        layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(WIDTH, 64))

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, given: Tensor) -> Tensor:
        level = (sigma / (0.25 * alpha**2 + sigma**2).sqrt()).reshape(-1, 1).expand(len(x), 1)
        entered = (x / (1 + sigma**2).sqrt()).flatten(1)
        told = torch.cat([entered, given.flatten(1), level, (level + 1e-3).log()], 1)
        return given + self.layers(told).reshape(x.shape)


def digits() -> tuple[Tensor, Tensor]:
    """Digits (N, 1, 8, 8) to learn from and to test on."""
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images).float().unsqueeze(1) / 8 - 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[:TRAINED]], images[order[TRAINED:]]


def degraded(clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The small pictures, and enlarged to the size of the result."""
    small = SMALLER.forward(clean)
    small = small + NOISE * torch.randn(small.shape, generator=generator)
    return small, nn.functional.interpolate(small, scale_factor=2, mode="bicubic")


def trained(process: Process | None, clean: Tensor, updates: int, seed: int) -> Restorer:
    """A network for the steps of a process (its state has the picture given as offset if it is a bridge)."""
    torch.manual_seed(seed)
    network, generator = Restorer(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        rows = torch.randint(len(clean), (128,), generator=generator)
        x0 = clean[rows]
        _, given = degraded(x0, generator)
        x, alpha, sigma = _noisy(process, x0, given, generator)
        loss = (network(x, alpha, sigma, given) - x0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def _noisy(process: Process | None, x0: Tensor, given: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    if process is None:  # regression: no state at all
        one = torch.ones(len(x0), 1, 1, 1)
        return torch.zeros_like(x0), 0 * one, one
    bridge = isinstance(process, ResidualShift)
    if bridge:
        t = torch.randint(process.steps, (len(x0),), generator=g).double()
    else:
        t = 0.001 + 0.998 * torch.rand(len(x0), generator=g, dtype=torch.float64)
    alpha, sigma = process.scales(t, x0)
    offset = given if bridge else torch.zeros_like(given)
    noise = torch.randn(x0.shape, generator=g)
    return offset + alpha * (x0 - offset) + sigma * noise, alpha, sigma


def network_of(module: Restorer, process: Process) -> Callable[..., Tensor]:
    def network(x: Tensor, time: Tensor, given: Tensor) -> Tensor:
        alpha, sigma = process.scales(process.from_network_time(time.double()), x)
        return module(x, alpha, sigma, given)

    return network


def shifted(module: Restorer, plan: Plan, process: Process, given: Tensor) -> Tensor:
    return restored(anchored(plan), Guided(network_of(module, process), {"given": given}), given, range(len(given)))


def from_noise(module: Restorer, plan: Plan, given: Tensor) -> Tensor:
    network = Guided(network_of(module, NOISY), {"given": given})
    return sample(plan, network, seeds=range(len(given)), shape=(1, 8, 8))


def numbers(found: Tensor, truth: Tensor, small: Tensor) -> dict[str, float]:
    flat, true = found.flatten(1).double(), truth.flatten(1).double()
    return {
        "psnr": float(psnr((found / 2 + 0.5).clamp(0, 1), truth / 2 + 0.5).mean()),
        "energy_distance": energy_distance(flat, true),
        "frechet": frechet(flat, true),
        "sharpness": float(found.diff(dim=-1).square().mean() / truth.diff(dim=-1).square().mean()),
        "inconsistency": float((SMALLER.forward(found) - small).square().mean().sqrt()),
    }


def times_of(steps: int, trained_steps: int) -> list[int]:
    """Steps of the training, from the last: as far apart as can be, and the first where there is more than one."""
    return sorted({round(t) for t in torch.linspace(trained_steps - 1, 0, steps).tolist()}, reverse=True)


@torch.no_grad()
def systems(modules: dict[str, Restorer], given: Tensor, truth: Tensor, small: Tensor) -> dict[str, dict[str, float]]:
    found = {"bicubic": given, "regression": _regressed(modules["regression"], given)}
    for steps, process in SHIFTS.items():
        plan = SOLVERS["residual_shift"](process, SAMPLE, grids.given(range(steps - 1, -1, -1)))
        found[f"residual shifting, {steps} steps"] = shifted(modules[f"shift {steps}"], plan, process, given)
    for steps in (4, 15, 50):
        choices = []
        for grid in (grids.uniform(NOISY, steps), grids.uniform_lambda(NOISY, steps, 0.02, first=0.99)):
            plan = SOLVERS["ddim"](NOISY, SAMPLE, grid)
            choices.append(from_noise(modules["noise"], plan, given))
        best = max(choices, key=lambda x: numbers(x, truth, small)["psnr"])
        found[f"from noise, {steps} steps"] = best
    for name in ("residual_shift", "ddim", "euler", "dpm_solver_pp_2m", "unipc", "consistency"):
        for steps in (1, 2, 4, 15):
            plan = SOLVERS[name](SHIFTS[15], SAMPLE, grids.given(times_of(steps, 15)))
            found[f"{name}, {steps} of 15"] = shifted(modules["shift 15"], plan, SHIFTS[15], given)
    return {name: numbers(x, truth, small) for name, x in found.items()}


def _regressed(module: Restorer, given: Tensor) -> Tensor:
    one = torch.ones(len(given), 1, 1, 1)
    return module(torch.zeros_like(given), 0 * one, one, given)


def measured(updates: int, seed: int) -> dict[str, dict[str, float]]:
    clean, truth = digits()
    small, given = degraded(truth, torch.Generator().manual_seed(1))
    kinds: dict[str, Process | None] = {"regression": None, "noise": NOISY}
    kinds |= {f"shift {steps}": process for steps, process in SHIFTS.items()}
    modules = {name: trained(process, clean, updates, seed) for name, process in kinds.items()}
    half = len(truth) // 2
    null = {
        "energy_distance": energy_distance(truth[:half].flatten(1).double(), truth[half:].flatten(1).double()),
        "frechet": frechet(truth[:half].flatten(1).double(), truth[half:].flatten(1).double()),
    }
    return {**systems(modules, given, truth, small), "null": null}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("results/restoration.json"))
    parser.add_argument("--folder", type=Path, default=None, help="keeps what is done; a temporary one unless given")
    given = parser.parse_args()
    settings = {"updates": given.updates, "seeds": given.seeds, "noise": NOISE}
    run = Run(given.folder or Path(tempfile.mkdtemp()) / "restoration", settings, quiet=True)
    each = [run.unit(f"seed-{seed}", lambda seed=seed: measured(given.updates, seed)) for seed in given.seeds]
    rows = {}
    for name, first in each[0].items():
        values = {key: torch.tensor([seed[name][key] for seed in each]) for key in first}
        rows[name] = {key: [float(v.mean()), float(v.std(correction=min(1, len(v) - 1)))] for key, v in values.items()}
        print(name, {key: round(value[0], 4) for key, value in rows[name].items()}, flush=True)
    write_json(given.output, {"settings": settings, "systems": rows, "environment": environment()})


if __name__ == "__main__":
    main()
