"""Gauge freedom and conservativity of score networks (arXiv 2402.03845): the closed-form checks, and trained networks.

    python benchmarks/gauge_freedom.py --output results/gauge-freedom.json

Closed form: fields (I + g A) score keep every marginal and are no gradients; a rotation that breaks the gauge condition
does not. Trained: an MLP of free output against the gradient of a scalar MLP, on a circle and a Swiss roll in R^5.
"""

import argparse
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fewstep.denoiser import Denoiser
from fewstep.diagnostics import (
    conservativity,
    flow,
    flow_dimension,
    likelihood_dimension,
    local_spectrum,
    naive_error,
    spectrum_dimension,
    trace_dimension,
    weak_error,
)
from fewstep.files import write_json
from fewstep.metrics.distances import energy_distance
from fewstep.prediction import Prediction
from fewstep.process import VE
from fewstep.runs.environment import environment
from fewstep.testing.mixture import Mixture

PROCESS, EDM = VE(80.0), Prediction("edm", sigma_data=0.7)
THREE = Mixture(
    torch.tensor([0.4, 0.35, 0.25]),
    torch.tensor([[-2.0, 0.0], [1.5, 1.5], [1.0, -2.0]]),
    torch.tensor([[0.25, 0.09], [0.09, 0.36], [0.16, 0.16]]),
)
SIGMA = 0.5
SHARP = 8.0
"""Softplus so sharp is nearly a rectifier: the data have structure far below their size."""
LEVELS = [10.0, 3.0, 1.0, 0.3, 0.15, 0.075]


def turned(denoiser: Denoiser, strength: float) -> Denoiser:
    """(I + strength A) eps with a constant antisymmetric A that turns each pair of neighbouring coordinates."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        eps = denoiser.network(x, t)
        size = eps.shape[1]
        matrix = torch.zeros(size, size).to(eps)
        above = torch.arange(size - 1)
        matrix[above, above + 1], matrix[above + 1, above] = 1.0, -1.0
        return eps + strength * eps @ matrix.T

    return Denoiser(network, denoiser.process, denoiser.prediction)


def rotated(denoiser: Denoiser, strength: float) -> Denoiser:
    """The score plus strength A x / (1 + sigma^2): a rotation about the origin, which the data do not share."""
    matrix = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)

    def network(x: Tensor, t: Tensor) -> Tensor:
        sigma = denoiser.process.from_network_time(t)
        return denoiser.network(x, t) - sigma * strength * (x @ matrix.T) / (1 + sigma**2)

    return Denoiser(network, denoiser.process, denoiser.prediction)


def exact(mixture: Mixture) -> Denoiser:
    return Denoiser(mixture.network(PROCESS, Prediction()), PROCESS, Prediction())


def samples_of(seed: int, count: int = 2000) -> dict[str, dict[str, float]]:
    """Energy distance to data, and how far samples move from those of the true score with the same noise."""
    data = THREE.sample(count, seed=100 + seed)
    start = 20 * torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    fields = {f"gauge {g:g}": turned(exact(THREE), g) for g in (0.0, 0.5, 1.0, 2.0)}
    fields |= {f"rotation {c:g}": rotated(exact(THREE), c) for c in (0.2, 0.5)}
    ends = {name: flow(field, start, (1.0, 20.0), (1.0, 0.02), 120) for name, field in fields.items()}
    found = {
        name: {
            "energy_distance": energy_distance(end, data),
            "moved": float((end - ends["gauge 0"]).norm(dim=1).mean()),
        }
        for name, end in ends.items()
    }
    fresh = [energy_distance(THREE.sample(count, seed=1000 + 10 * seed + k), data) for k in range(8)]
    return found | {"data": {"energy_distance": fresh[0], "largest_of_8": max(fresh)}}


def field_errors(seed: int, count: int = 20000) -> dict[str, dict[str, float]]:
    """Gap, weak and naive error at sigma 0.5."""
    data, true = THREE.sample(count, seed=seed), exact(THREE)
    louder = Denoiser(lambda x, t: 1.2 * true.network(x, t), PROCESS, Prediction())
    fields = {"exact": true, "gauge 0.5": turned(true, 0.5), "gauge 1": turned(true, 1.0)}
    fields |= {"score x 1.2": louder, "rotation 0.5": rotated(true, 0.5)}
    return {name: _errors(field, data, seed) | {"naive": _naive(field, true, data)} for name, field in fields.items()}


def _errors(field: Denoiser, data: Tensor, seed: int) -> dict[str, float]:
    weak = weak_error(field, data, SIGMA, generator=torch.Generator().manual_seed(seed))
    gap = conservativity(field, data[:1000], SIGMA, probes=8, generator=torch.Generator().manual_seed(seed))
    return {
        "gap": gap.gap.mean,
        "shuffled_gap": gap.shuffled.mean,
        "weak": weak.error.mean,
        "weak_floor": weak.floor,
    }


def _naive(field: Denoiser, true: Denoiser, data: Tensor) -> float:
    return naive_error(field, true, data, SIGMA, torch.Generator().manual_seed(0)).mean


# --- dimension in closed form ---------------------------------------------------------------------------------------


def plane() -> Mixture:
    return Mixture.gaussian(torch.zeros(5), torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0]))


def circle(points: int = 128) -> Mixture:
    """A circle of radius one in R^5, as narrow Gaussians closer together than the smallest noise looked at."""
    angle = 2 * math.pi * torch.arange(points, dtype=torch.float64) / points
    means = torch.zeros(points, 5, dtype=torch.float64)
    means[:, 0], means[:, 1] = angle.cos(), angle.sin()
    return Mixture(torch.full((points,), 1 / points), means, torch.full((points, 5), 1e-4))


def dimensions(mixture: Mixture, true: int, seed: int, count: int = 24) -> dict[str, dict[str, object]]:
    """Slopes of the flow's singular values and the denoiser's trace, for gauges of growing strength."""
    found: dict[str, dict[str, object]] = {}
    generator = torch.Generator().manual_seed(seed)
    start = LEVELS[0] * torch.randn(count, 5, generator=generator, dtype=torch.float64)
    for strength in (0.0, 0.5, 1.0):
        field = turned(exact(mixture), strength)
        along = flow_dimension(field, start, LEVELS, 2)
        spread = along.slopes.sort(dim=1).values
        trace = {
            f"{rho:g}": float(trace_dimension(field, mixture.sample(200, seed), rho, generator=generator).mean())
            for rho in (1.0, 0.3, 0.1)
        }
        found[f"gauge {strength:g}"] = {
            "slopes": spread.mean(0).tolist(),
            "margin": float((spread[:, true] - spread[:, true - 1]).mean()),
            "correct": float((along.dimension == true).double().mean()),
            "trace": trace,
        }
    return found


# --- trained networks -----------------------------------------------------------------------------------------------


class Free(nn.Module):
    """An MLP of two hidden layers whose output is any field."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(size + 3, width), nn.Linear(width, width), nn.Linear(width, size)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        hidden = nn.functional.softplus(self.first(_inputs(x, t)), SHARP)
        return self.last(nn.functional.softplus(self.second(hidden), SHARP))


class Gradient(nn.Module):
    """The gradient in x of such an MLP with one output, written out, so that its own derivatives are plain."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(size + 3, width), nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        low = self.first(_inputs(x, t))
        high = self.second(nn.functional.softplus(low, SHARP))
        back = (self.last.weight[0] * (SHARP * high).sigmoid()) @ self.second.weight
        return ((back * (SHARP * low).sigmoid()) @ self.first.weight)[:, : x.shape[1]]


def _inputs(x: Tensor, t: Tensor) -> Tensor:
    time = torch.as_tensor(t).to(x).expand(len(x)).unsqueeze(1)
    return torch.cat([x, time, (4 * time).sin(), (4 * time).cos()], 1)


def on_circle(count: int, generator: torch.Generator) -> Tensor:
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    return torch.stack([angle.cos(), angle.sin(), *torch.zeros(3, count)], 1)


def on_swiss_roll(count: int, generator: torch.Generator) -> Tensor:
    """The two-dimensional roll, about as large as the circle."""
    turn = 1.5 * math.pi * (1 + 2 * torch.rand(count, generator=generator))
    height = 2 * torch.rand(count, generator=generator) - 1
    return torch.stack([turn * turn.cos() / 10, turn * turn.sin() / 10, height, *torch.zeros(2, count)], 1)


def trained(kind: type[nn.Module], draw: Callable[..., Tensor], seed: int, steps: int, width: int) -> Denoiser:
    """An EDM-preconditioned network after Adam steps of batch 256, noise log-uniform in [0.02, 20]."""
    torch.manual_seed(seed)
    network, generator = kind(5, width), torch.Generator().manual_seed(1000 + seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        data = draw(256, generator)
        sigma = 0.02 * 1000 ** torch.rand(256, 1, generator=generator)
        noise = torch.randn(data.shape, generator=generator)
        of_data, of_noise = EDM.weights(torch.ones_like(sigma), sigma)
        scaled = EDM.input_scale(torch.ones_like(sigma), sigma) * (data + sigma * noise)
        loss = (network(scaled, sigma[:, 0].log() / 4) - of_data * data - of_noise * noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return Denoiser(network.eval(), PROCESS, EDM)


def trained_figures(field: Denoiser, draw: Callable[..., Tensor], true: int, seed: int) -> dict[str, float]:
    """Gap, weak error, denoising loss and dimension of a trained network; 100 points for the dimension."""
    generator = torch.Generator().manual_seed(2000 + seed)
    data = draw(20000, generator)
    found = _errors(field, data, seed)
    with torch.no_grad():
        noise = torch.randn(data.shape, generator=generator)
        found["loss"] = float((field.predict(data + SIGMA * noise, SIGMA, "epsilon") - noise).square().mean())
    start = LEVELS[0] * torch.randn(100, 5, generator=generator)
    along = flow_dimension(field, start, LEVELS, 2)
    spread = along.slopes.sort(dim=1).values
    found["flow_correct"] = float((along.dimension == true).double().mean())
    found["flow_margin"] = float((spread[:, true] - spread[:, true - 1]).mean())
    trace = trace_dimension(field, data[:100], 0.1, probes=32, generator=generator)
    found["trace_mean"], found["trace_correct"] = float(trace.mean()), float((trace.round() == true).double().mean())
    return found


def baselines(draw: Callable[..., Tensor], true: int, seed: int) -> dict[str, float]:
    """Dimension from distances alone, at 100 points of 2000."""
    data = draw(2000, torch.Generator().manual_seed(2000 + seed))
    likelihood = likelihood_dimension(data[:100], data)
    local = spectrum_dimension(local_spectrum(data[:100], data))
    return {
        "likelihood_mean": float(likelihood.mean()),
        "likelihood_correct": float((likelihood.round() == true).double().mean()),
        "local_pca_correct": float((local == true).double().mean()),
    }


def spread(runs: list[object]) -> object:
    """The same shape as each run, with {mean, low, high, n} over seeds in the place of numbers."""
    first = runs[0]
    if isinstance(first, dict):
        return {key: spread([run[key] for run in runs]) for key in first}
    if isinstance(first, list):
        return [spread(list(parts)) for parts in zip(*runs, strict=True)]
    return {"mean": sum(runs) / len(runs), "low": min(runs), "high": max(runs), "n": len(runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000, help="training steps per network")
    parser.add_argument("--width", type=int, default=96, help="hidden width of the networks")
    parser.add_argument("--output", default="results/gauge-freedom.json")
    options = parser.parse_args()
    begun, seeds = time.perf_counter(), range(options.seeds)
    shapes = {"circle": (on_circle, 1), "swiss roll": (on_swiss_roll, 2)}
    kinds = {"free": Free, "gradient": Gradient}

    def networks(seed: int) -> dict[str, dict[str, dict[str, float]]]:
        return {
            shape: {
                name: trained_figures(trained(kind, draw, seed, options.steps, options.width), draw, true, seed)
                for name, kind in kinds.items()
            }
            | {"distances": baselines(draw, true, seed)}
            for shape, (draw, true) in shapes.items()
        }

    parts: dict[str, Callable[[int], object]] = {
        "samples": samples_of,
        "fields": field_errors,
        "plane": lambda seed: dimensions(plane(), 2, seed),
        "circle": lambda seed: dimensions(circle(), 1, seed),
        "trained": networks,
    }
    found = {}
    for name, part in parts.items():
        found[name] = spread([part(seed) for seed in seeds])
        print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
    result = {
        "environment": environment(),
        "seeds": options.seeds,
        "steps": options.steps,
        "width": options.width,
        "sigma": SIGMA,
        **found,
        "seconds": round(time.perf_counter() - begun, 1),
    }
    write_json(options.output, result)


if __name__ == "__main__":
    main()
