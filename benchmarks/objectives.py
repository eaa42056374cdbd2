"""Which objective ranks candidates of Q-Sched as held-out quality does?

    python benchmarks/objectives.py --system lcm-g5=runs/lcm-g5 w4a8 4 --folder runs/objectives
    python benchmarks/objectives.py --system emoji-student w4a4 4 --candidates 6 --prompts 16 --held-out 24

Per system (student, scheme, steps): scattered candidates of the family `ramp` with the identity among them, each drawn
on calibration prompts with every calibration seed and on the held-out prompts. Spearman correlation of every objective
with held-out quality (the mean rank over four distances to real pictures: MMD and Frechet, on the judge's features and
on random ones), per calibration seed, and what the candidate with the best objective is worth on the held-out prompts.
No objective sees the judge or the held-out pictures. `constant-moment` candidates have m / s free and the common factor
that gives every state its nominal second moment. A killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr
from students import FULL, Student, drawn
from torch import Tensor

from fewstep.data import load_emoji
from fewstep.files import write_json
from fewstep.images import as_float
from fewstep.jobs.context import seeds_for, slug, tensor_unit
from fewstep.latents import normalised
from fewstep.metrics import load_features
from fewstep.metrics.distances import RbfKernel, diversity, frechet, mmd2, precision_recall
from fewstep.pipelines import load_pipeline, trace
from fewstep.plan import Plan
from fewstep.rewards import load_reward
from fewstep.runs import Run
from fewstep.runs.environment import environment
from fewstep.schedules.tuning import Family
from fewstep.zoo import placed

BOX = Family("ramp", 0.8, 1.2)
NETS = {"clip": "clip:emoji-clip", "pixels": "pixels"}
"""What objectives see; the judge's features and the random ones are kept for the held-out pictures."""
JUDGED = ("mmd:clip-judge", "frechet:clip-judge", "mmd:random", "frechet:random")
GUIDANCE, TEACHER_STEPS = 2.0, 24


def spread(low: float, high: float, size: int, count: int) -> Tensor:
    """Scattered points of a box (count, size); the first one is all ones."""
    points = torch.quasirandom.SobolEngine(size, scramble=True, seed=0).draw(count).double()
    points = low + (high - low) * points
    points[0] = 1
    return points


@dataclass(frozen=True, eq=False)
class Material:
    """What all systems share: prompts, real pictures, the networks that score."""

    prompts: list[str]
    real: Tensor
    held_out: list[str]
    reference: Tensor
    seeds: list[int]

    @classmethod
    def of(cls, prompts: int, held_out: int, seeds: list[int]) -> Material:
        """The calibration pictures, and as many of the training pictures as are missing, evenly spread."""
        own, train, test = (load_emoji(split) for split in ("calibration", "train", "evaluation"))
        more = max(0, prompts - len(own.images))
        picks = [i * len(train.images) // more for i in range(more)]
        images = torch.cat([own.images[:prompts], train.images[picks]])
        captions = own.captions[:prompts] + [train.captions[i] for i in picks]
        return cls(captions, images, test.captions[:: max(1, 250 // held_out)][:held_out], test.images, seeds)

    @cached_property
    def networks(self) -> dict[str, Any]:
        return {name: load_features(placed(spec)) for name, spec in NETS.items()}

    @cached_property
    def rewards(self) -> tuple[Any, Any]:
        return load_reward(placed("clip:emoji-clip")), load_reward(placed("quality:emoji-quality"))

    @cached_property
    def judges(self) -> tuple[list[Any], Any]:
        spec = placed("clip:emoji-judge")
        return [load_features(spec), load_features("random")], load_reward(spec)

    @cached_property
    def truth(self) -> list[tuple[str, Any, Tensor, RbfKernel]]:
        """Every feature network of the held-out comparison: its name, itself, the real features, their kernel."""
        found = [(net.name, net, net(self.reference)) for net in self.judges[0]]
        return [(name, net, real, RbfKernel.of(real)) for name, net, real in found]

    def judged(self, pictures: Tensor) -> dict[str, float]:
        """Held-out numbers of pictures (P, 3, H, W), as `fewstep.metrics.evaluate` defines them."""
        found: dict[str, float] = {}
        for name, net, real, kernel in self.truth:
            features = net(pictures)
            found[f"mmd:{name}"], found[f"frechet:{name}"] = mmd2(features, real, kernel), frechet(features, real)
            found[f"recall:{name}"] = float(precision_recall(features, real)[1].double().mean())
        judge = self.judges[1]
        found[f"judge:{judge.name}"] = float(judge.score(as_float(pictures), self.held_out).mean())
        images = as_float(pictures).double()
        return found | {
            "second moment": float((2 * images - 1).square().mean()),
            "colour": float((images.amax(1) - images.amin(1)).mean()),
        }

    def calibration_seeds(self, number: int) -> list[int]:
        """Seeds of the calibration prompts; number: one of `seeds`."""
        return seeds_for("calibration", number, len(self.prompts))


class System:
    """A student in a scheme at some steps, with the references of its objectives."""

    def __init__(self, words: list[str], material: Material, run: Run, batch: int) -> None:
        self.student, self.scheme, self.steps = Student(words[0], batch), words[1], int(words[2])
        self.material, self.run = material, run
        self.sampler = self.student.sampler(self.scheme)
        self.plan = self.student.plan(self.steps, self.sampler)
        self.name = f"{self.student.name}, {self.scheme}, {self.steps} steps"
        self.key = slug(self.name)

    def drawn(self, plan: Plan) -> list[Tensor]:
        """Calibration pictures of a plan, per seed."""
        return [
            drawn(self.sampler, plan, self.material.prompts, self.material.calibration_seeds(s))
            for s in self.material.seeds
        ]

    @cached_property
    def references(self) -> dict[str, Tensor]:
        """Pictures that objectives compare with: real ones, the full-precision pipeline's, the teacher's."""
        prompts, seeds = self.material.prompts, self.material.calibration_seeds(self.material.seeds[0])

        def full() -> dict[str, Tensor]:
            sampler = self.student.sampler(FULL)
            return {"images": drawn(sampler, self.student.plan(self.steps, sampler), prompts, seeds)}

        def teacher() -> dict[str, Tensor]:
            from fewstep.pipelines import PipelineSampler, plan_of

            pipe = load_pipeline("emoji-teacher")
            plan = plan_of(pipe, TEACHER_STEPS, guidance_scale=GUIDANCE)
            return {"images": drawn(PipelineSampler(pipe, GUIDANCE), plan, prompts, seeds)}

        return {
            "real": self.material.real,
            "few-step full precision": tensor_unit(self.run, f"{self.key}/full", full)["images"],
            "many-step teacher": tensor_unit(self.run, "teacher", teacher)["images"],
        }

    @cached_property
    def kernels(self) -> dict[tuple[str, str], tuple[Tensor, RbfKernel]]:
        """Features of every reference on every network, and their kernel."""
        found = {
            (r, n): net(images) for r, images in self.references.items() for n, net in self.material.networks.items()
        }
        return {key: (features, RbfKernel.of(features)) for key, features in found.items()}

    @cached_property
    def traces(self) -> dict[str, Tensor]:
        """Second moments of states and outputs along the untuned plan, per step; and what full precision says there."""

        def compute() -> dict[str, Tensor]:
            prompts, seeds = self.material.prompts, self.material.calibration_seeds(self.material.seeds[0])
            along = trace(self.sampler, self.plan, prompts, seeds)
            truth = trace(self.student.sampler(FULL), self.plan, prompts, seeds, along=along)
            x, q, full = (t.flatten(1).double() for t in (along.states, along.outputs, truth.outputs))
            pairs = {"xx": (x, x), "xq": (x, q), "qq": (q, q), "xf": (x, full), "qf": (q, full), "ff": (full, full)}
            moments = {name: (a * b).mean(1) for name, (a, b) in pairs.items()}
            return moments | {"data": self.data_moment()}

        return tensor_unit(self.run, f"{self.key}/traces", compute)

    @torch.no_grad()
    def data_moment(self) -> Tensor:
        """Mean square of the real pictures' latents."""
        vae = self.student.pipe.vae
        latents = [
            normalised(vae, vae.encode(2 * as_float(p) - 1).latent_dist.mean) for p in self.material.real.split(50)
        ]
        return torch.cat(latents).double().square().mean()

    def constant_moment(self, m: Tensor) -> Tensor:
        """Free coefficients (2K,): (1, m) times the factor that gives each next state its nominal second moment.

        Solving for s alone would ask for 9.5 in the first step: with v-prediction the first state hardly counts there.
        """
        t, factors = self.traces, []
        following = [(float(r.alpha), float(r.sigma)) for r in self.plan.rows[1:]]
        following.append((float(self.plan.final_alpha), float(self.plan.final_sigma)))
        for k, (row, (alpha, sigma)) in enumerate(zip(self.plan.rows, following, strict=True)):
            a, b, c = (float(v) for v in (row.state[k], row.output[k], row.noise))
            b *= float(m[k])
            square = a * a * t["xx"][k] + 2 * a * b * t["xq"][k] + b * b * t["qq"][k]
            factors.append(((alpha**2 * t["data"] + sigma**2 - c * c).clamp(min=0) / square).sqrt())
        both = torch.stack(factors)
        return torch.cat([both, both * m])

    def step_error(self, s: Tensor, m: Tensor) -> float:
        """Mean over steps of E |s a x + m b q - (a x + b F)|^2 over E |a x + b F|^2."""
        t, errors = self.traces, []
        for k, row in enumerate(self.plan.rows):
            a, b = float(row.state[k]), float(row.output[k])
            u, v = (s[k] - 1) * a, m[k] * b
            error = u * u * t["xx"][k] + v * v * t["qq"][k] + b * b * t["ff"][k] + 2 * u * v * t["xq"][k]
            error = error - 2 * u * b * t["xf"][k] - 2 * v * b * t["qf"][k]
            errors.append(error / (a * a * t["xx"][k] + b * b * t["ff"][k] + 2 * a * b * t["xf"][k]))
        return float(torch.stack(errors).mean())

    def candidate(self, family: Family, theta: Tensor) -> dict[str, Any]:
        """Everything that is measured of a candidate."""
        s, m = family.expand(theta, self.steps)
        plan, material = family.apply(self.plan, theta), self.material
        images = self.drawn(plan)
        features = {name: torch.stack([net(seed) for seed in images]) for name, net in material.networks.items()}
        terms = [[float(r.score(as_float(i), material.prompts).mean()) for r in material.rewards] for i in images]
        distances = {
            f"{measure} to {reference} ({net})": [self.distance(measure, f, reference, net) for f in features[net]]
            for reference, net in self.kernels
            for measure in ("mmd", "frechet")
        }
        held = drawn(self.sampler, plan, material.held_out, seeds_for("evaluation", 201, len(material.held_out)))
        return {
            "s": s.tolist(), "m": m.flatten().tolist(), "terms": terms, "distances": distances,
            "diversity": float(diversity(features["clip"]).mean()), "step error": self.step_error(s, m),
            "held-out": material.judged(held),
        }  # fmt: skip

    def distance(self, measure: str, features: Tensor, reference: str, net: str) -> float:
        """One distance of calibration features to a reference."""
        theirs, kernel = self.kernels[reference, net]
        return mmd2(features, theirs, kernel) if measure == "mmd" else frechet(features, theirs)

    def rows(self, count: int, constant: int) -> dict[str, list[dict[str, Any]]]:
        """All candidates: scattered ones of the ramp, and those of constant moment."""
        free = Family("free", BOX.low, BOX.high)
        ramps = [(BOX, theta) for theta in spread(BOX.low, BOX.high, 4, count)]
        corners = spread(BOX.low, BOX.high, 2, constant)
        lines = torch.linspace(0, 1, self.steps, dtype=torch.float64)
        kept = [(free, self.constant_moment(c[0] + (c[1] - c[0]) * lines)) for c in corners]
        found: dict[str, list[dict[str, Any]]] = {}
        for group, members in (("ramp", ramps), ("constant-moment", kept)):
            found[group] = []
            for number, (family, theta) in enumerate(members):
                unit = f"{self.key}/{group}-{number}"
                found[group].append(self.run.unit(unit, lambda f=family, t=theta: self.candidate(f, t)))
                print(f"{self.name}: {group} {number + 1} of {len(members)}", flush=True)
        return found


def objectives(rows: list[dict[str, Any]], seeds: int) -> dict[str, list[list[float]]]:
    """Name -> values per seed and candidate, higher is better."""
    terms = torch.tensor([r["terms"] for r in rows], dtype=torch.float64).transpose(0, 1)  # (seeds, candidates, 2)
    scaled = (terms - terms.mean(1, keepdim=True)) / terms.std(1, keepdim=True).clamp(min=1e-9)
    jaq = scaled[..., 0] + 2 * scaled[..., 1]
    variety = torch.tensor([r["diversity"] for r in rows], dtype=torch.float64)
    loss = ((variety - variety[0]) / variety.std().clamp(min=1e-9)).clamp(max=0)
    found = {"jaq": jaq, "jaq, diversity kept": jaq + 2 * loss, "alignment": scaled[..., 0], "quality": scaled[..., 1]}
    for name in rows[0]["distances"]:
        found[name] = -torch.tensor([r["distances"][name] for r in rows], dtype=torch.float64).T
    found["per-step least squares"] = -torch.tensor([r["step error"] for r in rows]).expand(seeds, -1)
    return {name: values.tolist() for name, values in found.items()}


def quality(rows: list[dict[str, Any]]) -> list[float]:
    """Held-out quality: minus the mean rank over the distances."""
    ranks = [rankdata([r["held-out"][metric] for r in rows]) for metric in JUDGED]
    return [-float(sum(each)) / len(ranks) for each in zip(*ranks, strict=True)]


def spearman(a: list[float], b: list[float]) -> dict[str, float]:
    """Correlation of ranks with a 95 % interval over resampled candidates."""
    picks = np.random.Generator(np.random.PCG64(0)).integers(len(a), size=(1000, len(a)))
    x, y = (rankdata(np.asarray(values)[picks], axis=1) for values in (a, b))
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    size = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    draws = (x * y).sum(1)[size > 0] / size[size > 0]
    low, high = np.quantile(draws, [0.025, 0.975]).tolist() if len(draws) else (-1.0, 1.0)
    return {"mean": correlation(a, b), "low": low, "high": high}


def correlation(a: list[float], b: list[float]) -> float:
    """Spearman correlation; 0 where one side is constant."""
    return float(spearmanr(a, b).statistic) if len(set(a)) > 1 and len(set(b)) > 1 else 0.0


def table(rows: list[dict[str, Any]], seeds: int) -> dict[str, Any]:
    """Per objective its correlation with held-out quality and metrics, and what it picks."""
    good, found = quality(rows), {}
    for name, values in objectives(rows, seeds).items():
        together = torch.tensor(values).mean(0).tolist()
        best = max(range(len(rows)), key=together.__getitem__)
        found[name] = {
            "quality": spearman(together, good),
            "per seed": [spearman(v, good)["mean"] for v in values],
            "metrics": {
                metric: correlation(together, [r["held-out"][metric] for r in rows])
                for metric in rows[0]["held-out"]
            },
            "picked": {"number": best, "rank": -good[best], "s": rows[best]["s"], "m": rows[best]["m"],
                       "diversity": rows[best]["diversity"], **rows[best]["held-out"]},
        }  # fmt: skip
    best = max(range(len(rows)), key=good.__getitem__)
    whole = {
        key: {"rank": -good[i], "diversity": rows[i]["diversity"], **rows[i]["held-out"]}
        for key, i in (("identity", 0), ("best", best))
    }
    return {"objectives": found, **whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", action="append", nargs=3, required=True, metavar=("STUDENT", "SCHEME", "STEPS"))
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--constant", type=int, default=12, help="candidates of constant moment")
    parser.add_argument("--prompts", type=int, default=100, help="calibration prompts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="calibration seeds")
    parser.add_argument("--held-out", type=int, default=250)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--output", type=Path, default=Path("results/objectives.json"))
    parser.add_argument(
        "--folder", type=Path, default=None, help="keeps what is measured; a temporary one unless given"
    )
    given = parser.parse_args()
    settings = {key: getattr(given, key) for key in ("candidates", "constant", "prompts", "seeds", "held_out")}
    kept = {key: settings[key] for key in ("prompts", "seeds", "held_out")}  # candidates may be added later
    run = Run(given.folder or Path(tempfile.mkdtemp()) / "objectives", kept, quiet=True)
    material = Material.of(given.prompts, given.held_out, given.seeds)
    systems = []
    for words in given.system:
        system = System(words, material, run, given.batch)
        rows = system.rows(given.candidates, given.constant)
        families = {group: table(members, len(given.seeds)) for group, members in rows.items() if len(members) > 2}
        systems.append({"system": system.name, "families": families, "candidates": rows})
        write_json(given.output, {"settings": settings, "systems": systems, "environment": environment()})
        for name, row in families["ramp"]["objectives"].items():
            print(f"{system.name}: {name:45} {row['quality']['mean']:+.2f} picks rank {row['picked']['rank']:.1f}")


if __name__ == "__main__":
    main()
