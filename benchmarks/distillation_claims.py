"""What the papers of distillation claim, asked of 8x8 digits at equal budgets of network passes.

    python benchmarks/distillation_claims.py              # all claims, one file of results each
    python benchmarks/distillation_claims.py tdm sim --budget 200000 --seeds 0 1 --results runs/quick

A teacher (flow matching, 270,000 weights) is trained once. Every arm of a claim gets the same budget (a sample forward
through any network counts one, backward two more) and the same tuning: learning rate and momentum from the claim's
grid, at a quarter of the budget, by a seed that is not reported. Quality: Frechet distance from held-out digits in the
features of a classifier that no training saw, precision, recall, share of right classes, spread within classes.
Claims about shapes run where `--voxels` gives them (.npz of 32^3 occupancy, see fewstep.distill.beds.voxels), else they
are left out. Killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import pkgutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import claims
import torch
from claims.claim import Arm, Claim, Numbers, score

from fewstep.distill.beds.digits import DigitBed, DigitJudge, DigitNetwork, train_digits
from fewstep.distill.beds.voxels import PREDICTION, VoxelBed, load_voxels, train_voxels
from fewstep.errors import FewstepError
from fewstep.files import read_tensors, write_json, write_tensors
from fewstep.metrics.intervals import seed_interval
from fewstep.models.digits import load_digits
from fewstep.runs import Run, environment

TUNING_SEED, WIDTH = 1000, 128


def known() -> dict[str, Claim]:
    """Every claim by the name of its module."""
    found = {}
    for module in pkgutil.iter_modules(claims.__path__):
        claim = getattr(importlib.import_module(f"claims.{module.name}"), "CLAIM", None)
        if claim is not None:
            found[module.name] = claim
    return found


def bed_of(folder: Path, steps: int, voxels: Sequence[Path] = ()) -> DigitBed:
    """The teacher and the judge of the digits, or of these shapes, trained once."""
    data = load_voxels(voxels) if voxels else load_digits()
    size, classes = data.train.shape[1], int(data.train_labels.max()) + 1

    def save(bed: DigitBed, draft: Path) -> None:
        parts = {"teacher": bed.network, "judge": bed.judge}
        write_tensors(draft, {f"{n}.{k}": v for n, m in parts.items() for k, v in m.state_dict().items()})

    def load(place: Path) -> DigitBed:
        network, judge = DigitNetwork(WIDTH, size=size, classes=classes), DigitJudge(size, classes)
        tensors, parts = read_tensors(place), {"teacher": network, "judge": judge}
        for name, module in parts.items():
            module.load_state_dict({k.partition(".")[2]: v for k, v in tensors.items() if k.startswith(f"{name}.")})
            module.eval().requires_grad_(False)
        if voxels:
            return VoxelBed(data, network, judge, prediction=PREDICTION)
        return DigitBed(data, network, judge)

    def compute() -> DigitBed:
        return train_voxels(data, steps, WIDTH) if voxels else train_digits(steps, width=WIDTH)

    with Run(folder / ("voxels" if voxels else "bed"), {"teacher": steps}, quiet=True) as run:
        return run.unit("bed", compute, save=save, load=load, artifact="bed.safetensors")


def asked(claim: Claim, bed: DigitBed, run: Run, given: argparse.Namespace) -> dict[str, Any]:
    """Train every arm, answer every question."""
    rows = {name: compared(name, arm, bed, run, given, claim.rates, claim.momenta) for name, arm in claim.arms.items()}
    seeds: dict[str, list[Numbers]] = {n: row["seeds"] for n, row in rows.items() if None not in row["seeds"]}
    answers = [q.answer(seeds) for q in claim.questions if q.better in seeds and q.than in seeds]
    usable(rows)
    return {"paper": claim.paper, "says": claim.says, "asks": claim.asks, "arms": rows, "answers": answers}


def usable(rows: dict[str, dict[str, Any]], worse: float = 2.0) -> None:
    """Add to every arm the settings tried whose score is at most `worse` times the best score of any arm."""
    best = min(score(t["draws"]) for row in rows.values() for t in row["tried"])
    for row in rows.values():
        row["usable"] = sum(score(t["draws"]) <= worse * best for t in row["tried"])


def compared(
    name: str,
    arm: Arm,
    bed: DigitBed,
    run: Run,
    given: argparse.Namespace,
    rates: Sequence[float],
    momenta: Sequence[float],
) -> dict[str, Any]:
    """Tune and train one arm; units of the run, so that a killed one goes on."""
    per_update = arm.passes(bed, given.batch)
    updates = max(8, int(given.budget * arm.share / per_update)) if arm.share else 0
    unit = "".join(c if c.isalnum() else "-" for c in name)
    grid = list(itertools.product(rates, momenta))[: None if arm.share else 1]
    tried = [
        run.unit(f"{unit}-tune-{k}", partial(_trained, arm, bed, updates // 4, given.batch, TUNING_SEED, *setting))
        for k, setting in enumerate(grid)
    ]
    best = grid[min(range(len(grid)), key=lambda k: score(tried[k]))]
    seeds = [
        run.unit(f"{unit}-seed-{s}", partial(_trained, arm, bed, updates, given.batch, s, *best)) for s in given.seeds
    ]
    summary = None
    if None not in seeds and len(seeds) > 1:
        summary = {
            draw: {
                metric: seed_interval(torch.tensor([s[draw][metric] for s in seeds], dtype=torch.float64)).as_dict()
                for metric in seeds[0][draw]
            }
            for draw in seeds[0]
        }
    print(f"{name}: {updates} updates, {best}, {[round(score(s), 3) for s in seeds]}", flush=True)
    return {
        "passes_per_update": per_update / given.batch, "updates": updates, "width": arm.width or WIDTH,
        "learning_rate": best[0], "momentum": best[1], "summary": summary, "seeds": seeds,
        "tried": [{"learning_rate": r, "momentum": m, "draws": t} for (r, m), t in zip(grid, tried, strict=True)],
    }  # fmt: skip


def _trained(
    arm: Arm, bed: DigitBed, updates: int, batch: int, seed: int, rate: float, momentum: float
) -> Numbers | None:
    """One training; None where it diverged, which is a result."""
    try:
        return arm.train(bed, updates, batch, seed, learning_rate=rate, momentum=momentum)
    except FewstepError as error:
        print(f"diverged: {str(error).splitlines()[0]}", flush=True)
        return None


def references(bed: DigitBed) -> dict[str, Any]:
    """The teacher in some Euler steps, with and without guidance."""
    labels, found = bed.asked(), {}
    for guidance, steps in itertools.product((1.0, 1.5, 2.0), (1, 2, 4, 8, 64)):
        states, _ = bed.walk(guidance, labels, torch.Generator().manual_seed(7), steps)
        found[f"guidance {guidance:g}, {steps} steps"] = bed.measures(states[-1], labels)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", help=f"of {', '.join(known())}; all unless given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--budget", type=int, default=600_000, help="sample passes of one training")
    parser.add_argument("--teacher", type=int, default=6000, help="updates of the teacher")
    parser.add_argument("--voxels", type=Path, nargs="+", default=[], help="shapes, for the claims that need them")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--folder", type=Path, default=Path("runs/distillation-claims"))
    given = parser.parse_args()
    settings = {"seeds": given.seeds, "batch": given.batch, "budget": given.budget, "teacher": given.teacher}
    for name in given.claims or known():
        if name not in known():
            parser.error(f"no claim {name!r}; there are {', '.join(known())}")
        if known()[name].voxels and not given.voxels:
            print(f"{name}: left out, it needs --voxels FILES_OR_FOLDERS (.npz of 32^3 shapes)", flush=True)
            continue
        begun = time.perf_counter()
        bed = bed_of(given.folder, given.teacher, given.voxels if known()[name].voxels else ())
        with Run(given.folder / name, settings, quiet=True) as run:
            found = asked(known()[name], bed, run, given)
        found |= {"settings": settings, "references": references(bed)}
        found |= {"environment": environment(), "seconds": time.perf_counter() - begun}
        write_json(given.results / f"claim-{name}.json", found)
        for answer in found["answers"]:
            print(f"{name}: {told(answer)}", flush=True)


def told(answer: dict[str, Any]) -> str:
    """An answer in a line."""
    d = answer["difference"]
    there = answer["draw"] if answer["than_draw"] is None else answer["than_draw"]
    arms = f"{answer['better']} {answer['draw']} against {answer['than']} {there}, {answer['metric']}"
    return f"{arms}: {d['mean']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f}): {answer['verdict']}"


if __name__ == "__main__":
    main()
