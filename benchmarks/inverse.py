"""How far are posterior samples from the exact posterior? Guidances x plans x steps on Gaussian signals.

    python benchmarks/inverse.py --folder runs/inverse
    python benchmarks/inverse.py --draws 256 --steps 4 8 --output quick.json

Signals of 32 numbers with covariance exp(-|i - j| / 6), measured through a mask and by means of four, with
noise. The network is exact, so all that is wrong comes from the guidance and from the steps. Of every system, over
several measurements: distance of the sample mean from the posterior's (in units of its root mean variance, all
coordinates together), ratio of the total variances, and the Frechet distance over the total variance. The floor is what
exact draws of that number show. A plan of 8 evaluations is searched on measurements of its own (solver, noise, start
and end of the grid) and compared with 100 evaluations of ancestral sampling at equal times.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.executor import sample
from fewstep.files import write_json
from fewstep.metrics.distances import gaussian_frechet
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import VPContinuous
from fewstep.runs import Run
from fewstep.runs.environment import environment
from fewstep.solvers import SOLVERS, grids
from fewstep.tasks.restoration import (
    GUIDANCES,
    LinearOperator,
    Measurement,
    inpainting,
    pigdm,
    posterior,
    with_jumps,
    written_out,
)
from fewstep.tasks.restoration.guidance import Rule
from fewstep.testing.mixture import Mixture

SIZE, NOISE, SHAPE = 32, 0.1, (1, 1, 32)
PROCESS, PREDICTION = VPContinuous(), Prediction("v_prediction")
PLACES = torch.arange(SIZE).double()
COVARIANCE = torch.exp(-(PLACES[:, None] - PLACES).abs() / 6)
DATA = Mixture.gaussian(torch.zeros(SIZE), COVARIANCE)
DENOISER = Denoiser(DATA.network(PROCESS, PREDICTION), PROCESS, PREDICTION)
STEPS = (4, 8, 16, 100, 1000)
TUNING, HELD_OUT = (101, 102, 103), (1, 2, 3)


def means_of_four() -> LinearOperator:
    """Box reduction along the one axis."""
    forward = lambda x: x.unflatten(-1, (-1, 4)).mean(-1)  # noqa: E731
    adjoint = lambda y: y.repeat_interleave(4, -1) / 4  # noqa: E731
    return written_out(LinearOperator("means of four", SHAPE, (1, 1, SIZE // 4), forward, adjoint))


def operators() -> dict[str, LinearOperator]:
    mask = (torch.arange(SIZE) % 16 < 8).double()
    return {"mask": inpainting(mask, SHAPE), "means of four": means_of_four()}


USUAL, EXACT = "ancestral, equal times", "pigdm, exact"
RULES: dict[str, Callable[[], Rule]] = {**GUIDANCES, EXACT: lambda: pigdm(exact=True, tolerance=1e-4)}


def times(steps: int, first: float = 1.0, last: float = 0.002) -> grids.Grid:
    """Equal steps in log-SNR."""
    return grids.uniform_lambda(PROCESS, steps, last, first=first)


def plans(steps: int) -> dict[str, Plan]:
    usual = SOLVERS["ddim"](PROCESS, PREDICTION, grids.uniform(PROCESS, steps), eta=1.0)
    return {
        USUAL: usual,
        "ddim": SOLVERS["ddim"](PROCESS, PREDICTION, times(steps)),
        "ancestral": SOLVERS["ddim"](PROCESS, PREDICTION, times(steps), eta=1.0),
        "dpm_solver_pp_2m": SOLVERS["dpm_solver_pp_2m"](PROCESS, PREDICTION, times(steps)),
    }


def measured(operator: LinearOperator, seed: int) -> Measurement:
    seen = operator.forward(DATA.sample(1, seed=seed).reshape(1, *SHAPE))
    noise = torch.randn(seen.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Measurement(operator, seen + NOISE * noise, NOISE)


def exact(given: Measurement) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the posterior."""
    basis = torch.eye(SIZE).double().reshape(-1, *SHAPE)
    a = given.operator.forward(basis).flatten(1).T
    gain = torch.linalg.solve(a @ COVARIANCE @ a.T + NOISE**2 * torch.eye(len(a)).double(), a @ COVARIANCE).T
    return gain @ given.values.flatten(), COVARIANCE - gain @ a @ COVARIANCE


def departure(drawn: Tensor, given: Measurement) -> dict[str, float]:
    mean, covariance = exact(given)
    x = drawn.double().flatten(1)
    total = covariance.trace()
    away = gaussian_frechet(x.mean(0), x.T.cov(), mean, covariance)
    return {
        "mean_error": float((x.mean(0) - mean).norm() / total.sqrt()),
        "variance_ratio": float(x.T.cov().trace() / total),
        "frechet": away / float(total),
    }


def summary(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """Mean and standard deviation over measurements."""
    values = {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}
    return {key: [float(v.mean()), float(v.std())] for key, v in values.items()}


def over(plan: Plan, rule: Rule, operator: LinearOperator, seeds: tuple[int, ...], draws: int) -> dict[str, Any]:
    """Draws for several measurements, as one batch."""
    each = [measured(operator, seed) for seed in seeds]
    values = torch.cat([one.values.expand(draws, *operator.output_shape) for one in each])
    network = posterior(DENOISER, Measurement(operator, values, NOISE), rule).network
    drawn = sample(plan, network, seeds=range(draws * len(each)), shape=SHAPE).split(draws)
    return summary([departure(x, one) for x, one in zip(drawn, each, strict=True)])


def floor(operator: LinearOperator, draws: int) -> dict[str, Any]:
    """What exact draws show."""
    rows = []
    for seed in HELD_OUT:
        mean, covariance = exact(measured(operator, seed))
        rows.append(departure(Mixture.gaussian(mean, covariance).sample(draws, seed), measured(operator, seed)))
    return summary(rows)


def candidates(steps: int) -> dict[str, Plan]:
    """Plans of the search: solver, start, end, noise."""
    found = {}
    for first, last in itertools.product((1.0, 0.8, 0.6), (0.002, 0.02, 0.05)):
        grid = times(steps, first, last)
        for solver, options in (("ddim", {"eta": 0.0}), ("ddim", {"eta": 1.0}), ("dpm_solver_pp_2m", {})):
            found[f"{solver} {options} from {first} to {last}"] = SOLVERS[solver](PROCESS, PREDICTION, grid, **options)
    return found


def searched(name: str, operator: LinearOperator, draws: int) -> dict[str, Any]:
    """The best plan of 8 rows on measurements of its own, and how it does on the held-out ones."""
    rule, known = RULES[name](), candidates(8)
    scores = {label: over(plan, rule, operator, TUNING, 128)["frechet"][0] for label, plan in known.items()}
    best = min(scores, key=lambda label: scores[label])
    return {
        "plan": best,
        "candidates": len(known),
        **over(known[best], rule, operator, HELD_OUT, draws),
        "usual of 100": over(plans(100)[USUAL], rule, operator, HELD_OUT, draws),
    }


def repainted(operator: LinearOperator, draws: int) -> list[dict[str, Any]]:
    """RePaint: jumps of the ancestral plan, at equal evaluations."""
    rows = []
    for steps, length, repeats in ((30, 1, 1), (15, 5, 2), (6, 2, 5), (100, 1, 1), (20, 5, 5), (100, 10, 10)):
        plan = with_jumps(plans(steps)["ancestral"], length, repeats)
        found = over(plan, RULES["ddnm"](), operator, HELD_OUT, draws)
        rows.append({"evaluations": plan.steps, "steps": steps, "jump": length, "repeats": repeats, **found})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=512)
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--operators", nargs="+", default=list(operators()), choices=list(operators()))
    parser.add_argument("--output", type=Path, default=Path("results/inverse.json"))
    parser.add_argument("--folder", type=Path, default=None, help="keeps what is done; a temporary one unless given")
    given = parser.parse_args()
    settings = {"draws": given.draws, "steps": given.steps, "noise": NOISE, "measurements": list(HELD_OUT)}
    run = Run(given.folder or Path(tempfile.mkdtemp()) / "inverse", settings, quiet=True)
    rows, search, floors = [], {}, {}
    for place, operator in ((name, operators()[name]) for name in given.operators):
        floors[place] = floor(operator, given.draws)
        for rule in RULES:
            for steps in given.steps:
                for label, plan in plans(steps).items():
                    if steps > 100 and (label != USUAL or rule == EXACT):
                        continue  # a thousand steps are for the published way alone
                    work = lambda plan=plan, rule=rule, operator=operator: over(  # noqa: E731
                        plan, RULES[rule](), operator, HELD_OUT, given.draws
                    )
                    unit = f"{place}/{rule}/{label}/{steps}".replace(" ", "-").replace(",", "")
                    found = run.unit(unit, work)
                    rows.append({"operator": place, "guidance": rule, "plan": label, "steps": steps, **found})
            name = f"{place}/{rule}/searched".replace(" ", "-").replace(",", "")
            work = lambda rule=rule, operator=operator: searched(rule, operator, given.draws)  # noqa: E731
            search[f"{place}, {rule}"] = run.unit(name, work)
            print(place, rule, {k: v for k, v in search[f"{place}, {rule}"].items() if k != "plan"}, flush=True)
    jumps = run.unit("mask/repaint", lambda: repainted(operators()["mask"], given.draws))
    document = {"settings": settings, "floor": floors, "rows": rows, "searched": search, "repaint": jumps}
    write_json(given.output, {**document, "environment": environment()})


if __name__ == "__main__":
    main()
