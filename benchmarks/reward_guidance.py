"""Reward-directed sampling without training: what each way reaches on digits, a point mass and an exact line.

    python benchmarks/reward_guidance.py
    python benchmarks/reward_guidance.py --seeds 0 1 --train 300 --count 200 --output runs/quick.json

Four parts. `tilt`: an unconditional teacher of digits and the log-probability of a class by a classifier as reward, at
scale 1, so that the tilted law is that of the real digits of the class; a judge of another seed says what came out.
`cfg`: the same teacher with labels, in every form of classifier-free guidance. `optimise`: few noisy scores, a ridge
surrogate, targets beyond the data; parts of the regret. `control`: a point mass that shall reach a goal and avoid an
obstacle. Beside them the bound of the sample law's KL by the score error, computed without drawing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from guidance_worlds import control, point_mass, score_error_bound
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.denoiser import Denoiser, Guided
from fewstep.executor import sample
from fewstep.files import write_json
from fewstep.guidance import (
    cfg_plus_plus,
    classifier,
    corrected,
    guidance_interval,
    pseudo_labels,
    regret,
    reward_gradient,
    ridge,
    steer,
    target,
)  # fmt: skip
from fewstep.metrics.distances import frechet
from fewstep.metrics.intervals import seed_interval
from fewstep.plan import Plan
from fewstep.runs import Run, environment
from fewstep.solvers import ddim, grids
from fewstep.testing.digits import DigitBed, DigitJudge, DigitNetwork, class_condition, train_digits
from fewstep.testing.fit import fit_network
from fewstep.testing.mixture import Mixture

WANTED = 3
STEPS = 20
TARGETS = (1.0, 2.0, 4.0)
SCORED, SCORE_NOISE, TARGET_STD = 100, 0.3, 0.3


def measures(bed: DigitBed, judge: DigitJudge, x: Tensor, labels: Tensor) -> dict[str, float]:
    """Distance of features from all real digits of the classes, share of right classes, spread against real ones."""
    real, classes = torch.cat([bed.data.train, bed.data.test]), labels.unique()
    own = torch.cat([bed.data.train_labels, bed.data.test_labels])
    spreads = [torch.pdist(x[labels == c]).mean() / torch.pdist(real[own == c]).mean() for c in classes]
    return {
        "frechet": frechet(judge.body(x), judge.body(real[torch.isin(own, classes)])),
        "right": float((judge(x).argmax(1) == labels).float().mean()),
        "spread": float(torch.stack(spreads).mean()),
    }


def plans(bed: DigitBed) -> tuple[Plan, Plan]:
    """Without and with noise."""
    grid = grids.uniform(bed.process, STEPS)
    return ddim(bed.process, bed.prediction, grid), ddim(bed.process, bed.prediction, grid, eta=1.0)


def noisy_judge(bed: DigitBed, steps: int, seed: int) -> DigitNetwork:
    """A classifier of noisy digits: the teacher's architecture, its first ten outputs taken as logits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DigitNetwork()
    generator = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        rows, t = (
            torch.randint(len(bed.data.train), (256,), generator=generator),
            torch.rand(256, 1, generator=generator),
        )
        noisy = (1 - t) * bed.data.train[rows] + t * torch.randn(256, 64, generator=generator)
        return F.cross_entropy(network(noisy, 1000 * t[:, 0])[:, :10], bed.data.train_labels[rows])

    fit_network(network, loss, steps, rate=1e-3)
    return network.eval().requires_grad_(False)


def tilt(bed: DigitBed, judge: DigitJudge, noisy: DigitNetwork, count: int, seed: int) -> dict[str, dict[str, float]]:
    """Arms that tilt the unconditional teacher towards one class."""
    quiet, stochastic = plans(bed)
    plain, seeds, shape = bed.teacher(), range(1000 * seed, 1000 * seed + count), bed.shape
    labels = torch.full((count,), WANTED)

    def reward(x: Tensor) -> Tensor:
        return bed.judge(x).log_softmax(1)[:, WANTED]

    def log_prob(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noisy(x, 1000 * sigma.reshape(-1))[:, :10].log_softmax(1)[:, WANTED]

    def run(denoiser: Denoiser, plan: Plan = quiet) -> Tensor:
        return sample(plan, denoiser.network, seeds=seeds, shape=shape).detach()

    def best(of: int) -> Tensor:
        many = sample(
            quiet, plain.network, seeds=range(10**6 + 8000 * seed, 10**6 + 8000 * seed + of * count), shape=shape
        )
        many = many.detach().reshape(of, count, -1)
        chosen = torch.stack([reward(part) for part in many]).argmax(0)
        return many[chosen, torch.arange(count)]

    arms: dict[str, Callable[[], Tensor]] = {
        "untouched": lambda: run(plain),
        "trained with labels": lambda: run(_labelled(bed, labels)),
        "best of 4": lambda: best(4),
        "best of 16": lambda: best(16),
        "classifier at noisy states": lambda: run(corrected(plain, classifier(log_prob))),
        "particles": lambda: steer(stochastic, plain, reward, seeds=seeds, shape=shape).samples,
    }
    for scale in (1.0, 3.0):
        rule = partial(reward_gradient, reward, scale)
        arms[f"reward gradient, scale {scale:g}"] = lambda rule=rule: run(corrected(plain, rule()))
        arms[f"without the Jacobian, scale {scale:g}"] = lambda rule=rule: run(corrected(plain, rule(through=False)))
    with torch.no_grad():
        return {
            name: {**measures(bed, judge, x, labels), "reward": float(reward(x).mean())}
            for name, x in ((name, draw()) for name, draw in arms.items())
        }


def _labelled(bed: DigitBed, labels: Tensor) -> Denoiser:
    network = partial(bed.network, **class_condition(labels))
    return Denoiser(lambda x, time: network(x, time), bed.process, bed.prediction)


def cfg(bed: DigitBed, judge: DigitJudge, weak: nn.Module, count: int, seed: int) -> dict[str, dict[str, float]]:
    """Every form of classifier-free guidance, all classes."""
    plan, labels = plans(bed)[0], torch.arange(count) % 10
    positive, negative = class_condition(labels), class_condition(torch.full((count,), 10))
    arms: dict[str, tuple[Plan, Guided]] = {
        f"scale {s:g}": (plan, Guided(bed.network, positive, negative, s)) for s in (1.0, 2.0, 3.0, 5.0)
    }
    arms |= {
        "scale 3, interval": (guidance_interval(plan, 3.0, 0.2, 3.0), Guided(bed.network, positive, negative)),
        "scale 5, interval": (guidance_interval(plan, 5.0, 0.2, 3.0), Guided(bed.network, positive, negative)),
        "scale 3, rescaled": (plan, Guided(bed.network, positive, negative, 3.0, rescale=0.7)),
        "scale 5, rescaled": (plan, Guided(bed.network, positive, negative, 5.0, rescale=0.7)),
        "autoguidance, scale 2": (plan, Guided(bed.network, positive, scale=2.0, weak=weak)),
        "autoguidance, scale 3": (plan, Guided(bed.network, positive, scale=3.0, weak=weak)),
        "CFG++, scale 0.2": (cfg_plus_plus(plan, 0.2), Guided(bed.network, positive, negative)),
        "CFG++, scale 0.5": (cfg_plus_plus(plan, 0.5), Guided(bed.network, positive, negative)),
    }
    seeds = range(1000 * seed, 1000 * seed + count)
    with torch.no_grad():
        return {
            name: measures(bed, judge, sample(chosen, guided, seeds=seeds, shape=bed.shape), labels)
            for name, (chosen, guided) in arms.items()
        }


class Labelled(nn.Module):
    """A denoiser that is told a score as one more input of 65; 0 and a flag of 0: not told."""

    def __init__(self) -> None:
        super().__init__()
        self.body = DigitNetwork(size=66)

    def forward(self, x: Tensor, time: Tensor, score: Tensor | None = None) -> Tensor:
        told = x.new_zeros(len(x), 2) if score is None else torch.stack([score, torch.ones_like(score)], 1)
        return self.body(torch.cat([x, told.to(x)], 1), time)[:, :64]


def optimise(bed: DigitBed, train: int, count: int, seed: int) -> dict[str, dict[str, float]]:
    """Targets in deviations of the true score above its mean: a smooth function of all pixels, not linear."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(64, generator=torch.Generator().manual_seed(7)) / 8
    raw = lambda x: x @ direction + 0.3 * (x @ direction.roll(9)).square()  # noqa: E731
    data = bed.data.train
    mean, std = raw(data).mean(), raw(data).std()
    score = lambda x: (raw(x) - mean) / std  # noqa: E731
    rows = torch.randperm(len(data), generator=generator)[:SCORED]
    surrogate = ridge(data[rows], score(data[rows]) + SCORE_NOISE * torch.randn(SCORED, generator=generator), 10.0)
    labels = pseudo_labels(surrogate, data, TARGET_STD, generator).float()
    told = _trained(data, labels, train, seed)
    plan, plain = plans(bed)[0], bed.teacher()
    found = {}
    for value in TARGETS:
        aim = partial(torch.full, (count,), value)
        ways: dict[str, Callable[..., Tensor]] = {
            "target": corrected(plain, target(surrogate, value, TARGET_STD)).network,
            "its gradient alone": corrected(
                plain, reward_gradient(lambda x, v=value: -(v - surrogate(x)).square() / (2 * TARGET_STD**2))
            ).network,
            "trained with pseudo-labels": lambda x, time, aim=aim: told(x, time, aim()),
        }
        for name, network in ways.items():
            with torch.no_grad():
                x = sample(plan, network, seeds=range(1000 * seed, 1000 * seed + count), shape=(64,))
            found[f"{name}, {value:g}"] = regret(x, value, score, surrogate, data)
    return found


def _trained(data: Tensor, labels: Tensor, steps: int, seed: int) -> Labelled:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Labelled()
    generator = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        rows, t = torch.randint(len(data), (256,), generator=generator), torch.rand(256, 1, generator=generator)
        noise = torch.randn(256, 64, generator=generator)
        return (
            (network((1 - t) * data[rows] + t * noise, 1000 * t[:, 0], labels[rows]) - noise + data[rows])
            .square()
            .mean()
        )

    fit_network(network, loss, steps, rate=1e-3, average=0.998)
    return network.eval().requires_grad_(False)


def one_seed(seed: int, train: int, count: int) -> dict[str, Any]:
    """All arms with teachers and judges of this seed."""
    bed = train_digits(train, seed=seed)
    other = train_digits(1, seed=seed + 100, data=bed.data).judge
    weak = train_digits(max(1, train // 16), width=48, seed=seed + 50, data=bed.data).network
    return {
        "tilt": tilt(bed, other, noisy_judge(bed, train // 2, seed), count, seed),
        "cfg": cfg(bed, other, weak, count, seed),
        "optimise": optimise(bed, train, count, seed),
        "control": control(point_mass(), count, 50, 1000 * seed),
    }


def combined(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and interval over the seeds of every number."""
    return {
        part: {
            arm: {key: seed_interval(torch.tensor([s[part][arm][key] for s in seeds])).as_dict() for key in row}
            for arm, row in arms.items()
        }
        for part, arms in seeds[0].items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--output", type=Path, default=Path("results/reward-guidance.json"))
    parser.add_argument("--folder", type=Path, default=Path("runs/reward-guidance"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    settings = {"seeds": given.seeds, "train": given.train, "count": given.count}
    line = Mixture.line([0.3, 0.7], [-1.0, 1.0], [0.4, 0.3])
    with Run(given.folder, settings, quiet=True) as run:
        seeds = [run.unit(f"seed-{s}", partial(one_seed, s, given.train, given.count)) for s in given.seeds]
        bound = run.unit("bound", lambda: {f"{e:g}": score_error_bound(line, e) for e in (0.0, 0.05, 0.1, 0.2, 0.4)})
    write_json(given.output, {
        "settings": {**settings, "steps": STEPS}, **combined(seeds), "bound": bound, "environment": environment(),
        "seconds": time.perf_counter() - begun,
    })  # fmt: skip


if __name__ == "__main__":
    main()
