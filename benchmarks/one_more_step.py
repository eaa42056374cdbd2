"""One More Step and its rivals where a model never saw pure noise, on small grey images; then on the emoji teacher.

    python benchmarks/one_more_step.py
    python benchmarks/one_more_step.py --emoji runs/train-oms

16x16 images of two classes, dark and bright: a brightness drawn anew for each image plus a smooth pattern of zero mean.
The noising keeps alpha_bar D = 19 at its last time, as Stable Diffusion does at 64x64 latents (.00466 x 4096). One
small transformer per way of training; each is sampled with the same 25 DDIM steps and the same seeds. Measured:
Wasserstein-1 distance of image brightness to fresh real images of the class. Three seeds of everything.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import wasserstein_distance
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.data import load_emoji
from fewstep.denoiser import Backbone
from fewstep.executor import Noise, sample
from fewstep.files import read_json, write_json
from fewstep.pipelines import load_pipeline
from fewstep.pipelines.one_more_step import OneMoreStep
from fewstep.pipelines.probing import plan_of_scheduler
from fewstep.prediction import Prediction
from fewstep.process import VPDiscrete
from fewstep.runs.environment import environment
from fewstep.solvers import ddim, grids, with_one_more_step
from fewstep.zoo.dit import class_denoiser

SIDE, CLASSES = 16, ("dark", "bright")
MEANS, SPREAD, PATTERN = (-0.6, 0.2), 0.15, 0.25
SIGNAL = 19.0 / SIDE**2  # alpha_bar at the last time
OFFSET = 0.1  # variance share of offset noise, as its inventor recommends
STEPS, COUNT, BATCH = 25, 400, 128
WAYS = ("base", "data-set mean", "One More Step", "offset noise", "zero-SNR v", "oracle")


def images(count: int, label: int, generator: torch.Generator) -> Tensor:
    """Real images (count, 1, 16, 16): normal brightness around the mean of the class, smooth pattern without mean."""
    brightness = MEANS[label] + SPREAD * torch.randn(count, 1, 1, 1, generator=generator)
    rough = torch.randn(count, 1, 4, 4, generator=generator)
    pattern = F.interpolate(rough, size=SIDE, mode="bilinear")
    return brightness + PATTERN * (pattern - pattern.mean((2, 3), keepdim=True))


def process(zero: bool = False) -> VPDiscrete:
    """Scaled-linear betas, stretched until alpha_bar ends at SIGNAL; or rescaled to end at 0 (arXiv 2305.08891)."""
    base = VPDiscrete.from_betas("scaled_linear", beta_start=0.00085, beta_end=0.012)
    power = math.log(SIGNAL) / math.log(base.alphas_cumprod[-1])
    table = torch.tensor(base.alphas_cumprod, dtype=torch.float64) ** power
    if zero:
        root = table.sqrt()
        table = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return VPDiscrete(tuple(table.tolist()))


def closed_form(label: int) -> dict[str, dict[str, float]]:
    """What perfect networks and an exact ODE solver would give: the coordinate sum(x) / sqrt(D) is a Gaussian.

    The law of that coordinate depends on the class alone, and every other one is independent of it.
    """
    deviation = SPREAD * SIDE
    variance = SIGNAL * deviation**2 + 1 - SIGNAL

    def from_mean(mean: float, std: float) -> dict[str, float]:
        """Brightness when the first state has this mean, in units of alpha, and this standard deviation."""
        shift = math.sqrt(SIGNAL) * (mean - MEANS[label]) * SIDE * deviation / math.sqrt(variance)
        return {"mean": round(MEANS[label] + shift / SIDE, 4), "std": round(std * SPREAD / math.sqrt(variance), 4)}

    noise = math.sqrt(1 - SIGNAL)
    return {
        "base": from_mean(0.0, 1.0),
        "data-set mean": from_mean(sum(MEANS) / 2, noise),
        "One More Step": from_mean(MEANS[label], noise),
        "oracle": from_mean(MEANS[label], math.sqrt(variance)),
    }


@dataclass(frozen=True)
class Model:
    network: nn.Module
    process: VPDiscrete
    prediction: Prediction
    offset: float = 0.0

    def bound(self, label: int) -> Callable[[Tensor, Tensor], Tensor]:
        call = Backbone(self.network)
        return lambda x, t: call(x, t, class_labels=torch.full((len(x),), label))

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """White noise, with offset noise also a common shift of each image."""
        white = torch.randn(shape, generator=generator)
        return white + self.offset**0.5 * torch.randn(shape[0], 1, 1, 1, generator=generator)


def batch(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    data = torch.cat([images(count // 2, label, generator) for label in (0, 1)])
    return data, torch.arange(2).repeat_interleave(count // 2)


def train(model: Model, loss: Callable[[Tensor, Tensor, torch.Generator], Tensor], steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.network.parameters(), lr=2e-3, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(*batch(BATCH, generator), generator).backward()
        torch.nn.utils.clip_grad_norm_(model.network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.network.eval()


def denoising_loss(model: Model) -> Callable[[Tensor, Tensor, torch.Generator], Tensor]:
    """Mean squared error of what the network predicts, at uniform times."""
    bar = torch.tensor(model.process.alphas_cumprod, dtype=torch.float32)

    def loss(clean: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
        time = torch.randint(len(bar), (len(clean),), generator=generator)
        noise = model.noise(clean.shape, generator)
        alpha, sigma = (x.sqrt()[:, None, None, None] for x in (bar[time], 1 - bar[time]))
        a, b = (noise, 0.0) if model.prediction.kind == "epsilon" else (alpha * noise, sigma * clean)
        return (model.network(alpha * clean + sigma * noise, time, label).sample - (a - b)).square().mean()

    return loss


def mean_loss(model: Model) -> Callable[[Tensor, Tensor, torch.Generator], Tensor]:
    """What One More Step trains: v = -x0 in pure noise."""

    def loss(clean: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(clean.shape, generator=generator)
        return (model.network(noise, torch.zeros(len(clean)).long(), label).sample + clean).square().mean()

    return loss


def fresh(kind: str, seed: int, layers: int = 3, zero: bool = False, offset: float = 0.0) -> Model:
    torch.manual_seed(seed)
    network = class_denoiser(96, layers, 3, 1, SIDE, patch=8)  # four tokens: seconds of training
    return Model(network, process(zero), Prediction(kind), offset)


@torch.no_grad()
def brightness(way: str, models: dict[str, Model], label: int, seed: int) -> Tensor:
    """Brightness (COUNT,) of samples of one class; all ways share the same noise."""
    model = models.get(way, models["base"])
    plan = ddim(model.process, model.prediction, grids.trailing(model.process, STEPS))
    first, shape, seeds = plan.rows[0], (1, SIDE, SIDE), range(seed * 10_000, seed * 10_000 + COUNT)
    networks = {"main": model.bound(label)}
    generator = torch.Generator().manual_seed(seed)
    state = Noise(seeds).draw(shape)
    if way == "data-set mean":
        plan = plan.replace(prior_scale=first.sigma, prior_offset=first.alpha * sum(MEANS) / 2)
        state = None
    elif way == "One More Step":
        plan, state = with_one_more_step(plan), None
        networks["oms"] = OneMoreStep(models["psi"].network).bound({"class_labels": torch.full((COUNT,), label)})
    elif way == "offset noise":
        state = model.noise((COUNT, *shape), generator)
    elif way == "oracle":
        state = first.alpha * images(COUNT, label, generator) + first.sigma * state
    return sample(plan, networks, seeds=seeds, shape=shape, state=state).mean((1, 2, 3))


def one_seed(seed: int, steps: int) -> dict[str, dict[str, dict[str, float]]]:
    models = {
        "base": fresh("epsilon", seed),
        "offset noise": fresh("epsilon", seed, offset=OFFSET),
        "zero-SNR v": fresh("v_prediction", seed, zero=True),
        "psi": fresh("v_prediction", seed, layers=1),
    }
    for name, model in models.items():
        is_psi = name == "psi"
        train(model, (mean_loss if is_psi else denoising_loss)(model), steps // 4 if is_psi else steps, seed)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for way in ("real", *WAYS):
        for label, name in enumerate(CLASSES):
            real = images(4000, label, torch.Generator().manual_seed(1000 + seed)).mean((1, 2, 3))
            if way == "real":
                found = images(COUNT, label, torch.Generator().manual_seed(2000 + seed)).mean((1, 2, 3))
            else:
                found = brightness(way, models, label, seed)
            rows.setdefault(way, {})[name] = {
                "mean": round(float(found.mean()), 4),
                "std": round(float(found.std()), 4),
                "wasserstein": round(float(wasserstein_distance(found.numpy(), real.numpy())), 4),
            }
    return rows


@torch.no_grad()
def emoji(folder: str, count: int, steps: int) -> dict[str, object]:
    """Brightness of teacher samples for held-out captions, with and without, against the very pictures."""
    pipe = load_pipeline("emoji-teacher")
    oms = OneMoreStep.from_pretrained(folder)
    pictures, captions = load_emoji("evaluation")
    pictures, captions = pictures[:count].float() / 255, captions[:count]
    real = pictures.mean((1, 2, 3))
    rows: dict[str, object] = {}
    errors: dict[str, Tensor] = {}
    for name, drawn in {"base": pipe, "One More Step": oms.pipeline(pipe)}.items():
        parts = []
        for i in range(0, count, 50):
            generators = Noise(range(i, min(i + 50, count))).generators
            call = {"num_inference_steps": steps, "guidance_scale": 1.5, "generator": generators, "output_type": "pt"}
            parts.append(drawn(captions[i : i + 50], **call).images)
        found = torch.cat(parts).float().mean((1, 2, 3))
        error = errors[name] = (found - real).abs()
        rows[name] = {
            "mean": round(float(found.mean()), 4),
            "std": round(float(found.std()), 4),
            "wasserstein": round(float(wasserstein_distance(found.numpy(), real.numpy())), 4),
            "error_per_caption": round(float(error.mean()), 4),
            "standard_error": round(float(error.std() / count**0.5), 4),
        }
    rows["real"] = {"mean": round(float(real.mean()), 4), "std": round(float(real.std()), 4)}
    change = errors["One More Step"] - errors["base"]
    first = plan_of_scheduler(pipe.scheduler, steps).rows[0]
    pixels = pipe.unet.config.sample_size**2
    parameters = sum(p.numel() for p in oms.network.parameters())
    return {
        "captions": count,
        "steps": steps,
        "guidance": 1.5,
        "alpha_bar_D": round(float(first.alpha) ** 2 * pixels, 3),
        "psi_parameters": parameters,
        "brightness": rows,
        "error_difference": {
            "mean": round(float(change.mean()), 5),
            "standard_error": round(float(change.std() / count**0.5), 5),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="results/one-more-step.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600, help="training steps of each model")
    parser.add_argument("--emoji", default="", help="folder of `fewstep train oms`: measure only this, into the output")
    parser.add_argument("--captions", type=int, default=120)
    options = parser.parse_args()
    began = time.perf_counter()
    if options.emoji:
        measured = {"environment": environment(), **emoji(options.emoji, options.captions, 10)}
        measured["seconds"] = round(time.perf_counter() - began, 1)
        write_json(options.output, {**read_json(options.output), "emoji": measured})
        return
    seeds = []
    for seed in range(options.seeds):
        seeds.append(one_seed(seed, options.steps))
        print(seed, {way: [row["wasserstein"] for row in rows.values()] for way, rows in seeds[-1].items()}, flush=True)
    result = {
        "environment": environment(),
        "settings": {
            "side": SIDE,
            "means": MEANS,
            "spread": SPREAD,
            "alpha_bar_D": 19.0,
            "offset": OFFSET,
            "sampling_steps": STEPS,
            "samples": COUNT,
            "training_steps": options.steps,
        },
        "closed_form": {name: closed_form(label) for label, name in enumerate(CLASSES)},
        "seeds": seeds,
        "emoji": None,
        "seconds": round(time.perf_counter() - began, 1),
    }
    write_json(options.output, result)


if __name__ == "__main__":
    main()
