"""Few-step sampling of structures: published constants against the ODE, exactly and on held-out fragments of proteins.

    python benchmarks/proteins.py --folder runs/proteins
    python benchmarks/proteins.py --count 6 --many 20 --budget 4 --output quick.json

Exactly: three conformers of twenty atoms with a perfect denoiser; distance to the nearest and populations. On
proteins: fragments of 32 residues of chains of which no relative is among those that are known, told beside the
sequence a tenth of the distances below 20 angstrom (`restraints`), or nothing. The denoiser is
`fewstep.tasks.proteins.library`: training fragments that fit the question, no training; `--model` adds a network.
What must be beaten first: an ideal helix, and the training fragment that fits best. Three evaluation seeds; intervals
over fragments. Schedules are searched on training fragments, whose own chains are left out.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.proteins import Structure, fragments, letters_of, load_backbones
from fewstep.executor import sample
from fewstep.files import read_tensors, write_json
from fewstep.jobs.context import slug
from fewstep.metrics.intervals import difference_interval, mean_interval
from fewstep.plan import Plan
from fewstep.process import VE
from fewstep.runs import Run
from fewstep.runs.environment import environment
from fewstep.schedules import ModelInfo, SearchTask, Trajectory, search_method
from fewstep.solvers import SOLVERS
from fewstep.tasks.proteins import (
    SAMPLERS,
    StructureNetwork,
    bond_error,
    bound,
    clashes,
    diversity,
    fold,
    fragment_belief,
    ideal_helix,
    lddt,
    load_structure_network,
    moved,
    populations,
    restraints_between,
    rmsd,
    structure_denoiser,
    structure_plan,
)
from fewstep.tasks.proteins.library import MEMBERS, log_fit
from fewstep.tasks.proteins.sampling import CLEAN
from fewstep.testing.mixture import Mixture

LENGTH, SHARE, ATOMS = 32, 0.1, 20
FEW = (1, 2, 3, 5, 10)


# --- exact --------------------------------------------------------------------------------------------------


def conformers() -> Mixture:
    generator = torch.Generator().manual_seed(0)
    base = 6 * torch.randn(ATOMS, 3, generator=generator, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(3 * ATOMS, 3, generator=generator, dtype=torch.float64))[0].T
    means = base.flatten() + 4 * math.sqrt(ATOMS / 2) * axes
    return Mixture(torch.tensor([0.5, 0.3, 0.2]), means, torch.full((3, 3 * ATOMS), 0.09))


def exact_row(name: str, steps: int, count: int) -> dict[str, Any]:
    mixture, plan = conformers(), structure_plan(name, steps)

    def network(x: Tensor, sigma: Tensor) -> Tensor:
        return mixture.estimates(x[0], 1.0, float(sigma))[0].unsqueeze(0)

    x = sample(plan, network, seeds=[0], shape=(count, ATOMS, 3), dtype=torch.float64)[0]
    means = mixture.means.reshape(-1, ATOMS, 3)
    apart = (x.unsqueeze(1) - means).square().sum(-1).mean(-1).sqrt().amin(1)
    shares = populations(x, means, aligned=False)
    return {
        "sampler": name, "steps": steps, "evaluations": plan.steps, "distance": float(apart.mean()),
        "shares": shares.tolist(), "total_variation": float((shares - mixture.weights).abs().sum() / 2),
    }  # fmt: skip


# --- proteins -----------------------------------------------------------------------------------------------

Denoise = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Question:
    """Fragments to predict, a denoiser of all of them, and the LDDT (N,) that structures (N, L, 3) should have."""

    truth: Tensor
    denoise: Denoise
    sure: Callable[[Tensor], Tensor]


def told(parts: Sequence[Structure], share: float) -> Tensor:
    """Restraints (N, L, L) of fragments."""
    return torch.stack(
        [restraints_between(p.coordinates, share, torch.Generator().manual_seed(k)) for k, p in enumerate(parts)]
    )


def library(parts: Sequence[Structure], chains: Sequence[Structure], restraints: Tensor | None) -> Question:
    own = [part.name.rpartition(":")[0] for part in parts]
    belief = fragment_belief([part.sequence for part in parts], chains, restraints, own)
    return Question(torch.stack([part.coordinates for part in parts]), belief, belief.expected_lddt)


def by_network(
    network: StructureNetwork, parts: Sequence[Structure], restraints: Tensor | None, embedding: Tensor | None = None
) -> Question:
    letters = torch.stack([letters_of(part.sequence) for part in parts])
    with torch.no_grad():
        known = network.read(letters, embedding, restraints, recycles=2)
    truth = torch.stack([part.coordinates for part in parts])
    return Question(truth, bound(structure_denoiser(network), read=known), lambda x: network.sure(x, known))


def drawn(question: Question, plan: Plan, seed: int, turn: bool = True) -> Tensor:
    """A structure of every fragment (N, L, 3)."""
    seeds = range(1_000_003 * seed, 1_000_003 * seed + len(question.truth))
    with torch.no_grad():
        return sample(
            plan, moved(question.denoise, seeds if turn else None), seeds=seeds, shape=question.truth.shape[1:]
        )


def scored(x: Tensor, truth: Tensor) -> dict[str, Tensor]:
    return {"lddt": lddt(x, truth), "rmsd": rmsd(x, truth), "clashes": clashes(x), "bond": bond_error(x)}


def measured(question: Question, plan: Plan, seeds: list[int]) -> dict[str, Any]:
    """Every score by seed, and over the seeds of a fragment their spread, the best and the most confident."""
    structures = torch.stack([drawn(question, plan, seed) for seed in seeds])
    by_seed = [scored(x, question.truth) for x in structures]
    values = torch.stack([s["lddt"] for s in by_seed])
    found = {
        "evaluations": plan.steps,
        "lddt_by_seed": [float(v.mean()) for v in values],
        "per_fragment": values.mean(0).tolist(),
        **{name: mean_interval(torch.stack([s[name] for s in by_seed]).mean(0)).as_dict() for name in by_seed[0]},
        "spread": mean_interval(torch.stack([diversity(x) for x in structures.transpose(0, 1)])).as_dict(),
        "best_of_all": mean_interval(values.amax(0)).as_dict(),
    }
    with torch.no_grad():
        sure = torch.stack([question.sure(x) for x in structures])
    found["most_confident"] = mean_interval(values.gather(0, sure.argmax(0, keepdim=True))[0]).as_dict()
    return found


def baselines(parts: Sequence[Structure], pool: Sequence[Structure], restraints: Tensor | None) -> dict[str, Tensor]:
    """LDDT (N,) of what needs no denoiser."""
    truth = torch.stack([part.coordinates for part in parts])
    best = log_fit([part.sequence for part in parts], pool, restraints).argmax(1)
    traces = torch.stack([pool[int(k)].coordinates for k in best])
    helix = ideal_helix(LENGTH).unsqueeze(0)
    return {"best-fitting training fragment": lddt(traces, truth), "ideal helix": lddt(helix, truth)}


def searched(question: Question, steps: int, budget: int, scratch: Path) -> dict[str, Any]:
    """Levels found by evolution on training fragments, by their LDDT."""
    count = len(question.truth)
    teacher = structure_plan("protenix-mini", 40)
    network = moved(question.denoise, None)
    trajectory = Trajectory.follow(teacher, network, seeds=range(count), shape=(LENGTH, 3))

    class Nearness:
        size, per_item = count, True

        def __call__(self, plan: Plan, items: Sequence[int]) -> Tensor:
            return lddt(drawn(question, plan, 77, turn=False), question.truth)[list(items)]

    task = SearchTask(
        ModelInfo(VE(2560.0, "sigma"), CLEAN), steps, Nearness(), trajectory, budget, 0, SOLVERS["euler"],
        scratch=scratch, parts=frozenset({"times"}),
    )  # fmt: skip
    found = search_method("autodiffusion")(task)
    return {"levels": [float(row.time) for row in found.plan.rows], "value": found.value, "spent": found.spent}


def cost(lengths: Sequence[int], steps: Sequence[int]) -> list[dict[str, Any]]:
    """Seconds of a network of the default size, untrained: what it knows does not change what it costs."""
    network, rows = StructureNetwork().eval(), list[dict[str, Any]]()
    for length in lengths:
        sequence = ("ACDEFGHIKLMNPQRSTVWY" * 30)[:length]
        for count in steps:
            plan = structure_plan("protenix-mini", count)
            folding = fold(sequence, plan, network=network, seeds=range(5))
            rows.append({"residues": length, "evaluations": count, "samples": 5, **folding.seconds})
    return rows


def systems(many: int, found: dict[int, list[float]]) -> dict[str, Plan]:
    made = {f"protenix, {many} steps": structure_plan("protenix", many)}
    made[f"ODE, {many} steps"] = structure_plan("protenix-mini", many)
    made |= {f"ODE, {n} steps": structure_plan("protenix-mini", n) for n in FEW}
    made |= {f"protenix, {n} steps": structure_plan("protenix", n) for n in (2, 3, 5, 10, 20)}
    made |= {f"boltz-1, {n} steps": structure_plan("boltz-1", n) for n in (5, 20)}
    made |= {f"searched, {n} steps": structure_plan(levels=[*levels, 0.0]) for n, levels in found.items()}
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None, help="keeps what is measured; else a temporary one")
    parser.add_argument("--model", default="", help="folder of a structure network, measured too")
    parser.add_argument("--profiles", type=Path, default=None, help="alignment statistics of the chains, by name")
    parser.add_argument("--count", type=int, default=1000, help="fragments at most")
    parser.add_argument("--many", type=int, default=200)
    parser.add_argument("--budget", type=int, default=60, help="schedules looked at for each number of steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path, default=Path("results/proteins.json"))
    given, begun = parser.parse_args(), time.monotonic()
    settings = {"length": LENGTH, "share": SHARE, "many": given.many, "seeds": given.seeds, "budget": given.budget}
    run = Run(given.folder or Path(tempfile.mkdtemp()) / "proteins", {**settings, "count": given.count}, quiet=True)
    parts = fragments(load_backbones("test"), LENGTH)[: given.count]
    chains = load_backbones("train")
    pool = fragments(chains, LENGTH, 2)

    exact = [
        run.unit(f"exact/{name}-{n}", lambda name=name, n=n: exact_row(name, n, 500 if n > 20 else 2000))
        for name in ("protenix", "protenix-mini", "boltz-1", "boltz-2", "chai-1")
        for n in (2, 3, 5, 10, 200)
    ]
    some = pool[:: max(1, len(pool) // 16)][:16]
    search = {
        n: run.unit(
            f"search/{n}",
            lambda n=n: searched(library(some, chains, told(some, SHARE)), n, given.budget, run.scratch(f"search-{n}")),
        )
        for n in (2, 3, 5)
    }
    plans = systems(given.many, {n: s["levels"] for n, s in search.items()})
    restraints = told(parts, SHARE)
    questions = {
        "library, restraints": (library(parts, chains, restraints), restraints),
        "library, sequence alone": (library(parts, chains, None), None),
    }
    network = load_structure_network(given.model) if given.model else None
    if network is not None:
        questions["network, restraints"] = (by_network(network, parts, restraints), restraints)
        questions["network, sequence alone"] = (by_network(network, parts, None), None)
    arms: dict[str, Any] = {}
    for arm, (question, known) in questions.items():
        rows = {
            name: run.unit(f"{slug(arm)}/{slug(name)}", lambda p=plan, q=question: measured(q, p, given.seeds))
            for name, plan in plans.items()
        }
        arms[arm] = compared(rows, baselines(parts, pool, known), f"protenix, {given.many} steps")
    result = {
        "settings": {**settings, "fragments": len(parts), "pool": len(pool), "members": MEMBERS},
        "exact": exact, "search": search, "arms": arms,
        "conditions": run.unit("conditions", lambda: conditions(network, parts, given.profiles, given.seeds)),
        "cost": run.unit("cost", lambda: cost((32, 128), (2, 5, 50))),
        "samplers": {name: vars(s) for name, s in SAMPLERS.items()},
        "seconds": time.monotonic() - begun, "environment": environment(),
    }  # fmt: skip
    write_json(given.output, result)


def compared(rows: dict[str, Any], free: dict[str, Tensor], reference: str) -> dict[str, Any]:
    """Rows with their difference to the reference, and the premise: the reference against what needs no network."""
    base = torch.tensor(rows[reference]["per_fragment"])
    for row in rows.values():
        values = torch.tensor(row.pop("per_fragment"))
        row["against_reference"] = difference_interval(values, base).as_dict()
        row["share_of_reference"] = float(values.mean() / base.mean())
    premise = {
        name: {"lddt": mean_interval(v).as_dict(), "gain": difference_interval(base, v).as_dict()}
        for name, v in free.items()
    }
    return {"rows": rows, "premise": premise, "shown": all(p["gain"]["low"] > 0 for p in premise.values())}


def conditions(
    network: StructureNetwork | None, parts: Sequence[Structure], profiles: Path | None, seeds: list[int]
) -> dict[str, Any]:
    """LDDT with each condition alone and with both, on fragments that alignments cover, in five steps."""
    tables = {} if profiles is None else read_tensors(profiles)
    covered, rows = [], []
    for k, part in enumerate(parts):
        chain, _, place = part.name.rpartition(":")
        start = int(place.split("-")[0])
        table = tables.get(chain)
        if table is not None and bool((table[start : start + LENGTH].sum(1) > 0).all()):
            covered.append(k)
            rows.append(table[start : start + LENGTH])
    if network is None or len(covered) < 3:
        return {"fragments": len(covered)}
    some, embedding = [parts[k] for k in covered], torch.stack(rows)
    restraints, plan = told(parts, SHARE)[covered], structure_plan("protenix-mini", 5)
    found: dict[str, Any] = {"fragments": len(covered)}
    options: dict[str, tuple[Tensor | None, Tensor | None]] = {
        "neither": (None, None), "alignment": (None, embedding), "restraints": (restraints, None),
        "both": (restraints, embedding),
    }  # fmt: skip
    base: Tensor | None = None
    for name, (distance, profile) in options.items():
        row = measured(by_network(network, some, distance, profile), plan, seeds)
        values = torch.tensor(row["per_fragment"])
        base = values if base is None else base
        found[name] = {"lddt": row["lddt"], "gain": difference_interval(values, base).as_dict()}
    return found


if __name__ == "__main__":
    main()
