"""Quality against network evaluations: every solver, every search, and diffusers' own schedulers, on three models.

    python benchmarks/solvers.py                     # all models -> results/solvers.json; goes on where it was stopped
    python benchmarks/solvers.py --models digits     # one of them, into runs/solvers/digits only

The distance of a sampler is that of its result from the result of the same network's fine trajectory (same noise, same
condition), root mean square over the standard deviation; `frechet` is the Fréchet distance of features to real data.
Every solver of ours gets the best of the usual time grids, every scheduler of diffusers the best of its own spacings,
chosen on calibration items (above 6 evaluations the choice made at 6 is kept, and half of the held-out items serve);
searches see the same calibration items; all numbers are on held-out noise and conditions.
Stochastic solvers end elsewhere by design and have the Fréchet distance alone. Intervals are Student's t over seeds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from testbeds import SEEDS, TESTBEDS, Testbed
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.files import write_json
from fewstep.jobs.search.baselines import diffusers_plans
from fewstep.metrics.distances import frechet
from fewstep.metrics.intervals import difference_interval, seed_interval
from fewstep.plan import Plan
from fewstep.runs import Run, environment
from fewstep.schedules import ModelInfo, SearchTask, TeacherMatch, Trajectory, search_method
from fewstep.solvers import FACTS, SOLVERS, Grid, grids

EVALUATIONS = (3, 4, 5, 6, 8, 10, 15, 20)
TEACHER = 200
SIZES = {  # items: calibration, held-out per seed; budget of the searches; evaluations at which searches run
    "digits": (64, 325, 200, EVALUATIONS),
    "mnist": (24, 96, 80, (3, 4, 5, 6, 8, 10)),
    "emoji": (16, 40, 60, (3, 4, 5, 6, 8, 10)),
}
SEARCHES = ("gits", "ld3", "amed", "autodiffusion", "s3", "joint")
LIGHT = ("gits", "ld3", "joint")
"""Searches on the largest model, and of the others above `TUNED` evaluations."""
TUNED = 6
"""Evaluations up to which grids are chosen anew."""
SKIPPED = {"lcm", "tcd"}
"""Solvers that need a distilled student."""


class Bench:
    """One model: its teacher's results, and the error of any plan."""

    def __init__(self, bed: Testbed, run: Run) -> None:
        self.bed, self.run = bed, run
        self.calibration, self.count, self.budget, self.searched = SIZES[bed.name]
        self.fine = SOLVERS["unipc"](bed.process, bed.prediction, grids.uniform(bed.process, TEACHER))
        self.known = bed.known(self.calibration)
        self.held_out = bed.unseen(self.count)
        self.targets = [bed.draw(self.fine, *some) for some in self.held_out]
        self.unit = float(torch.cat(self.targets).std())
        coarse = SOLVERS["unipc"](bed.process, bed.prediction, grids.uniform(bed.process, 60))
        self.trajectory = Trajectory.follow(coarse, bed.bind(self.known[0]), seeds=self.known[1], shape=bed.shape)
        self.objective = TeacherMatch(self._on_known, bed.draw(self.fine, *self.known))

    def _on_known(self, plan: Plan, items: Any) -> Tensor:
        conditions, seeds = self.known
        return self.bed.generate(plan, [conditions[i] for i in items], [seeds[i] for i in items])

    def value(self, plan: Plan) -> float:
        """Minus the error on the calibration items."""
        with torch.no_grad():
            return float(self.objective(plan, range(self.calibration)).mean())

    def best(self, plans: dict[str, Plan]) -> tuple[str, Plan]:
        """The best on the calibration items."""
        values = {name: self.value(plan) for name, plan in plans.items()}
        name = max(values, key=lambda n: values[n] if math.isfinite(values[n]) else -math.inf)
        return name, plans[name]

    def measure(self, plan: Plan) -> dict[str, Any]:
        """Distance and Fréchet distance per seed, with intervals, and the distance item by item."""
        count = self.count if plan.steps <= TUNED else self.count // 2
        drawn = [self.bed.draw(plan, conditions[:count], seeds[:count]) for conditions, seeds in self.held_out]
        found = {"frechet": self.quality(drawn)}
        if plan.stochastic:  # it ends elsewhere by design: only the distribution counts
            return found
        pairs = zip(drawn, [target[:count] for target in self.targets], strict=True)
        away = torch.stack([(d - t).flatten(1).square().mean(1).sqrt() / self.unit for d, t in pairs])
        return found | {"distance": seed_interval(away.mean(1)).as_dict(), "items": away.mean(0).tolist()}

    def quality(self, drawn: list[Tensor]) -> dict[str, Any]:
        """Fréchet distance to real data, with its interval over seeds."""
        with torch.no_grad():
            real = [frechet(self.bed.features(d).double(), self.bed.real.double()) for d in drawn]
        return seed_interval(torch.tensor(real)).as_dict()

    # --- the systems ------------------------------------------------------------------------------------------------

    def at(self, evaluations: int, tuned: dict[str, Any]) -> dict[str, Any]:
        """Every system at this many evaluations; `tuned`: the rows whose grids are kept, empty to choose them anew."""
        rows: dict[str, Any] = {}
        ours = {name: self._ours(name, evaluations) for name in SOLVERS if name not in SKIPPED}
        theirs = self._grouped(diffusers_plans(self.bed.scheduler, evaluations))
        for group, found in (("fewstep", ours), ("diffusers", theirs)):
            for name, plans in found.items():
                kept = tuned.get(name, {}).get("variant")
                if plans:
                    rows[name] = self._row(group, *((kept, plans[kept]) if kept in plans else self.best(plans)))
        if evaluations in self.searched:
            light = self.bed.name == "emoji" or (self.bed.name == "mnist" and evaluations > TUNED)
            for name in LIGHT if light else SEARCHES:
                if name != "amed" or evaluations % 2 == 0:
                    rows[f"search: {name}"] = self._searched(name, evaluations)
        return rows

    def _row(self, group: str, variant: str, plan: Plan) -> dict[str, Any]:
        known = {} if plan.stochastic else {"calibration": -self.value(plan)}
        return {"group": group, "variant": variant, **known, **self.measure(plan)}

    def _searched(self, name: str, evaluations: int) -> dict[str, Any]:
        bed = self.bed
        storage = self.run.scratch(f"search-{name}-{evaluations}") / "pool.journal"
        task = SearchTask(
            ModelInfo(bed.process, bed.prediction), evaluations, self.objective, self.trajectory, self.budget,
            storage=storage,
        )  # fmt: skip
        found = search_method(name)(task)
        calls = found.spent * self.calibration * evaluations
        return self._row("search", f"{found.spent:.0f} plans tried", found.plan) | {"network_calls": calls}

    def _ours(self, name: str, evaluations: int) -> dict[str, Plan]:
        """A solver on each of the usual grids; empty where it cannot make this number of evaluations."""
        facts, bed, found = FACTS[name], self.bed, {}
        steps, rest = divmod(evaluations, facts.calls)
        if rest:
            return {}
        usual = usual_grids(bed)
        for label, build in ({"uniform": usual["uniform"]} if facts.stochastic else usual).items():
            try:
                plan = SOLVERS[name](bed.process, bed.prediction, build(steps))
            except FewstepError:
                continue
            if plan.steps == evaluations:
                found[label] = plan
        return found

    @staticmethod
    def _grouped(plans: dict[str, Plan]) -> dict[str, dict[str, Plan]]:
        """Plans of one scheduler under its name; the spacings are its variants."""
        groups: dict[str, dict[str, Plan]] = {}
        for label, plan in plans.items():
            words = label.split()
            spacing = words[-1] if words[-1] in ("trailing", "Karras", "exponential", "Lu") else "default"
            name = label if spacing == "default" else " ".join(words[:-1])
            groups.setdefault(f"diffusers {name}", {})[spacing] = plan
        return groups


def usual_grids(bed: Testbed) -> dict[str, Callable[[int], Grid]]:
    """Time grids that need no search, for any process."""
    process = bed.process
    first = process.noisiest if float(process.alpha(process.noisiest)) > 0 else 0.999 * process.noisiest
    last = process.noisiest * 0.02
    return {
        "uniform": lambda n: grids.uniform(process, n),
        "log-SNR": lambda n: grids.uniform_lambda(process, n, last, first=first),
        "Karras": lambda n: grids.karras(process, n, last, first=first),
        "quadratic": lambda n: grids.polynomial(process, n, last),
    }


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Best of each group by number of evaluations, and the paired difference of the best search to diffusers' best."""
    found = {}
    for evaluations, systems in rows.items():
        best = {}
        for group in ("fewstep", "diffusers", "search"):
            members = {n: r for n, r in systems.items() if r["group"] == group and "distance" in r}
            if members:
                # a search is chosen as its user would, unseen; the others get the benefit of hindsight
                judged = [r["calibration"] if group == "search" else r["distance"]["mean"] for r in members.values()]
                name = list(members)[judged.index(min(judged))]
                best[group] = {"name": name, "distance": members[name]["distance"]["mean"]}
        entry: dict[str, Any] = {"best": best}
        if "search" in best and "diffusers" in best:
            a, b = (torch.tensor(systems[best[g]["name"]]["items"]) for g in ("search", "diffusers"))
            entry["search - diffusers"] = difference_interval(a, b).as_dict()
        found[evaluations] = entry
    return found


def model(name: str) -> dict[str, Any]:
    """All numbers of one model; each number of evaluations is a unit that is kept."""
    bed = TESTBEDS[name]()
    settings = {"calibration": SIZES[name][0], "held_out": SIZES[name][1], "budget": SIZES[name][2], "teacher": TEACHER}
    with Run(Path("runs") / "solvers" / name, {"model": name, **settings}) as run:
        bench = cache(lambda: Bench(bed, run))  # nothing is drawn where everything is kept
        made = run.unit("environment", environment)
        teacher = run.unit("teacher", lambda: {"frechet": bench().quality(bench().targets)})
        rows: dict[str, dict[str, Any]] = {}
        for n in EVALUATIONS:
            tuned = rows[str(TUNED)] if n > TUNED else {}
            rows[str(n)] = run.unit(f"evaluations-{n}", partial(lambda n, tuned: bench().at(n, tuned), n, tuned))
        seconds = run.seconds()
    for systems in rows.values():
        for row in systems.values():
            row["seeds"] = len(SEEDS)
    short = summary(rows)
    slim = {n: {s: {k: v for k, v in r.items() if k != "items"} for s, r in rows[n].items()} for n in rows}
    found = {"about": bed.about, **settings, "environment": made, "teacher_quality": teacher["frechet"]}
    return found | {"rows": slim, "summary": short, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(TESTBEDS), choices=list(TESTBEDS))
    parser.add_argument("--out", type=Path, default=None, help="results/solvers.json when all models are asked for")
    options = parser.parse_args()
    found = {name: model(name) for name in options.models}
    out = options.out or (Path("results/solvers.json") if set(options.models) == set(TESTBEDS) else None)
    if out:
        write_json(out, {"environment": environment(), "evaluations": list(EVALUATIONS), "models": found})
    for name, result in found.items():
        print(f"\n{name}: {result['about']}")
        for evaluations, entry in result["summary"].items():
            print(f"  {evaluations:>2}", {g: (b["name"], round(b["distance"], 4)) for g, b in entry["best"].items()})


if __name__ == "__main__":
    main()
