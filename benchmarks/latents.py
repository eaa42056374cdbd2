"""Generators in a VAE's latents, in frozen features (RAE) and in frozen features with a residual (SVG), on digits.

    python benchmarks/latents.py
    python benchmarks/latents.py --seeds 0 1 --scale 0.1 --output quick.json

2,000 of the shipped test images of MNIST train a self-supervised encoder, the decoders of RAE and SVG, and in each
latent the same transformer by the same updates; 500 are held out for reconstructions. The VAE is the shipped one: its
decoder has the same blocks, but was trained longer and on the 60,000 other digits. The features of the shipped
classifier, which was trained on those too and takes part in nothing else, judge all of them.

a. flow: the Frechet distance of samples at few Euler steps after few and after many updates (arXiv 2510.15301).
b. MeanFlow at 1 and 2 steps from the flow's weights: alone, and by the stages of MF-RAE (arXiv 2511.13019).
c. exact: Euler steps along the exact velocity where the blobs of a class lie together, and where they do not.
"""

from __future__ import annotations

import argparse
import time
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.data import load_mnist
from fewstep.distillation.method import method
from fewstep.executor import sample
from fewstep.files import read_json, write_json
from fewstep.jobs.context import Items
from fewstep.jobs.distill.context import DistillContext
from fewstep.jobs.distill.networks import drawable, student_of
from fewstep.jobs.distill.training import draw
from fewstep.jobs.distill.training import train as train_student
from fewstep.jobs.zoo import run as train
from fewstep.latents import load_latent
from fewstep.metrics.classifier import load_classifier
from fewstep.metrics.distances import energy_distance, frechet, psnr
from fewstep.metrics.features import FeatureNet
from fewstep.metrics.intervals import seed_interval
from fewstep.pipelines import PipelineSampler, load_pipeline, process_of
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.recipes import load
from fewstep.runs import Run
from fewstep.runs.environment import environment
from fewstep.solvers import SOLVERS, grids
from fewstep.testing.mixture import Mixture
from fewstep.zoo import shipped

TRAIN, SIDE, DRAWN = 2000, 32, 500
STEPS, FEW = {"flow-short": (5,), "flow": (5, 20)}, (1, 2)
DECODER = "channels=[16,32,32,32]"  # as the shipped VAE
UPDATES = {"encoder": 400, "rae": 500, "svg": 500, "flow-short": 200, "flow": 800, "mean-flow": 150}
STAGE = {
    # tokens no wider than the transformer that is to model them (arXiv 2510.11690)
    "encoder": ["batch=64", "warmup=50", "width=48"],
    "rae": ["batch=24", DECODER, "ema=0.99", "warmup=50"],
    "svg": ["batch=24", DECODER, "ema=0.99", "warmup=50"],
}
VAE = "mnist-dit"
FLOW = ["objective=flow", "batch=64", "width=64", "layers=3", "heads=4", "learning_rate=5e-3", "ema=0.99", "warmup=50"]
STUDENT = {"batch": 32, "learning_rate": 1e-3, "ema": 0.99, "warmup": 20}
METHODS = {"mean_flow": {}, "mf_rae": {}}


class Bench:
    """What the parts share: the run, the pictures, the judge, and how long everything is trained."""

    def __init__(self, run: Run, scale: float) -> None:
        self.run, self.updates = run, {name: max(2, round(scale * n)) for name, n in UPDATES.items()}
        images, captions = load_mnist()
        self.images, self.labels = images, torch.tensor([int(caption.split()[1]) for caption in captions])
        self.data = run.path / "artifacts" / "digits.npz"
        self.data.parent.mkdir(parents=True, exist_ok=True)
        np.savez(self.data, images=images[:TRAIN].permute(0, 2, 3, 1).numpy(), captions=np.array(captions[:TRAIN]))
        self.judge = load_classifier(shipped("mnist-features"))
        self.features = FeatureNet("mnist-features", self.judge.features)

    @cached_property
    def real(self) -> Tensor:
        return self.features(self.images)

    def latent(self, name: str) -> str:
        return VAE if name == "vae" else str(self.folder(name))

    def folder(self, name: str) -> Path:
        return self.run.path / "artifacts" / "models" / name

    def trained(self, name: str, stage: str, settings: list[str]) -> dict[str, Any]:
        """Train a stage into the folder of that name, once; a killed one goes on from its checkpoint."""

        def compute() -> dict[str, Any]:
            own = [f"data={self.data}", f"size={SIDE}", "device=cpu", "precision=float32", *settings]
            train(stage, own, self.folder(name))
            record = read_json(self.folder(name) / "training.json")
            return {"settings": settings, "steps": record["steps"], "seconds": record["seconds"]}

        return self.run.unit(name, compute)

    def quality(self, pictures: Tensor, labels: Tensor) -> dict[str, float]:
        features = self.features(pictures)
        seen = self.judge.head(features.float()).argmax(1)
        return {"frechet": frechet(features, self.real), "right": float((seen == labels).double().mean())}


# --- autoencoders ----------------------------------------------------------------------------------------------------


def autoencoders(bench: Bench) -> dict[str, Any]:
    made = read_json(shipped(VAE).parent / "vae.json")
    rows: dict[str, Any] = {"vae": {"shipped": VAE, "steps": made["steps"], "batch": made["settings"]["batch"]}}
    for name, settings in STAGE.items():
        own = [*settings, f"steps={bench.updates[name]}"]
        if name in ("rae", "svg"):
            own.append(f"encoder={bench.folder('encoder')}")
        rows[name] = bench.trained(name, name, own)
    for name in ("vae", "rae", "svg"):
        rows[name] |= bench.run.unit(f"{name}-reconstruction", partial(reconstruction, bench, name))
    return rows


@torch.no_grad()
def reconstruction(bench: Bench, name: str) -> dict[str, Any]:
    latent = load_latent(bench.latent(name))
    held, labels = bench.images[TRAIN:].float() / 255, bench.labels[TRAIN:]
    codes = latent.encode(held)
    again = latent.decode(codes)
    learned = latent.encode(bench.images[:TRAIN].float() / 255).flatten(1)
    return {
        "shape": list(latent.shape),
        "shift": latent.shift,
        "decoder_parameters": sum(p.numel() for p in latent.module.decoder.parameters()),
        "psnr": float(psnr(again, held).mean()),
        "probe": probe(learned, bench.labels[:TRAIN], codes.flatten(1), labels),
        "original": bench.quality(held, labels),
        **bench.quality(again, labels),
    }


def probe(x: Tensor, labels: Tensor, held: Tensor, wanted: Tensor) -> float:
    """Share of held-out classes that ridge regression of one-hot labels on the latents finds."""
    ones = [torch.cat([part.double(), torch.ones(len(part), 1, dtype=torch.float64)], 1) for part in (x, held)]
    gram = ones[0].T @ ones[0] + len(x) * 0.1 * torch.eye(ones[0].shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, ones[0].T @ torch.nn.functional.one_hot(labels, 10).double())
    return float(((ones[1] @ weights).argmax(1) == wanted).double().mean())


# --- a. flows --------------------------------------------------------------------------------------------------------


def flow(bench: Bench, name: str, latent: str, seed: int) -> dict[str, Any]:
    """Train the transformer in a latent and draw with few steps."""
    folder = f"{name}-{latent}-{seed}"
    own = [*FLOW, f"vae={bench.latent(latent)}", f"steps={bench.updates[name]}", f"seed={seed}"]
    return {
        **bench.trained(folder, "dit", own),
        "steps": bench.run.unit(f"{folder}-drawn", partial(drawn, bench, folder, STEPS[name])),
    }


@torch.no_grad()
def drawn(bench: Bench, folder: str, counts: tuple[int, ...]) -> dict[str, Any]:
    pipe = load_pipeline(bench.folder(folder))
    process, prediction = process_of(pipe)
    labels = torch.arange(DRAWN) % 10
    found = {}
    for steps in counts:
        plan = SOLVERS["ddim"](process, prediction, grids.uniform(process, steps))
        pictures = PipelineSampler(pipe, 1.0, batch=250)(plan, labels.tolist(), list(range(DRAWN)))
        found[str(steps)] = bench.quality(pictures, labels)
    return found


# --- b. MeanFlow -----------------------------------------------------------------------------------------------------


def mean_flow(bench: Bench, name: str, latent: str, seed: int) -> dict[str, Any]:
    """Distil the flow of that latent and seed, and draw with 1 and 2 steps."""
    folder, updates = f"{name}-{latent}-{seed}", bench.updates["mean-flow"]
    data = {"source": str(bench.data), "size": SIDE} if name == "mean_flow" else {"count": 500}
    wanted = {
        "model": str(bench.folder(f"flow-{latent}-{seed}")), "method": name, "options": METHODS[name], "steps": 1,
        "guidance": 1.0, "batch": 250, "teacher": {"steps": 16, "solver": "ddim"}, "data": data, "device": "cpu",
        "train": {**STUDENT, "steps": updates, "seed": seed, "checkpoint_every": 50},
    }  # fmt: skip

    def compute() -> dict[str, Any]:
        recipe = load("distill", [f"{key}={_yaml(value)}" for key, value in wanted.items()])
        with Run(bench.folder(folder), recipe.plain(), quiet=True) as own:
            job = DistillContext.open(recipe, own)
            job.check()
            trained = train_student(job)
            record = trained[0]["record"]
            steps = {str(n): few(bench, job, trained[0]["tensors"], n) for n in FEW}
        norms = [line["gradient"] for line in record["history"]]
        return {
            "updates": record["steps"],
            "seconds": record["seconds"],
            "largest_gradient": max(norms),
            "steps": steps,
        }

    return bench.run.unit(folder, compute)


def few(bench: Bench, job: DistillContext, tensors: dict[str, Tensor], steps: int) -> dict[str, float]:
    """A student of average velocities runs in any number of steps."""
    chosen = method(job.recipe.method, job.process, **{**job.recipe.method_options(), "steps": steps})
    student = drawable(student_of(job.pipe, chosen, job.recipe.train, tensors), chosen, job.process)
    labels = torch.arange(DRAWN) % 10
    plan = chosen.steps.plan(job.process, job.prediction)
    return bench.quality(draw(job, student, plan, Items(labels.tolist(), list(range(DRAWN)))), labels)


def _yaml(value: Any) -> str:
    import json

    return json.dumps(value)


# --- c. exact --------------------------------------------------------------------------------------------------------


def blobs(dimension: int, separated: bool, seed: int, classes: int = 10, each: int = 10) -> Tensor:
    """Centres (classes, each, D) of unit variance in all: about the mean of their class, or of one law for all."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, 1, dimension, generator=generator, dtype=torch.float64)
    own = torch.randn(classes, each, dimension, generator=generator, dtype=torch.float64)
    return 0.9**0.5 * means + 0.3 * own if separated else 0.99**0.5 * own


def exact(dimension: int, separated: bool, seed: int, steps: tuple[int, ...], classes: int = 3) -> dict[str, float]:
    """Energy distance times 1000 from data, mean over classes, of Euler steps along each class's exact velocity."""
    process, velocity, found = RectifiedFlow(), Prediction("velocity"), dict.fromkeys(map(str, steps), 0.0)
    centres = blobs(dimension, separated, seed)
    for k in range(classes):
        mixture = Mixture(torch.full((10,), 0.1), centres[k], torch.full((10, dimension), 0.01))
        data = mixture.sample(1500, seed=1000 + seed).double()
        network = mixture.network(process, velocity)
        for n in steps:
            plan: Plan = SOLVERS["ddim"](process, velocity, grids.uniform(process, n))
            made = sample(plan, network, seeds=range(1500), shape=(dimension,), dtype=torch.float64)
            found[str(n)] += 1000 * energy_distance(made, data) / classes
    return found


# --- all of it -------------------------------------------------------------------------------------------------------


def interval(values: list[float]) -> dict[str, Any]:
    found = torch.tensor(values, dtype=torch.float64)
    return {**seed_interval(found).as_dict(), "values": values}


def compared(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """The difference paired by seed, and what its 95 % interval says of ours where less is better."""
    found = interval([a - b for a, b in zip(ours, theirs, strict=True)])
    return {**found, "verdict": "less" if found["high"] < 0 else "more" if found["low"] > 0 else "not told apart"}


def over_seeds(rows: list[dict[str, Any]], steps: tuple[int, ...]) -> dict[str, Any]:
    """Metrics over seeds by number of steps."""
    return {str(n): {m: interval([r["steps"][str(n)][m] for r in rows]) for m in ("frechet", "right")} for n in steps}


def versus(table: dict[str, Any], ours: str, theirs: str, steps: tuple[int, ...]) -> dict[str, Any]:
    pairs = {n: [table[name][str(n)]["frechet"]["values"] for name in (ours, theirs)] for n in steps}
    return {str(n): compared(*pair) for n, pair in pairs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scale", type=float, default=1.0, help="all numbers of updates times this")
    parser.add_argument("--output", type=Path, default=Path("results/latents.json"))
    parser.add_argument("--folder", type=Path, default=Path("runs/latents"))
    given = parser.parse_args()
    begun, settings = time.perf_counter(), {"seeds": given.seeds, "scale": given.scale}
    with Run(given.folder, settings, quiet=True) as run:
        bench = Bench(run, given.scale)

        def say(text: str) -> None:
            print(f"{time.perf_counter() - begun:6.0f} s  {text}", flush=True)

        coded = autoencoders(bench)
        say("autoencoders")
        flows: dict[str, dict[str, Any]] = {}
        for name in ("flow-short", "flow"):
            rows = {z: [flow(bench, name, z, s) for s in given.seeds] for z in ("vae", "rae", "svg")}
            flows[name] = {z: over_seeds(found, STEPS[name]) for z, found in rows.items()}
            say(name)
        students, raw = {}, {}
        for name in METHODS:
            for z in ("vae", "rae"):
                raw[f"{name}, {z}"] = [mean_flow(bench, name, z, s) for s in given.seeds]
                students[f"{name}, {z}"] = over_seeds(raw[f"{name}, {z}"], FEW)
                say(f"{name}, {z}")
        mixtures = {}
        for dimension in (2, 16, 64):
            for name in ("separated", "mixed"):
                one = partial(exact, dimension, name == "separated", steps=(1, 2, 3, 5, 10))
                mixtures[f"{name}, {dimension}"] = [
                    run.unit(f"exact-{name}-{dimension}-{s}", partial(one, s)) for s in given.seeds
                ]
        say("exact mixtures")
        null = run.unit("null", lambda: frechet(bench.real[:1000], bench.real[1000:]))
        seconds = sum(run.seconds().values())
        updates = bench.updates
    write_json(given.output, {
        "settings": {
            **settings, "updates": updates, "train": TRAIN, "drawn": DRAWN, "flow": FLOW, "student": STUDENT,
            "stages": STAGE, "trajectories": 500, "teacher_steps": 16,
        },
        "autoencoders": coded, "null": null, "flows": flows,
        "versus_vae": {
            n: {z: versus(table, z, "vae", STEPS[n]) for z in ("rae", "svg")} for n, table in flows.items()
        },
        "svg_versus_rae": {n: versus(table, "svg", "rae", STEPS[n]) for n, table in flows.items()},
        "students": students,
        "student_cost": {
            name: [{k: r[k] for k in ("updates", "seconds", "largest_gradient")} for r in rows]
            for name, rows in raw.items()
        },
        "rae_versus_vae": {n: versus(students, f"{n}, rae", f"{n}, vae", FEW) for n in METHODS},
        "stages_versus_alone": {z: versus(students, f"mf_rae, {z}", f"mean_flow, {z}", FEW) for z in ("vae", "rae")},
        "exact": exact_table(mixtures), "environment": environment(), "seconds": seconds,
    })  # fmt: skip


def exact_table(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for dimension in (2, 16, 64):
        both = {name: found[f"{name}, {dimension}"] for name in ("separated", "mixed")}
        table[str(dimension)] = {
            n: {
                **{name: interval([row[n] for row in rows]) for name, rows in both.items()},
                "difference": compared(*([row[n] for row in both[name]] for name in ("separated", "mixed"))),
            }
            for n in both["mixed"][0]
        }
    return table


if __name__ == "__main__":
    main()
