"""Phantoms from few measurements: k-space and tomography by any plan, the doubt of repeated draws, and anomalies.

    python benchmarks/medical.py --folder runs/medical
    python benchmarks/medical.py --updates 20 --count 4 --output quick.json

Random phantoms like Shepp and Logan's (32 x 32, no patients). One small network is trained on them without condition.
Held-out phantoms are reconstructed from a quarter of k-space (the middle lines and some others) and from 12 angles of
120 degrees, with noise, by two guidances in plans of 8 and 20 evaluations, beside what needs no model (zeros filled
in; the pseudo-inverse). Several draws of each say how sure the model is: the calibration curve, its distance from the
diagonal, and how the deviation of the draws ranks the error. Anomalies are blobs in held-out phantoms: areas under
the curve, pixel by pixel, of the map, and of the smoothed picture's own difference, which needs no model.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.denoiser import Denoiser
from fewstep.executor import sample
from fewstep.files import read_tensors, write_json, write_tensors
from fewstep.metrics.distances import psnr
from fewstep.metrics.paired import ssim
from fewstep.prediction import Prediction
from fewstep.process import Cosine
from fewstep.runs import Run
from fewstep.runs.environment import environment
from fewstep.solvers import SOLVERS, grids
from fewstep.tasks.medical import anomaly_map, calibration_curve, calibration_error, random_phantoms
from fewstep.tasks.medical.uncertainty import LEVELS
from fewstep.tasks.restoration import (
    GUIDANCES,
    LinearOperator,
    Measurement,
    fourier_mask,
    posterior,
    radon,
    written_out,
)

SIDE, SHAPE, NOISE, DRAWS = 32, (1, 32, 32), 0.05, 19
PROCESS, PREDICTION = Cosine(), Prediction("v_prediction")
STEPS, RULES = (8, 20), ("pigdm", "ddnm")


class Network(nn.Module):
    """v prediction of single-channel pictures at network times in [0, 1]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(4, width, 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in (1, 2, 4, 2, 1))
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, 2 * width)) for _ in self.blocks
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in self.blocks)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        t = PROCESS.from_network_time(time.double()).reshape(-1, 1).to(x).expand(len(x), 1)
        told = torch.cat([t, (3 * t).sin(), (9 * t).cos()], 1)
        hidden = self.enter(F.pixel_unshuffle(x, 2))
        for block, level, norm in zip(self.blocks, self.levels, self.norms, strict=True):
            scale, shift = level(told)[..., None, None].chunk(2, 1)
            hidden = hidden + block(F.silu(norm(hidden) * (1 + scale) + shift))
        return F.pixel_shuffle(self.leave(hidden), 2)


def phantoms(count: int, seed: int) -> Tensor:
    """In [-1, 1]."""
    return 2 * random_phantoms(count, (SIDE, SIDE), torch.Generator().manual_seed(seed)) - 1


def trained(updates: int) -> Network:
    torch.manual_seed(0)
    network, data, g = Network(), phantoms(2000, 0), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, updates + 1, pct_start=0.1)
    for _ in range(updates):
        x = data[torch.randint(len(data), (32,), generator=g)]
        t = 0.001 + 0.998 * torch.rand(len(x), generator=g, dtype=torch.float64)
        noise = torch.randn(x.shape, generator=g)
        alpha, sigma = PROCESS.scales(t, x)
        wanted = alpha * noise - sigma * x
        loss = (network(PROCESS.add_noise(x, noise, t), PROCESS.network_time(t)) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(False)


def operators() -> dict[str, LinearOperator]:
    lines = torch.zeros(SIDE)
    lines[[0, 1, 2, -1, -2, 6, 11, -8]] = 1
    mask = lines.unsqueeze(1).expand(SIDE, SIDE)
    tomography = written_out(radon(torch.linspace(0, 110, 12), SHAPE))
    return {"a quarter of k-space": fourier_mask(mask, SHAPE), "12 angles of 120 degrees": tomography}


def shown(x: Tensor) -> Tensor:
    return (x / 2 + 0.5).clamp(0, 1)


def nearness(found: Tensor, truth: Tensor) -> dict[str, float]:
    x, y = shown(found), shown(truth)
    return {"psnr": float(psnr(x, y).mean()), "ssim": float(ssim(x, y).mean())}


def reconstructed(network: Network, operator: LinearOperator, rule: str, steps: int, count: int) -> dict[str, Any]:
    truth = phantoms(count, 1)
    seen = operator.forward(truth)
    seen = seen + NOISE * torch.randn(seen.shape, generator=torch.Generator().manual_seed(2))
    plan = SOLVERS["ddim"](PROCESS, PREDICTION, grids.uniform_lambda(PROCESS, steps, 0.02, first=0.99), eta=1.0)
    denoiser = Denoiser(network, PROCESS, PREDICTION)
    measured = Measurement(operator, seen.repeat(DRAWS, *[1] * (seen.ndim - 1)), NOISE)
    drawn = sample(
        plan, posterior(denoiser, measured, GUIDANCES[rule]()).network, seeds=range(DRAWS * count), shape=SHAPE
    )
    draws = drawn.unflatten(0, (DRAWS, count))
    error, doubt = (draws.mean(0) - truth).abs().flatten(), draws.std(0).flatten()
    ranks = torch.stack([v.argsort().argsort().double() for v in (error, doubt)])
    return {
        "one draw": nearness(draws[0], truth),
        "mean of draws": nearness(draws.mean(0), truth),
        "calibration": calibration_curve(draws, truth).tolist(),
        "calibration_error": calibration_error(draws, truth),
        "rank_correlation": float(torch.corrcoef(ranks)[0, 1]),
    }


def without(operator: LinearOperator, count: int) -> dict[str, float]:
    truth = phantoms(count, 1)
    seen = operator.forward(truth)
    seen = seen + NOISE * torch.randn(seen.shape, generator=torch.Generator().manual_seed(2))
    if operator.name == "radon":  # small singular values would multiply the noise
        ridge = operator.spectral(lambda s: 1 / (s.square() + 1.0), operator.adjoint(seen))
        return nearness(ridge, truth)
    return nearness(operator.pinv(seen), truth)


def anomalies(network: Network, count: int) -> dict[str, float]:
    """Areas under the curve over the pixels of all pictures, by where the reconstruction begins."""
    healthy, g = phantoms(count, 3), torch.Generator().manual_seed(4)
    places = torch.linspace(-1, 1, SIDE)
    sick, marks = healthy.clone(), []
    for picture in sick:
        row, column = (0.7 * torch.rand(2, generator=g) - 0.35).tolist()
        blob = ((places[:, None] - row) ** 2 + (places - column) ** 2) < 0.12**2
        picture[0][blob] += 0.4
        marks.append(blob)
    labels = torch.stack(marks).flatten().numpy()
    plan = SOLVERS["ddim"](PROCESS, PREDICTION, grids.uniform_lambda(PROCESS, 16, 0.02, first=0.99))
    found = {}
    for row in (4, 6, 8, 10, 12):
        score = anomaly_map(plan, network, sick, seeds=range(count), row=row, draws=4)
        found[f"noise of {plan.rows[row].sigma:.2f}"] = float(roc_auc_score(labels, score.flatten().numpy()))
    away = (sick - F.avg_pool2d(sick, 5, 1, 2, count_include_pad=False)).abs()
    return {**found, "without a model": float(roc_auc_score(labels, away.flatten().numpy()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=1200)
    parser.add_argument("--count", type=int, default=8, help="phantoms that are reconstructed")
    parser.add_argument("--output", type=Path, default=Path("results/medical.json"))
    parser.add_argument("--folder", type=Path, default=None, help="keeps what is done; a temporary one unless given")
    given = parser.parse_args()
    settings = {"updates": given.updates, "count": given.count, "noise": NOISE, "draws": DRAWS, "levels": LEVELS}
    run = Run(given.folder or Path(tempfile.mkdtemp()) / "medical", settings, quiet=True)

    def load(file: Path) -> Network:
        network = Network()
        network.load_state_dict(read_tensors(file))
        return network.eval().requires_grad_(False)

    def save(network: Network, file: Path) -> None:
        write_tensors(file, dict(network.state_dict()))

    network = run.unit("network", lambda: trained(given.updates), save=save, load=load, artifact="network.safetensors")
    rows, bare = [], {}
    for place, operator in operators().items():
        bare[place] = without(operator, given.count)
        for rule in RULES:
            for steps in STEPS:
                unit = f"{place}/{rule}/{steps}".replace(" ", "-")
                work = lambda r=rule, s=steps, o=operator: reconstructed(network, o, r, s, given.count)  # noqa: E731
                rows.append({"operator": place, "guidance": rule, "steps": steps, **run.unit(unit, work)})
                print(rows[-1], flush=True)
    areas = run.unit("anomalies", lambda: anomalies(network, 4 * given.count))
    document = {"settings": settings, "without": bare, "rows": rows, "anomalies": areas}
    write_json(given.output, {**document, "seconds": sum(run.seconds().values()), "environment": environment()})


if __name__ == "__main__":
    main()
