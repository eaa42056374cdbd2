"""Add a solver and a distillation method: a function each, which verbs, searches and commands then know by name.

    python examples/add_solver_and_method.py FOLDER

The solver draws digits, the method teaches a student of points on a circle.
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

import fewstep as fs
from fewstep.distillation.parts import Method, OptimizerSettings, evenly, needing, preset
from fewstep.metrics.distances import energy_distance
from fewstep.solvers import solver
from fewstep.solvers.stages import Stages, plain
from fewstep.testing.toy import Toy

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "added")


@solver(order=2, source="Adams and Bashforth", history=2)
def adams_bashforth(process, prediction, grid) -> fs.Plan:
    """y' = y + h (eps_k + h / (2 h_before) (eps_k - eps_{k-1})) of y = x / alpha, h the step of rho = sigma / alpha."""
    s, updates = Stages(process, prediction, grid), []
    rho = [sigma / alpha for sigma, alpha in zip(s.sigma, s.alpha, strict=True)]
    for k in range(len(s)):
        h, slope = rho[k + 1] - rho[k], s.noise(k)
        if k:
            slope = slope + plain(h / (rho[k] - rho[k - 1]) / 2) * (s.noise(k) - s.noise(k - 1))
        updates.append((plain(s.alpha[k + 1] / s.alpha[k]) * s.x(k) + plain(s.alpha[k + 1] * h) * slope, 0.0))
    return s.plan(updates, "adams_bashforth")


@preset("noise_to_sample")
def noise_to_sample(process, *, steps: int = 1) -> Method:
    """The student's one call against the end of its teacher's path from the same noise (arXiv 2101.02388)."""

    def loss(networks, batch, samples, generator):
        start = batch.times[:1].double().expand(batch.size)
        found = (networks.student(batch.path[:, 0], start, batch.condition) - batch.path[:, -1]).square().mean()
        return found, {"pairs": found.detach()}

    return Method({"pairs": loss}, evenly(process, steps), needs=needing(store=True), settings=OptimizerSettings(1e-3))


pipe, labels = fs.load("mnist-dit"), list(range(10))
exact = fs.generate(pipe, labels, plan=fs.plan_of(pipe, 100, solver="unipc"))
for name in ("ddim", "adams_bashforth"):
    images = fs.generate(pipe, labels, plan=fs.plan_of(pipe, 12, solver=name))
    print(f"{name}, 12 calls: {float((images - exact).square().mean().sqrt()):.4f} from 100 calls")

ring = Toy(pretraining=500)  # eight points on a circle, and a network that learns them in seconds
teacher = fs.Denoiser(ring.start(), ring.process, ring.prediction)
student = fs.distill(teacher, "noise_to_sample", steps=1, shape=(2,), train_steps=300, batch=256, progress=False)
one = {"seeds": range(500), "batch": 500}
drawn = {"teacher, 1 call": fs.generate(teacher, plan=fs.plan_of(teacher, 1), shape=(2,), **one)}
drawn |= {"student, 1 call": fs.generate(student, **one), "data": ring.mixture.sample(500, 2).float()}
for name, samples in drawn.items():
    print(f"{name}: {float(energy_distance(samples, ring.mixture.sample(500, 1).float())):.3f} from the data")

folder.mkdir(parents=True, exist_ok=True)
figure = Figure(figsize=(9, 3))
for place, (name, samples) in zip(figure.subplots(1, 3, sharex=True, sharey=True), drawn.items(), strict=True):
    place.scatter(*samples.T, s=2)
    place.set_title(name)
figure.savefig(folder / "ring.png")
