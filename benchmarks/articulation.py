"""Joints by score distillation: an exact toy, the renderer's speed, and a small prior on objects with true joints.

    python benchmarks/articulation.py --folder runs/articulation
    python benchmarks/articulation.py --folder runs/articulation --metaworld FOLDER     # where the package lies

The toy is the digest's: ten blobs in 24 x 24 pixels and six frames turn about an unknown pivot; the prior is a mixture
of K videos, whose score is exact. One video (K = 1) must give its pivot back; of sixteen that differ, falling noise
picks one and high noise averages, beside least squares to the mean video, to one, and the mean of four such fits.

Objects with true joints: procedural doors, drawers, lids and handles that the prior has not seen, and real ones (MJCF
of metaworld 3.1.1, MIT, an optional package). The prior is the mixture of what the most similar procedural objects do,
carried over to the part at hand. Ways: score distillation with falling noise and with high noise alone, a fit to one
video of the prior, and without any optimisation the likeliest belief itself and their weighted mean ("regression").
With `--prior FOLDER` a trained video network is judged too, and the same network untrained. Errors: degrees between
axes, and distance of axes beside the part in shares of the object's diagonal.

Each recovery is a unit of its own, so that a killed run goes on; with `--minutes` no object is begun after so many, and
what is done by then is written.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Condition, Denoiser
from fewstep.files import write_json
from fewstep.prediction import Prediction
from fewstep.process import Cosine
from fewstep.runs import Run
from fewstep.runs.environment import environment
from fewstep.tasks.articulation import NoiseRange, PointCloud, RigidPart, axis_error, origin_error, recover, video
from fewstep.tasks.articulation.articulate import Search, search_joint
from fewstep.tasks.articulation.beliefs import STD as PIXELS
from fewstep.tasks.articulation.beliefs import as_prior, beliefs_of
from fewstep.tasks.articulation.joints import KINDS
from fewstep.tasks.articulation.mjcf import read_mjcf
from fewstep.tasks.articulation.objects import FAMILIES, ArticulatedObject, random_object
from fewstep.tasks.articulation.prior import PriorSettings, as_denoiser, clips, condition_of, load_prior, new_prior
from fewstep.tasks.articulation.rendering import orbit
from fewstep.testing.mixture import Mixture

TRUTH, STD, K = (-0.2, -0.1, 1.2), 0.1, 16
HIGH, SETTINGS = NoiseRange(0.8, 0.98, 0.98), PriorSettings()
REAL = {
    "drawer": ("drawer", "drawer_link"),
    "laptop": ("lid", "laptoplid_link"),
    "faucet": ("handle", "faucet_link2"),
    "window": ("drawer", "window_slide"),
    "window_horiz": ("drawer", "windowb_a"),
    "lever": ("handle", "lever_link1"),
    "doorlockA": ("handle", "lock_link"),
    "doorlockB": ("door", "door_link"),
}
"""Objects of metaworld with visible joints: what a text would call the part, and its body."""
NEEDS = {"window_horiz": "window", "doorlockA": "doorlock", "doorlockB": "doorlock"}
"""Whose materials and meshes an object uses, where the name is another."""


# --- the toy ---------------------------------------------------------------------------------------------------------


def toy_video(part: RigidPart) -> Tensor:
    along = torch.linspace(0, 0.8, 10)
    bar = torch.stack([along, 0.15 * along, torch.zeros(10)], 1)
    cloud = PointCloud(bar, torch.zeros(10, 0), torch.ones(10, dtype=torch.bool))
    return video(cloud, part, torch.eye(3)[None], 6, 24, width=1.2)


def pivots(theta: Tensor) -> RigidPart:
    origin = torch.cat([theta[:, :2], torch.zeros(len(theta), 1)], 1)
    axis = torch.tensor([0.0, 0.0, 1.0]).expand(len(theta), 3)
    return RigidPart("revolute", axis, origin, theta[:, 2])


def exact(means: Tensor, std: float = STD) -> Denoiser:
    """A prior whose videos are these (K, ...) with this deviation of pixels."""
    flat, prediction, process = means.flatten(1), Prediction("epsilon"), Cosine()
    mixture = Mixture(torch.ones(len(flat)) / len(flat), flat, torch.full_like(flat, std**2))
    return Denoiser(mixture.network(process, prediction), process, prediction)


def toy(seed: int, steps: int = 120) -> dict[str, Any]:
    g, truth = torch.Generator().manual_seed(seed), torch.tensor(TRUTH)
    start = torch.tensor([[0.0, 0.0, 0.6]])
    starts = torch.cat([start, torch.tensor([[0.1, -0.3, 0.9], [0.0, 0.0, -0.6]])])

    def found(teacher: Denoiser, starts: Tensor, noise: NoiseRange = NoiseRange()) -> list[Tensor]:
        done = recover(
            toy_video, pivots(starts), teacher, steps=steps, rate=0.05, noise=noise, held=("axis",), seed=seed
        )
        return [torch.cat([part.origin[:2], part.travel[None]]) for part in done.parts]

    def error(theta: Tensor) -> float:
        return float((theta - truth).abs().max())

    one = found(exact(toy_video(pivots(truth[None]))), starts)
    beliefs = truth + 0.1 * torch.randn(K, 3, generator=g)
    videos = toy_video(pivots(beliefs))
    prior = exact(videos)
    noisy = videos + STD * torch.randn(videos.shape, generator=g)
    fits = [found(exact(noisy[k : k + 1]), start)[0] for k in range(4)]
    several = {
        "noise falling to 0.3": found(prior, start)[0],
        "noise falling to 0.1": found(prior, start, NoiseRange(final=0.1))[0],
        "high noise alone": found(prior, start, HIGH)[0],
        "fit to the mean video": found(exact(noisy.mean(0, keepdim=True)), start)[0],
        "fit to one video": fits[0],
        "mean of four fits": torch.stack(fits).mean(0),
    }
    nearest = {name: float((theta - beliefs).abs().amax(1).min()) for name, theta in several.items()}
    return {
        "one video": [error(theta) for theta in one],
        "error": {name: error(theta) for name, theta in several.items()},
        "from the nearest belief": nearest,
    }


def speed(repeats: int = 7) -> dict[str, Any]:
    """Median milliseconds of 6 frames from 4 views at 64 x 64, forward and backward, by threads."""
    before, found = torch.get_num_threads(), {}
    views = orbit(torch.arange(4) * 90.0)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for count in (500, 1000, 2000):
            g = torch.Generator().manual_seed(0)
            cloud = PointCloud(torch.rand(count, 3, generator=g) - 0.5, torch.rand(count, 3), torch.arange(count) > 99)
            spent = []
            for _ in range(repeats):
                axis = torch.tensor([0.1, 0.2, 1.0], requires_grad=True)
                origin, travel = torch.zeros(3, requires_grad=True), torch.tensor(1.0, requires_grad=True)
                began = time.perf_counter()
                video(cloud, RigidPart("revolute", axis, origin, travel), views, 6, 64).square().mean().backward()
                spent.append(1000 * (time.perf_counter() - began))
            found[f"{count} points, {threads} threads"] = statistics.median(spent)
    torch.set_num_threads(before)
    return found


# --- objects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Case:
    name: str
    cloud: PointCloud
    truth: RigidPart
    family: str


def procedural(count: int) -> Iterator[Case]:
    g = torch.Generator().manual_seed(10**6)
    for k in range(count):
        family = list(FAMILIES)[k % len(FAMILIES)]
        made = random_object(family, g)
        yield Case(f"{family} {k}", *made.points(500, seed=k), family)


def real(folder: Path) -> Iterator[Case]:
    """Objects of metaworld at rest; whatever else of the object moves stands still."""
    assets = folder / "assets" / "objects"
    for name, (family, body) in REAL.items():
        file = assets / "assets" / f"{name}.xml"
        if not file.is_file():
            continue
        needs = assets / "assets" / f"{NEEDS.get(name, name)}_dependencies.xml"
        includes = f'<include file="{needs}"/><worldbody><include file="{file}"/></worldbody>'
        with tempfile.NamedTemporaryFile("w", suffix=".xml") as whole:
            whole.write(f"<mujoco>{includes}</mujoco>")
            whole.flush()
            parts = read_mjcf(whole.name, assets)
        joints = {part: joint for part, _, joint in parts if joint is not None}
        if body not in joints:
            print(f"{name}: no body {body} among {list(joints)}", flush=True)
            continue
        made = ArticulatedObject({part: mesh for part, mesh, _ in parts}, body, joints[body], family)
        yield Case(name, *made.points(500), family)


def errors(found: RigidPart, case: Case) -> dict[str, float]:
    where = case.cloud.positions[case.cloud.moving]
    extent = case.cloud.positions.amax(0) - case.cloud.positions.amin(0)
    centre = (where.amax(0) + where.amin(0)) / 2
    return {
        "degrees": axis_error(found, case.truth),
        "share": origin_error(found, case.truth, centre) / float(extent.norm()),
        "kind": float(found.kind == case.truth.kind),
    }


# --- ways to a joint -------------------------------------------------------------------------------------------------

Way = Callable[[Case, int], RigidPart]


def by_score(make: Callable[[Case], tuple[Denoiser, Condition]], noise: NoiseRange, search: Search) -> Way:
    """Score distillation by a prior of the object; the smaller misfit decides what kind of joint it is."""

    def way(case: Case, seed: int) -> RigidPart:
        prior, told = make(case)
        how = replace(search, noise=noise, seed=seed)
        found = [search_joint(kind, case.cloud, prior, SETTINGS, told, how) for kind in KINDS]
        return min(found, key=lambda each: float(each.misfit[0])).best

    return way


def carried_over(case: Case) -> tuple[Denoiser, Condition]:
    return as_prior(case.cloud, beliefs_of(case.cloud, case.family), SETTINGS), {}


def trained(network: Denoiser) -> Callable[[Case], tuple[Denoiser, Condition]]:
    return lambda case: (network, condition_of(case.cloud, case.family, SETTINGS))


def by_fit(search: Search) -> Way:
    """Least squares, which is score distillation by a narrow Gaussian, to one video of the prior."""

    def way(case: Case, seed: int) -> RigidPart:
        believed = beliefs_of(case.cloud, case.family)
        g = torch.Generator().manual_seed(seed)
        chosen = believed.joints[int(torch.multinomial(believed.weights, 1, generator=g))]
        one = clips(case.cloud, chosen, SETTINGS)[None]
        target = one + PIXELS * torch.randn(one.shape, generator=g)
        how = replace(search, seed=seed)
        found = [search_joint(kind, case.cloud, exact(target, 0.05), SETTINGS, {}, how) for kind in KINDS]
        return min(found, key=lambda each: float(each.misfit[0])).best

    return way


def likeliest(case: Case, seed: int) -> RigidPart:
    believed = beliefs_of(case.cloud, case.family)
    return believed.joints[int(believed.weights.argmax())]


def regression(case: Case, seed: int) -> RigidPart:
    """Weighted mean of the beliefs of the likeliest one's kind, axes on one side of its plane."""
    believed, best = beliefs_of(case.cloud, case.family), likeliest(case, seed)
    mine = [(j, w) for j, w in zip(believed.joints, believed.weights.float(), strict=True) if j.kind == best.kind]
    total = torch.stack([w for _, w in mine]).sum()
    sides = [torch.sign(j.direction @ best.direction) for j, _ in mine]
    axis = torch.stack([w * s * j.direction for s, (j, w) in zip(sides, mine, strict=True)]).sum(0)
    travel = torch.stack([w * s * j.travel for s, (j, w) in zip(sides, mine, strict=True)]).sum() / total
    return RigidPart(best.kind, axis, torch.stack([w * j.origin for j, w in mine]).sum(0) / total, travel)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None, help="keeps what is done; a temporary one unless given")
    parser.add_argument("--output", type=Path, default=Path("results/articulation.json"))
    parser.add_argument("--prior", type=Path, default=None, help="folder of a trained prior")
    parser.add_argument("--metaworld", type=Path, default=None, help="the installed package's folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--count", type=int, default=4, help="procedural objects")
    parser.add_argument("--updates", type=int, default=80, help="of a search")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no object is begun")
    given, began = parser.parse_args(), time.monotonic()
    asked = {"seeds": given.seeds, "count": given.count, "updates": given.updates}
    # the seeds and counts choose units, they do not change any: they may grow
    run = Run(given.folder or Path(tempfile.mkdtemp()) / "articulation", {"version": 1}, quiet=True)
    toys = [run.unit(f"toy/{seed}", partial(toy, seed)) for seed in given.seeds]
    renderer = run.unit("speed", speed)
    search = Search(steps=given.updates, kept=2)
    ways: dict[str, Way] = {
        "falling noise": by_score(carried_over, NoiseRange(), search),
        "high noise alone": by_score(carried_over, HIGH, search),
        "fit to one video": by_fit(search),
        "likeliest belief": likeliest,
        "regression": regression,
    }
    if given.prior is not None:
        network, _ = load_prior(given.prior)
        blank = as_denoiser(new_prior(SETTINGS).eval().requires_grad_(False), SETTINGS)
        ways["trained network"] = by_score(trained(network), NoiseRange(), search)
        ways["untrained network"] = by_score(trained(blank), NoiseRange(), search)
    place = given.metaworld
    if place is None and (spec := importlib.util.find_spec("metaworld")) is not None:
        place = Path(str(spec.origin)).parent
    sets = {"real": list(real(place)) if place else [], "procedural": list(procedural(given.count))}
    rows = []
    for seed, kind in itertools.product(given.seeds, sets):
        for case in sets[kind]:
            if time.monotonic() - began > 60 * given.minutes:
                break
            for name, way in ways.items():
                unit = f"{kind}/{case.name}/{name}/{given.updates}/{seed}".replace(" ", "-")
                found = run.unit(unit, partial(timed, way, case, seed))
                rows.append({"set": kind, "object": case.name, "way": name, "seed": seed, **found})
                print(rows[-1], flush=True)
    document = {
        "settings": asked,
        "toy": toys,
        "renderer": renderer,
        "rows": rows,
        "prior": {"side": SETTINGS.side, "frames": SETTINGS.frames, "views": len(SETTINGS.azimuths)},
        "seconds": sum(run.seconds().values()),
        "environment": environment(),
    }
    write_json(given.output, document)


def timed(way: Way, case: Case, seed: int) -> dict[str, Any]:
    began = time.perf_counter()
    found = way(case, seed)
    return {**errors(found, case), "seconds": time.perf_counter() - began}


if __name__ == "__main__":
    main()
